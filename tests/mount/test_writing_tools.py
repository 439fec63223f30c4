"""Ordinary programs make datasets in a mount: every byte is right, read back from elsewhere.

Each program works twice in the same way, in a plain local directory and in a new
dataset; both hold the same then. The dataset is frozen and read through another
user's mount that has seen nothing of it, by dtool, and by dtool-s3 from the bucket.
"""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import dtoolcore
import pytest

from tests.support.accounts import Account
from tests.support.directory_trees import md5_of_files
from tests.support.dtool_datasets import SIZES, content_of
from tests.support.mounts import mounted
from tests.support.server_store import set_dtool_s3, storage_of
from tests.support.servers import ServerHandle
from tests.support.staged_datasets import freeze

DTOOL = Path(sys.executable).with_name("dtool")

_HDF5 = """
import sys, h5py, numpy
for passing in range(3):
    with h5py.File(sys.argv[1] + "/measured.h5", "a") as file:
        data = file.create_dataset(f"run {passing}", (500, 200), chunks=(50, 50),
                                   compression="gzip", track_times=False)
        data[...] = numpy.arange(100_000).reshape(500, 200) * passing
        data[100:200, ::2] = 7
        file.attrs["passes"] = passing
        if passing:
            del file[f"run {passing - 1}"]
with h5py.File(sys.argv[1] + "/measured.h5", "r") as file:
    assert list(file) == ["run 2"] and file["run 2"][150, 2] == 7, list(file)
"""
_SQLITE = """
import sqlite3, sys
directory, mode = sys.argv[1:]
database = sqlite3.connect(directory + "/measured.sqlite")
assert database.execute(f"pragma journal_mode = {mode}").fetchone() == (mode,)
database.execute("create table rows (number integer primary key, text)")
other = sqlite3.connect(directory + "/measured.sqlite")
for passing in range(5):
    with database:
        database.executemany("insert into rows (text) values (?)", [("x" * n,) for n in range(300)])
    assert other.execute("select count(*) from rows").fetchone() == ((passing + 1) * 300,)
    with other:
        other.execute("update rows set text = text || 'y' where number % 7 = 0")
with database:
    database.execute("delete from rows where number between 100 and 200")
other.close()
database.execute("vacuum")
database.close()
database = sqlite3.connect(directory + "/measured.sqlite")
assert database.execute("pragma integrity_check").fetchone() == ("ok",)
assert database.execute("select count(*) from rows").fetchone() == (1399,)
database.close()
"""
_FILE_MANAGER = """
cd "$1"
mkdir 'untitled folder' && mv 'untitled folder' Results
printf 'first' > Results/.goutputstream-A1B2C3
mv Results/.goutputstream-A1B2C3 Results/report.txt
touch 'Results/.~lock.report.txt#'
printf 'second version' > Results/.goutputstream-D4E5F6
ln Results/report.txt 'Results/report.txt~'
mv Results/.goutputstream-D4E5F6 Results/report.txt
rm 'Results/.~lock.report.txt#'
head -c 300000 /dev/zero | tr '\\0' x > big.part && mv big.part big.bin
cp -r Results 'Results (copy)' && mv 'Results (copy)' Archive
touch -d 2001-02-03T04:05:06 Archive/report.txt
"""
_EDITORS = """
cd "$1"
seq 1 20000 > numbers
sed -i 's/7/seven/g' numbers
sed -i.bak '1,100d' numbers
printf 'one\\ntwo\\n' > text
if command -v vim > /dev/null; then
    vim -Nu NONE -es -c '%s/two/zwei/' -c 'set backup' -c 'w' -c 'normal Gothree' -c 'wq' text
else
    printf 'one\\nzwei\\nthree\\n' > text
fi
"""
_GIT = """
cd "$1"
export GIT_AUTHOR_DATE=2020-02-02T02:02:02Z GIT_COMMITTER_DATE=2020-02-02T02:02:02Z
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q . && cp -r "$2"/. . && git add -A && git commit -qm first
echo more >> new-file && git add -A && git commit -qm second && git gc -q && git fsck --strict
test -z "$(git status --porcelain)"
"""
_RSYNC = """
rsync -a "$2/" "$1/"
test -z "$(rsync -ai "$2/" "$1/")"
rm -rf "$3" && cp -a "$2" "$3"
rm "$3"/one-byte && echo changed > "$3"/empty && mkdir "$3"/more && echo more > "$3"/more/file
head -c 70000 /dev/zero | dd of="$3"/block+1.bin bs=1000 seek=50 conv=notrunc status=none
rsync -a --inplace --no-whole-file --delete "$3/" "$1/"
test -z "$(rsync -aic --delete "$3/" "$1/")"
rm -rf "$3"
"""


def shell(text: str) -> list[str]:
    return ["sh", "-euc", text, "sh"]


class Program(NamedTuple):
    command: Callable[[Account, Path, Path], list[str | Path]]  # of who, where to, from where
    makes_directory: bool = False
    not_reproducible: str = ""  # a pattern of paths that are other ones in each run


