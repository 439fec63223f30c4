"""Daemons that are killed behind a channel: who reads frozen datasets does not notice."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dserverfs.base.items import BLOCK_SIZE
from tests.support.accounts import Account
from tests.support.directory_trees import md5_of_files
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mount_daemons import Remountable, remountable, stopped, wait_for_end
from tests.support.mounts import publish
from tests.support.patience import LATE_S
from tests.support.random_reader import reading
from tests.support.server_store import weed_of
from tests.support.servers import ServerHandle, encoded
from tests.support.successors import kill_daemon, log_of, successor_of

SIZE = 5 * BLOCK_SIZE + 4321
CONTENT = content_of("survival", SIZE)
MANY = 700  # more than a piece of rows


@pytest.fixture(scope="module")
def uri(server: ServerHandle, token: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("survival")
    many = {f"many/{number}": b"%d" % number for number in range(MANY)}
    local = make_dataset(directory, "survives", {"large": CONTENT, "small": b"small\n", **many})
    return publish(server.base_uri, token, directory / "cache", local)[0]


@pytest.fixture
def mount(fuse: None, current_user: Account, token: str, uri: str) -> Iterator[Remountable]:
    """The dataset, whose root is that of the mount."""
    with remountable(current_user, uri, {"DSERVER_TOKEN": token}) as made:
        made.mount("--channel", "on")
        yield made


@pytest.fixture
def base(
    fuse: None, current_user: Account, server: ServerHandle, token: str, uri: str
) -> Iterator[Remountable]:
    """The base URI that it is in."""
    with remountable(current_user, server.base_uri, {"DSERVER_TOKEN": token}) as made:
        made.mount("--channel", "on")
        yield made


def test_cached_reads_see_no_error_while_daemons_are_killed(mount: Remountable) -> None:
    path = mount.path / "data/large"
    assert path.read_bytes() == CONTENT

    try:
        with reading(path, "survival", SIZE), reading(path, "survival", SIZE):
            daemons = [kill_daemon(mount) for _ in range(20)]
    except AssertionError as error:
        said = [line for line in log_of(mount).splitlines() if " INFO " not in line]
        raise AssertionError(f"{error}; the log says: {said}") from None

    assert len(set(daemons)) == 20


def test_what_is_cached_is_read_while_there_is_no_daemon(mount: Remountable) -> None:
    path = mount.path / "data/large"
    with path.open("rb", buffering=0) as file:
        for _ in range(2):  # told, then answered by the channel
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read(1000) == CONTENT[:1000]
            file.seek(0)
        names = os.listdir(mount.path / "data/many")
        before = mount.daemon()
        os.kill(before, signal.SIGKILL)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read(1000) == CONTENT[:1000]
        assert sorted(os.listdir(mount.path / "data/many")) == sorted(names)
        successor_of(mount, before)


def test_uncached_reads_wait_for_the_next_daemon_and_are_right(
    mount: Remountable, server: ServerHandle
) -> None:
    path = mount.path / "data/large"
    with ThreadPoolExecutor(4) as pool:
        with stopped(weed_of(server)):  # so that they are under way when the daemon dies
            reads = [pool.submit(path.read_bytes) for _ in range(4)]
            before = mount.daemon()
            os.kill(before, signal.SIGKILL)
            wait_for_end(before)
        reads.append(pool.submit((mount.path / "data/small").read_bytes))
        found = [each.result(LATE_S) for each in reads]

    assert found == [CONTENT] * 4 + [b"small\n"]
    successor_of(mount, before)


def test_open_files_and_directories_go_on(mount: Remountable) -> None:
    data = mount.path / "data"
    with (
        (data / "large").open("rb", buffering=0) as large,
        (mount.path / "README.yml").open("rb", buffering=0) as readme,
        os.scandir(data / "many") as listing,
        os.scandir(mount.path / ".dtool") as metadata,
    ):
        begin = large.read(10)
        names = [next(listing).name for _ in range(3)]
        for _ in range(2):
            kill_daemon(mount)
        names += [entry.name for entry in listing]

        assert begin + large.read(1000) == CONTENT[:1010]
        assert readme.read().startswith(b"---\n")
        assert len([entry.name for entry in metadata]) > 3
    assert sorted(names) == sorted(map(str, range(MANY)))


def numbers_below(top: Path) -> dict[str, int]:
    """Return the inode number of everything there is, and of some paths that no listing shows."""
    hidden = [".dserverfs/stats", ".find/tag/testing", ".dtool/tags/testing"]
    found = {name: (top / name).lstat().st_ino for name in hidden if (top / name).exists()}
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            path = Path(directory, name)
            found[str(path.relative_to(top))] = path.lstat().st_ino
    return found


@pytest.mark.parametrize("which", ["mount", "base"])
def test_inode_numbers_stay(which: str, request: pytest.FixtureRequest) -> None:
    mounted: Remountable = request.getfixturevalue(which)
    before = numbers_below(mounted.path)

    for _ in range(2):
        kill_daemon(mounted)

        assert numbers_below(mounted.path) == before


@pytest.mark.parametrize("kills", [1, 2])
def test_a_base_uri_whose_right_is_lost_is_refused_and_not_empty(
    fuse: None, current_user: Account, server: ServerHandle, token: str, kills: int
) -> None:
    """Also by a daemon that has never had the right: a mirror would delete its copy."""
    base_uri = server.add_base_uri(search=[server.username])
    place = base_uri.replace("://", "/")
    uri = f"{server.base_uri.rpartition('/s3/')[0]}/{place}"
    with remountable(current_user, uri, {"DSERVER_TOKEN": token}) as made:
        made.mount("--channel", "on")
        assert os.listdir(made.path) == []
        nobody: dict[str, list[str]] = {
            "users_with_search_permissions": [],
            "users_with_register_permissions": [],
        }
        server.request("PUT", f"/base-uris/{encoded(base_uri)}", nobody).raise_for_status()
        for _ in range(kills):
            kill_daemon(made)

        with pytest.raises(PermissionError):
            os.listdir(made.path)


def test_searches_and_aliases_keep_their_numbers(base: Remountable, uri: str) -> None:
    paths = [
        base.path / ".find/tag/testing",
        base.path / ".find/tag/testing/survives",
        base.path / ".uuid" / uri.rpartition("/")[2] / "data/large",
    ]
    before = [(path.lstat().st_ino, path.lstat().st_mode) for path in paths]
    target = os.readlink(paths[1])

    kill_daemon(base)

    assert [(path.lstat().st_ino, path.lstat().st_mode) for path in paths] == before
    assert os.readlink(paths[1]) == target
    assert (paths[1] / "data/small").read_bytes() == b"small\n"


def test_programs_that_walk_a_mount_see_all_of_it(base: Remountable, current_user: Account) -> None:
    top = base.path / "survives"
    before = md5_of_files(current_user, top)

    with current_user.spawn("find", top, "-type", "f", "-exec", "md5sum", "{}", ";") as walk:
        for _ in range(3):
            kill_daemon(base)
        said, wrong = walk.communicate(timeout=LATE_S)

    assert (walk.returncode, wrong) == (0, b"")
    lines = (line.split(b"  ", 1) for line in said.splitlines())
    found = {os.path.relpath(os.fsdecode(path), top): md5.decode() for md5, path in lines}
    assert found == before


def test_a_directory_to_work_in_stays(mount: Remountable, current_user: Account) -> None:
    script = 'cd "$1"; echo; read line; cat ../small; ls | wc -l'
    command = ("sh", "-euc", script, "sh", mount.path / "data/many")
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [str(word) for word in command], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        kill_daemon(mount)
        said, wrong = shell.communicate("go\n", LATE_S)

    assert (said.split(), wrong) == (["small", str(MANY)], "")


def test_the_log_says_what_happened(mount: Remountable) -> None:
    kill_daemon(mount)

    assert "the daemon is gone; another one is started" in log_of(mount)
