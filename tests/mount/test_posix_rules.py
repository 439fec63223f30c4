"""Rules of POSIX for times, names and descriptors, in a staged dataset."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["tests.support.mount_fixtures"]

NUMBERS = itertools.count()
_CLOCK_OF_FILES = 5  # CLOCK_REALTIME_COARSE, by which Linux dates files
PAST_NS = 1_000_000_000_000_000_000


@pytest.fixture(scope="module")
def dataset(base: Path) -> Path:
    directory = base / "posix-rules"
    directory.mkdir()
    return directory


@pytest.fixture
def place(dataset: Path) -> Path:
    """A directory with a file, a directory and a full directory, all last changed long ago."""
    path = dataset / f"place-{next(NUMBERS)}"
    (path / "full").mkdir(parents=True)
    (path / "dir").mkdir()
    for name in ("file", "other", "full/file"):
        (path / name).write_bytes(b"0123456789")
    for each in (path / "file", path / "other", path / "dir", path / "full", path):
        os.utime(each, ns=(PAST_NS, PAST_NS))
    return path


def _write(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"x", 3)
    os.close(fd)


def _touch(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))


# What is done, whose data and whose status change by it, and whose do not.
CHANGES: dict[str, tuple[Callable[[Path], object], set[str], set[str]]] = {
    "create": (lambda p: _touch(p / "new"), {"."}, set()),
    "open": (lambda p: _touch(p / "file"), set(), set()),
    "mkdir": (lambda p: os.mkdir(p / "new"), {"."}, set()),
    "unlink": (lambda p: os.unlink(p / "other"), {"."}, set()),
    "rmdir": (lambda p: os.rmdir(p / "dir"), {"."}, set()),
    "link": (lambda p: os.link(p / "file", p / "new"), {"."}, {"file"}),
    "link elsewhere": (lambda p: os.link(p / "file", p / "dir/new"), {"dir"}, {"file"}),
    "rename": (lambda p: os.rename(p / "other", p / "new"), {"."}, set()),
    "rename over": (lambda p: os.rename(p / "other", p / "file"), {"."}, set()),
    "rename elsewhere": (lambda p: os.rename(p / "other", p / "dir/new"), {".", "dir"}, set()),
    "write": (lambda p: _write(p / "file"), {"file"}, set()),
    "truncate": (lambda p: os.truncate(p / "file", 3), {"file"}, set()),
    "truncate longer": (lambda p: os.truncate(p / "file", 30), {"file"}, set()),
    "O_TRUNC": (lambda p: (p / "file").open("wb").close(), {"file"}, set()),
    "chmod": (lambda p: os.chmod(p / "file", 0o600), set(), {"file"}),
    "chmod of a directory": (lambda p: os.chmod(p / "dir", 0o700), set(), {"dir"}),
    "read": (lambda p: (p / "file").read_bytes(), set(), set()),
    "list": (os.listdir, set(), set()),
}
NAMES = (".", "file", "dir", "full")


@pytest.mark.parametrize("change", CHANGES)
def test_change_is_seen_in_the_times_of_what_is_changed_and_of_nothing_else(
    place: Path, change: str
) -> None:
    act, data, status = CHANGES[change]
    before = _times_when_the_clock_has_moved(place)

    act(place)

    after = {name: os.stat(place / name) for name in NAMES if (place / name).exists()}
    assert {n for n in after if after[n].st_mtime_ns != PAST_NS} == data
    changed = {n for n in after if after[n].st_ctime_ns > before[n].st_ctime_ns}
    assert changed >= data | status
    assert changed <= data | status | ({"file"} if change == "rename over" else set())


def _times_when_the_clock_has_moved(place: Path) -> dict[str, os.stat_result]:
    """Return the attributes of all, when the next change will be later than the last one."""
    before = {name: os.stat(place / name) for name in NAMES}
    latest_ns = max(each.st_ctime_ns for each in before.values())
    while time.clock_gettime_ns(_CLOCK_OF_FILES) <= latest_ns:
        pass
    return before


# What is refused, with which error.
REFUSALS: dict[str, tuple[Callable[[Path], object], int]] = {
    "rename into itself": (lambda p: os.rename(p / "dir", p / "dir/new"), errno.EINVAL),
    "rename a dot": (lambda p: os.rename(f"{p}/dir/.", p / "new"), errno.EBUSY),
    "rename two dots": (lambda p: os.rename(f"{p}/dir/..", p / "new"), errno.EBUSY),
    "rename file over directory": (lambda p: os.rename(p / "file", p / "dir"), errno.EISDIR),
    "rename directory over file": (lambda p: os.rename(p / "dir", p / "file"), errno.ENOTDIR),
    "rename over full": (lambda p: os.rename(p / "dir", p / "full"), errno.ENOTEMPTY),
    "rmdir of a dot": (lambda p: os.rmdir(f"{p}/dir/."), errno.EINVAL),
    "rmdir of two dots": (lambda p: os.rmdir(f"{p}/dir/.."), errno.ENOTEMPTY),
    "rmdir of full": (lambda p: os.rmdir(p / "full"), errno.ENOTEMPTY),
    "rmdir of a file": (lambda p: os.rmdir(p / "file"), errno.ENOTDIR),
    "unlink a directory": (lambda p: os.unlink(p / "dir"), errno.EISDIR),
    "link a directory": (lambda p: os.link(p / "dir", p / "new"), errno.EPERM),
    "link over": (lambda p: os.link(p / "file", p / "other"), errno.EEXIST),
    "mkdir over": (lambda p: os.mkdir(p / "file"), errno.EEXIST),
    "create over": (
        lambda p: os.open(p / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        errno.EEXIST,
    ),
    "write a directory": (lambda p: os.open(p / "dir", os.O_WRONLY), errno.EISDIR),
    "O_DIRECTORY of a file": (lambda p: os.open(p / "file", os.O_DIRECTORY), errno.ENOTDIR),
    "below a file": (lambda p: os.stat(p / "file/x"), errno.ENOTDIR),
    "truncate below nothing": (lambda p: os.truncate(p / "file", -1), errno.EINVAL),
    "truncate a directory": (lambda p: os.truncate(p / "dir", 0), errno.EISDIR),
    "name of 256 bytes": (lambda p: _touch(p / ("x" * 256)), errno.ENAMETOOLONG),
    "directory of 256 bytes": (lambda p: os.mkdir(p / ("x" * 256)), errno.ENAMETOOLONG),
    "path of 5000 bytes": (lambda p: os.stat(p / ("x/" * 2500)), errno.ENAMETOOLONG),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_posix_refuses_is_refused_with_its_error_and_changes_nothing(
    place: Path, refusal: str
) -> None:
    act, number = REFUSALS[refusal]

    with pytest.raises(OSError, match=rf"^\[Errno {number}\]"):
        act(place)

    assert sorted(os.listdir(place)) == ["dir", "file", "full", "other"]
    times = {name: os.stat(place / name).st_mtime_ns for name in NAMES}
    assert times == dict.fromkeys(NAMES, PAST_NS)


def test_name_of_255_bytes_is_made_renamed_and_deleted(place: Path) -> None:
    longest = place / ("é" * 127 + "x")

    _touch(longest)
    os.rename(longest, place / ("y" * 255))
    os.unlink(place / ("y" * 255))

    assert "y" * 255 not in os.listdir(place)


def test_deleted_file_that_is_open_has_no_link_left_and_goes_on(place: Path) -> None:
    fd = os.open(place / "file", os.O_RDWR)
    try:
        os.link(place / "file", place / "second")
        os.unlink(place / "file")
        assert os.fstat(fd).st_nlink == 1
        os.rename(place / "other", place / "second")
        assert os.fstat(fd).st_nlink == 0
        os.pwrite(fd, b"still", 20)
        assert os.pread(fd, 100, 0) == b"0123456789".ljust(20, b"\0") + b"still"
    finally:
        os.close(fd)


def test_times_are_set_left_out_or_taken_from_the_clock(place: Path) -> None:
    path = place / "file"
    os.utime(path, ns=(PAST_NS + 1, PAST_NS + 999_999_999))

    set_to = os.stat(path)
    os.utime(path)

    assert (set_to.st_atime_ns, set_to.st_mtime_ns) == (PAST_NS + 1, PAST_NS + 999_999_999)
    assert os.stat(path).st_mtime_ns > PAST_NS + 10**9