def python(program: str, *arguments: str) -> Program:
    return Program(lambda who, to, source: [who.python, "-c", program, to, *arguments])


PROGRAMS: Mapping[str, Program] = {
    "cp-r": Program(lambda who, to, source: ["cp", "-r", source, to], makes_directory=True),
    "cp-a": Program(lambda who, to, source: ["cp", "-a", source, to], makes_directory=True),
    "rsync": Program(
        lambda who, to, source: [*shell(_RSYNC), to, source, source.with_name("changed")]
    ),
    "tar": Program(
        lambda who, to, source: [*shell('tar -C "$2" -cf - . | tar -C "$1" -xf -'), to, source]
    ),
    "hdf5": python(_HDF5),
    "sqlite-delete": python(_SQLITE, "delete"),
    "sqlite-wal": python(_SQLITE, "wal"),
    "file-manager": Program(lambda who, to, source: [*shell(_FILE_MANAGER), to]),
    "editors": Program(lambda who, to, source: [*shell(_EDITORS), to]),
    "git": Program(
        lambda who, to, source: [*shell(_GIT), to, source],
        # Inode numbers; that symbolic links are refused, which git tries out and notes.
        not_reproducible=".git/[ci][on]*",
    ),
}


class Made(NamedTuple):
    """A dataset that a program made."""

    failure: str
    local: Mapping[str, str]  # MD5 by relative path
    staged: Mapping[str, str]
    uri: str


def source_tree(account: Account) -> Path:
    """Make a directory of all sorts of files, which `account` owns."""
    source = account.home / "source"
    for relpath, size in SIZES.items():
        path = source / relpath
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_of(relpath, size))
        os.utime(path, ns=(10**18, 1_500_000_000_123_456_789 + size))
    account_of = account.home.stat()
    for path in [source, *source.rglob("*")]:
        os.chown(path, account_of.st_uid, account_of.st_gid)
    return source


def make(program: Program, account: Account, source: Path, dataset: Path, local: Path) -> Made:
    for target in (local, dataset):
        if not program.makes_directory:
            account.run("mkdir", target, check=True)
        done = account.run(*program.command(account, target, source), timeout_s=120)
        if done.returncode:
            return Made(f"in {target.parent}: {done.stdout}{done.stderr}", {}, {}, "")
    same, made = (
        {
            relpath: md5
            for relpath, md5 in md5_of_files(account, directory).items()
            if not fnmatch.fnmatch(relpath, program.not_reproducible)
        }
        for directory in (local, dataset)
    )
    staged = md5_of_files(account, dataset)
    return Made("", same, {key: staged[key] for key in made}, freeze(account, dataset))


@pytest.fixture(scope="module")
def made(fuse: None, ordinary_user: Account, server: ServerHandle, token: str) -> dict[str, Made]:
    """What each program made, frozen."""
    account = ordinary_user
    source, found = source_tree(account), {}
    with mounted(account, server.base_uri, token, "--freeze-delay", "manual") as base:
        for name, program in PROGRAMS.items():
            if name == "hdf5" and account.python != Path(sys.executable):
                continue  # a Python without h5py
            dataset = base / f"made-by-{name}"
            found[name] = make(program, account, source, dataset, account.home / f"made-{name}")
    return found


@pytest.fixture(scope="module")
def elsewhere(
    made: dict[str, Made], current_user: Account, server: ServerHandle, token: str
) -> Iterator[Path]:
    """The base URI in a mount with a cache of its own, made after everything was frozen."""
    cache = current_user.home / f"cold-{len(list(current_user.home.glob('cold-*')))}"
    with mounted(
        current_user, server.base_uri, token, "--read-only", "--cache-dir", str(cache)
    ) as base:
        yield base


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_makes_in_a_mount_what_it_makes_in_a_local_directory(
    made: dict[str, Made],
    current_user: Account,
    elsewhere: Path,
    program: str,
) -> None:
    result = _of(made, program)

    assert result.failure == ""
    assert result.staged == result.local
    found = md5_of_files(current_user, elsewhere / f"made-by-{program}" / "data")
    assert {relpath: found.get(relpath) for relpath in result.staged} == result.staged


@pytest.mark.parametrize("program", PROGRAMS)
def test_dtool_verifies_it_and_dtool_s3_reads_it_from_the_bucket(
    made: dict[str, Made],
    current_user: Account,
    elsewhere: Path,
    server: ServerHandle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
) -> None:
    set_dtool_s3(monkeypatch, storage_of(server), tmp_path)
    result = _of(made, program)

    verified = current_user.run(DTOOL, "verify", "--full", elsewhere / f"made-by-{program}")
    stored = dtoolcore.DataSet.from_uri(f"{server.backend_uri}/{result.uri.rpartition('/')[2]}")

    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "All good" in verified.stdout
    described = {
        item["relpath"]: item["hash"] for item in stored.generate_manifest()["items"].values()
    }
    assert {relpath: described.get(relpath) for relpath in result.staged} == result.staged


def _of(made: Mapping[str, Made], program: str) -> Made:
    if program not in made:
        pytest.skip("this user can only run a Python without h5py")
    return made[program]
