"""What a channel answers about names of frozen datasets: the same as a mount without one."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.base.model import identifier_of
from dserverfs.mount.channel.rows import ROWS
from tests.support.accounts import Account
from tests.support.hostile_datasets import entry, register
from tests.support.mount_daemons import wait_for
from tests.support.mounts import mounted
from tests.support.servers import ServerHandle, upload

MANY = 2 * ROWS + 300
RELPATHS = [
    *(f"many/{number:05}-{'n' * (number % 200)}" for number in range(MANY)),
    *(f"deep/{number % 7}/{number}/file" for number in range(30)),
    "ünïcode/☃",
    "long/" + "x" * 255,
    "one",
]
REFUSED = ["../out", "a//b", "/absolute"]
OPTIONS = ("-o", "umask=027", "--freeze-delay", "manual")


@pytest.fixture(scope="module")
def uri(server: ServerHandle) -> str:
    items = {
        identifier_of(relpath): entry(
            relpath, size_in_bytes=number**3, utc_timestamp=(number - 50) * 1e5 + 0.25
        )
        for number, relpath in enumerate([*RELPATHS, *REFUSED])
    }
    return register(server, "told-to-channels", items)


@pytest.fixture(scope="module")
def mounts(fuse: None, current_user: Account, token: str, uri: str) -> Iterator[tuple[Path, Path]]:
    """The dataset with a channel, and without."""
    with (
        mounted(current_user, uri, token, "--channel", "on", *OPTIONS) as on,
        mounted(current_user, uri, token, "--channel", "off", *OPTIONS) as off,
    ):
        yield on, off


def answered(mount: Path) -> int:
    """Return how many requests about names and the like the channel has answered."""
    text = (mount / ".dserverfs/stats").read_text()
    match = re.search(r"channel_answers_total (\d+)", text)
    assert match is not None
    return int(match[1])


def shown(path: str) -> tuple[object, ...]:
    """Return what stat shows; the times to the nanosecond."""
    status = os.stat(path)
    times = (status.st_mtime_ns, status.st_atime_ns, status.st_ctime_ns)
    return (*status[:2], *status[3:7], status.st_blocks, status.st_blksize, *times)


def tree(top: Path) -> dict[str, object]:
    """Return all that is below a directory: of each the order of its names, and what stat shows."""
    found: dict[str, object] = {}
    for directory, _, _ in os.walk(top):
        below = os.path.relpath(directory, top)
        entries = [(each.name, each.is_dir(), each.inode()) for each in os.scandir(directory)]
        found[below] = entries
        for name, *_ in entries:
            found[f"{below}/{name}"] = shown(f"{directory}/{name}")
        found[f"{below}/"] = shown(directory)  # listing it changed what the kernel knows of it
    return found


def test_all_is_shown_as_without_a_channel(mounts: tuple[Path, Path]) -> None:
    on, off = mounts
    before = answered(on)

    first, again = tree(on / "data"), tree(on / "data")

    assert first == again == tree(off / "data")
    assert answered(on) >= before + len(RELPATHS) // 200
    assert len(first) > len(RELPATHS)


def test_names_are_found_and_not_found_as_without_a_channel(mounts: tuple[Path, Path]) -> None:
    names = [relpath.rpartition("/")[2] for relpath in RELPATHS[:MANY:7]]
    names += [f"{name}x" for name in names[:40]] + [
        "",
        ".",
        "..",
        "z" * 255,
        "z" * 256,
        "\udcff",
        "0",
    ]
    seen = []
    for mount in mounts:
        with os.scandir(mount / "data/many") as listing:
            next(listing)  # the kernel knows of those of one reply
            seen.append([found(mount / "data/many", name) for name in names])
    assert seen[0] == seen[1]


def found(directory: Path, name: str) -> object:
    try:
        return shown(f"{directory}/{name}")
    except OSError as error:
        return error.errno


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_APPEND, os.O_TRUNC])
def test_items_are_opened_and_refused_as_without_a_channel(
    mounts: tuple[Path, Path], flags: int
) -> None:
    seen = []
    for mount in mounts:
        os.listdir(mount / "data")
        names = ["one", *(each for each in os.listdir(mount / "data") if "refused" in each)]
        assert len(names) == 1 + len(REFUSED)
        seen.append([opened(mount / "data" / name, flags) for name in names])
    assert seen[0] == seen[1]


def opened(path: Path, flags: int) -> object:
    try:
        fd = os.open(path, flags)
    except OSError as error:
        return error.errno
    try:
        os.fsync(fd)
        return shown(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_listing_goes_on_wherever_a_program_left_it(mounts: tuple[Path, Path]) -> None:
    """Also behind what the channel was told of a piece at a time."""
    on, _ = mounts
    fd = os.open(on / "data/many", os.O_RDONLY)
    try:
        names = os.listdir(fd)
        for _ in range(3):
            os.lseek(fd, 0, os.SEEK_SET)
            assert os.listdir(fd) == names
    finally:
        os.close(fd)
    with os.scandir(on / "data/many") as one, os.scandir(on / "data/many") as other:
        pairs = list(itertools.zip_longest(one, other))
    assert [each.name for each, _ in pairs] == [each.name for _, each in pairs] == names
    assert len(names) == MANY


def test_nothing_is_answered_of_a_dataset_that_is_withdrawn_until_it_is_back(
    fuse: None, current_user: Account, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    name = f"withdrawn-{tmp_path.name}"
    uri = upload(server, {"a/b": b"b", "c": b"c"}, name=name)
    env = {"DSERVER_TOKEN": token}
    with mounted(current_user, server.base_uri, token, "--channel", "on") as mount:
        kept = os.open(mount / name / "data", os.O_RDONLY)
        try:
            names = os.listdir(mount / name / "data")
            assert times_answered(mount, kept, names) > 0

            withdrawn = f"{server.base_uri}/{uri.rpartition('/')[2]}"
            done = current_user.dserverfs("withdraw", "--yes", withdrawn, env=env)
            assert done.returncode == 0, done.stderr
            wait_for(lambda: not is_listed(mount, name), "that it is not listed")
            assert times_answered(mount, kept, names) == 0

            again = upload(server, {"a/b": b"b", "c": b"c"}, name=name, uuid=uri.rpartition("/")[2])
            assert again == uri
            wait_for(lambda: is_listed(mount, name), "that it is listed again")
            assert sorted(os.listdir(mount / name / "data")) == sorted(names)
            assert times_answered(mount, kept, names) > 0
        finally:
            os.close(kept)


def is_listed(mount: Path, name: str) -> bool:
    """Return whether a name is there; a name that is not has the listing renewed."""
    return not (mount / "missing").exists() and (mount / name).exists()


def times_answered(mount: Path, directory: int, names: list[str]) -> int:
    """Return how much the channel answers of a look at all that is in a directory."""
    before = answered(mount)
    for _ in range(3):
        opened = os.open(".", os.O_RDONLY, dir_fd=directory)
        try:
            assert sorted(os.listdir(opened)) == sorted(names)
        finally:
            os.close(opened)
    return answered(mount) - before


def test_no_listing_is_of_two_indexes(
    fuse: None, current_user: Account, token: str, uri: str, tmp_path: Path
) -> None:
    cache = current_user.home / f"cache-{tmp_path.name}"
    options = ("--channel", "on", "--cache-dir", str(cache))
    with mounted(current_user, uri, token, *options) as mount:
        with os.scandir(mount / "data/many") as listing:
            next(listing)  # the last piece of the rows is not told yet
        (index,) = cache.rglob("*.index")
        index.write_bytes(b"damaged")
        wait_for(lambda: has_new_index(mount, index), "a new index")

        assert len(os.listdir(mount / "data/many")) == MANY


def has_new_index(mount: Path, index: Path) -> bool:
    """Return whether the daemon has made an index anew; it looks when it is asked for the file."""
    with contextlib.suppress(OSError):  # this manifest has items that no file may have
        (mount / ".dtool/manifest.json").read_bytes()
    return index.read_bytes() != b"damaged"
