"""Each limit of names from both sides: staged, frozen, in a fresh mount, by dtool, and back."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.base import limits
from dserverfs.base.errors import UsageError
from dserverfs.base.limits import relpath_can_be_stored, relpath_is_usable
from dserverfs.base.model import identifier_of
from dserverfs.cli import mounted as mounts
from dserverfs.mount import control
from tests.support.accounts import Account
from tests.support.dtool_commands import dtool_of
from tests.support.dtool_datasets import make_dataset
from tests.support.mounts import mounted
from tests.support.patience import LATE_S
from tests.support.servers import ServerHandle

# What a locale such as de_DE.ISO-8859-1 does to Python, without such a locale.
OTHER_ENCODING = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LONGEST = "/".join(["x" * 255] * 5 + ["y" * (limits.MAX_STORED_RELPATH_BYTES - 5 * 256)])
DEEPEST = "d/" * (limits.MAX_RELPATH_COMPONENTS - 1) + "deepest"
EDGES = [
    "a" * 255,
    "ä" * 127,
    LONGEST,
    DEEPEST,
    ".refused-x",
    f".refused-{identifier_of('../up')}",
    "line\nbreak",
    "\x1b]0;title\x07",
    "right\u202eleft",
    "\u2028",
    "-rf",
    "100%25 #?&",
    "back\\slash",
    "...",
]


def random_names(count: int) -> list[str]:
    """Return names of the letters that names go wrong with, the same in every run."""
    chance = random.Random(11)
    letters = "ab.~ \\\"'%#?&;$*\n\t\x7f\x80é名\u200b\u202e\U0001f600"
    names = {"".join(chance.choices(letters, k=chance.randrange(1, 60))) for _ in range(count)}
    return sorted(name for name in names if relpath_is_usable(name))


RELPATHS = [*EDGES, *(f"random/{name}" for name in random_names(60))]
# What the kernel does not refuse already: longer components never come to us.
OUTSIDE = [LONGEST + "y", "d/" * limits.MAX_RELPATH_COMPONENTS + "deeper"]


def found_in(data: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(below, name), data)
        for below, _, names in os.walk(data)
        for name in names
    }


def write(root: Path, relpath: str) -> None:
    """Write a file below `root`, one directory at a time: the path may be too long for one call."""
    before = os.open(root, os.O_RDONLY)
    try:
        *directories, name = relpath.split("/")
        for directory in directories:
            try:
                os.mkdir(directory, dir_fd=before)
            except FileExistsError:
                pass
            below = os.open(directory, os.O_RDONLY, dir_fd=before)
            os.close(before)
            before = below
        file = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=before)
        os.write(file, relpath.encode())
        os.close(file)
    finally:
        os.close(before)


@pytest.fixture(scope="module")
def mount(fuse: None, server: ServerHandle, token: str, current_user: Account) -> Iterator[Path]:
    with mounted(current_user, server.base_uri, token, "--freeze-delay", "manual") as path:
        yield path


@pytest.fixture(scope="module")
def uri(mount: Path, current_user: Account) -> str:
    """A dataset with every name within the limits, frozen in the mount."""
    directory = mount / "names"
    directory.mkdir()
    for relpath in OUTSIDE:
        with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
            write(directory, relpath)
    for name in ("a" * 256, "ä" * 128):
        with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
            (directory / name).touch()
    for relpath in RELPATHS:
        write(directory, relpath)
    frozen = current_user.dserverfs("freeze", directory)
    assert frozen.returncode == 0, frozen.stderr
    return frozen.stdout.splitlines()[0]


def test_names_within_the_limits_are_shown_by_a_fresh_mount(
    uri: str, server: ServerHandle, token: str, current_user: Account
) -> None:
    with mounted(current_user, server.base_uri, token) as fresh:
        data = fresh / "names/data"
        assert found_in(data) == set(RELPATHS)
        for relpath in RELPATHS:
            assert (data / relpath).read_bytes() == relpath.encode()


def test_names_within_the_limits_go_through_dtool_and_back(
    uri: str, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    dtool = dtool_of(tmp_path, token)
    destination = tmp_path / "out"
    destination.mkdir()

    dtool.output("cp", "-q", uri, destination)

    assert found_in(destination / "names/data") == set(RELPATHS)
    assert "\x1b" not in dtool.output("verify", uri)


def test_names_are_utf_8_whatever_the_locale_says(
    fuse: None, server: ServerHandle, token: str, current_user: Account
) -> None:
    """Also where another mount, with another locale, goes on with what is staged."""
    names = {"\u00fc", "\U0001f600", "plain"}
    with mounted(current_user, server.base_uri, token, "--freeze-delay", "manual") as path:
        (path / "locale").mkdir()
        write(path / "locale", "\u00fc")
    options = ("--freeze-delay", "manual")
    with mounted(current_user, server.base_uri, token, *options, env=OTHER_ENCODING) as path:
        directory = path / "locale"
        for name in names:
            write(directory, name)
        words = ("freeze", directory, "-m", "\u00fc")
        frozen = current_user.dserverfs(*words, env=OTHER_ENCODING)
        assert frozen.returncode == 0, frozen.stderr
        assert found_in(directory / "data") == names
        assert "\u00fc" in (directory / "README.yml").read_text("utf-8")
        verified = current_user.dserverfs("verify", directory, env=OTHER_ENCODING)
        assert verified.stdout == f"{len(names)} items, 11 B: as the manifest says\n"


def test_program_that_reads_other_names_makes_no_dataset(
    uri: str, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    dtool = dtool_of(tmp_path, token)
    program = Path(sys.executable).with_name("dtool")
    begun = dtool.output("create", "-q", "begun", server.base_uri).strip()

    for words in (("create", "other-names", server.base_uri), ("freeze", begun)):
        refused = subprocess.run(
            [program, *words],
            env={**dtool.environment, **OTHER_ENCODING},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LATE_S,
        )
        assert refused.returncode != 0
        assert "PYTHONUTF8=1" in refused.stderr.splitlines()[-1]

    assert "other-names" not in dtool.output("ls", server.base_uri)


def test_broker_refuses_a_path_beyond_the_limits(
    server: ServerHandle, token: str, tmp_path: Path
) -> None:
    dtool = dtool_of(tmp_path, token)
    too_deep = "d/" * limits.MAX_RELPATH_COMPONENTS + "x"
    assert not relpath_can_be_stored(too_deep)
    local = make_dataset(tmp_path, "too-deep", {too_deep: b"x"})

    said = dtool.refusal("cp", "-q", local, server.base_uri)

    assert "longer than" in said or "cannot be" in said


@pytest.mark.parametrize(
    "request_",
    [
        {"command": "nonsense"},
        {"command": "status", "inode": "x"},
        {"command": "status", "inode": 10**30},
        {"command": "status", "inode": (1 << 63) - 1},
        {"command": "freeze", "inode": [1], "layout": "other"},
        {"command": "items", "inodes": 5},
        {"command": "drain", "timeout_s": {}},
        {"command": ["status"]},
    ],
)
def test_request_that_is_none_is_refused_in_one_line(
    mount: Path, request_: dict[str, object]
) -> None:
    address = mounts.find(mount).address

    # Its log has no traceback either, as the end of the mount looks for.
    with pytest.raises(UsageError, match=r"^(?!a fault of dserverfs)"):
        list(control.ask(address, request_))
