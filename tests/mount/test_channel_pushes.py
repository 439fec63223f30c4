"""Small items that a channel pushes into the page cache: the same bytes in every way of reading."""

from __future__ import annotations

import errno
import io
import mmap
import os
import random
import re
import sqlite3
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dserverfs.reading.small_items import SMALL_BYTES
from tests.support.accounts import Account
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mount_daemons import wait_for
from tests.support.mounts import mounted, publish
from tests.support.server_store import StoredItems
from tests.support.servers import ServerHandle

SIZES = [
    *(1, 0, 17, 4095, 4096, 4097, 8192, 9000, 300, 1000, 1, 20_000, 4096),
    *(SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1),
]
MANY = 400
ITEMS = {
    **{f"many/{n:04}": content_of(f"{n}", SIZES[n % len(SIZES)]) for n in range(MANY)},
    **{f"deep/{n % 3}/{n:02}": content_of(f"deep {n}", 3000 + n) for n in range(60)},
    **{f"same/{n}": content_of("same", 5000) for n in range(30)},
}
SMALL = sum(0 < len(content) < SMALL_BYTES for content in ITEMS.values())
Mount = Callable[..., AbstractContextManager[Path]]


@pytest.fixture(scope="module")
def uri(server: ServerHandle, token: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("pushes")
    local = make_dataset(directory, "small-ones", ITEMS)
    return publish(server.base_uri, token, directory / "cache", local)[0]


@pytest.fixture
def mount(fuse: None, current_user: Account, token: str, uri: str, tmp_path: Path) -> Mount:
    """Mounts the dataset, with a channel and a cache of the test."""
    options = ("--cache-dir", str(tmp_path / "own"), "--channel", "on")
    return lambda *more, of=uri: mounted(current_user, of, token, *options, *more)


@pytest.fixture
def warm(mount: Mount) -> Mount:
    """The same; everything is in its cache, and nothing in the kernel's."""
    with mount("--channel", "off") as path:
        assert archived(path) == ITEMS
    return mount


def archived(path: Path) -> dict[str, bytes]:
    """Return what tar has of each item."""
    done = subprocess.run(
        ["tar", "--create", "--directory", path / "data", "."], capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        found = {
            each.name.removeprefix("./"): archive.extractfile(each)
            for each in archive
            if each.isfile()
        }
        return {name: file.read() for name, file in found.items() if file is not None}


def copied(target: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(target)): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
    }


def by_cp(path: Path, target: Path) -> dict[str, bytes]:
    subprocess.run(["cp", "-r", path / "data", target], check=True)
    return copied(target)


def by_rsync(path: Path, target: Path) -> dict[str, bytes]:
    subprocess.run(["rsync", "-r", f"{path}/data/", target], check=True)
    return copied(target)


def by_tar(path: Path, target: Path) -> dict[str, bytes]:
    return archived(path)


def mapped(path: Path, target: Path) -> dict[str, bytes]:
    found = {}
    for name in ITEMS:
        with (path / "data" / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            found[name] = b""
            if size:
                with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as memory:
                    found[name] = memory[:]
                    # What is behind the end of the last page's content is zeros.
    return found


def backwards(path: Path, target: Path) -> dict[str, bytes]:
    return {name: (path / "data" / name).read_bytes() for name in reversed(ITEMS)}


def at_random(path: Path, target: Path) -> dict[str, bytes]:
    names = [*ITEMS]
    random.Random(5).shuffle(names)
    return {name: (path / "data" / name).read_bytes() for name in names}


def in_pieces(path: Path, target: Path) -> dict[str, bytes]:
    """With several files open at a time, some twice."""
    found: dict[str, bytes] = {}
    names = [*ITEMS]
    for at in range(0, len(names), 7):
        some = [*names[at : at + 7], names[at]]
        fds = [os.open(path / "data" / name, os.O_RDONLY) for name in some]
        for name, fd in zip(some, fds, strict=True):
            size = os.fstat(fd).st_size
            pieces = {start: os.pread(fd, 3000, start) for start in range(0, size, 3000)[::-1]}
            found[name] = b"".join(pieces[start] for start in sorted(pieces))
        for fd in fds:
            os.close(fd)
    return found


def pushed(mount: Path) -> int:
    match = re.search(r"pushed_items_total (\d+)", (mount / ".dserverfs/stats").read_text())
    assert match is not None
    return int(match[1])


def read_in_order(mount: Path, contents: Mapping[str, bytes]) -> None:
    """Read items one after the other, which the channel is ahead of, but for some of the first."""
    first = 0
    for name, content in contents.items():
        assert (mount / "data" / name).read_bytes() == content
        first += not pushed(mount)  # a question to the daemon, which has the same to do
    assert 2 <= first < len(contents) / 2


def reads(mount: Path) -> int:
    """Return how many READs of items there were."""
    text = (mount / ".dserverfs/stats").read_text()
    return sum(int(number) for number in re.findall(r"item_reads_total\{.*\} (\d+)", text))


@pytest.mark.parametrize(
    ("way", "at_least"),
    [
        (by_tar, SMALL // 2),
        (by_cp, SMALL // 2),
        (by_rsync, SMALL // 2),
        (mapped, SMALL // 4),
        (backwards, SMALL // 2),
        (at_random, 0),
        (in_pieces, SMALL // 4),
    ],
)
def test_all_bytes_are_right_and_most_small_items_are_pushed(
    warm: Mount, tmp_path: Path, way: Callable[[Path, Path], dict[str, bytes]], at_least: int
) -> None:
    with warm() as path:
        os.listdir(path / "data/many")

        assert way(path, tmp_path / "copy") == ITEMS

        assert pushed(path) >= at_least


def test_the_end_of_the_last_page_has_zeros(warm: Mount) -> None:
    with warm() as path:
        assert archived(path) == ITEMS
        for name, content in ITEMS.items():
            behind = -len(content) % mmap.PAGESIZE
            if 0 < len(content) < SMALL_BYTES and behind:
                with (path / "data" / name).open("rb") as file:
                    whole = len(content) + behind
                    memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                    with memory:
                        assert memory[:] == content
                    assert os.pread(file.fileno(), whole, 0) == content
                    assert os.fstat(file.fileno()).st_size == len(content)


def test_what_the_kernel_has_is_not_pushed_again(warm: Mount) -> None:
    with warm() as path:
        archived(path)
        archived(path)  # what came too late is not asked for again
        before, had = reads(path), pushed(path)

        for _ in range(3):
            assert archived(path) == ITEMS

        # But for what the kernel had no memory for.
        assert reads(path) - before < SMALL // 20
        assert pushed(path) - had < SMALL // 20


def test_pushing_stops_when_the_order_is_left(warm: Mount) -> None:
    names = sorted(name for name in ITEMS if name.startswith("many/"))
    with warm() as path:
        os.listdir(path / "data/many")
        for name in names[:40]:
            assert (path / "data" / name).read_bytes() == ITEMS[name]
        wait_for(lambda: pushed(path) > 0, "that something is pushed")
        before = pushed(path)
        rest = names[100::9]
        random.Random(2).shuffle(rest)
        for name in rest:
            assert (path / "data" / name).read_bytes() == ITEMS[name]

        assert pushed(path) <= before + len(rest) // 2


def test_item_that_is_wrong_in_the_store_is_an_error_and_its_neighbours_are_right(
    mount: Mount, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    items = {f"{n:03}": content_of(f"wrong {n}", 3000) for n in range(120)}
    local = make_dataset(tmp_path, "one-is-wrong", items)
    (uri,) = publish(server.base_uri, token, tmp_path / "publishing", local)
    stored = StoredItems.of(server, uri)
    stored.put("060", items["061"])
    with mount(of=uri) as path:
        for _ in range(2):
            for name, content in items.items():
                if name == "060":
                    with pytest.raises(OSError, match=os.strerror(5)):
                        (path / "data" / name).read_bytes()
                else:
                    assert (path / "data" / name).read_bytes() == content
    with mount(of=uri) as path:  # all but one from the cache
        os.listdir(path / "data")
        read_in_order(path, {name: items[name] for name in items if name != "060"})


def test_pushed_pages_of_an_item_that_turns_out_wrong_are_dropped(
    mount: Mount, current_user: Account, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    """The daemon has not opened it: the channel alone has."""
    items = {f"{n:03}": content_of(f"later wrong {n}", 3 * mmap.PAGESIZE) for n in range(120)}
    local = make_dataset(tmp_path, "later-wrong", items)
    (uri,) = publish(server.base_uri, token, tmp_path / "publishing", local)
    with mount(of=uri) as path:
        assert [*map(path.joinpath("data").joinpath, items)]
        for name, content in items.items():
            assert (path / "data" / name).read_bytes() == content
    with mount(of=uri) as path:
        os.listdir(path / "data")
        read_in_order(path, items)
        cleared = current_user.dserverfs(
            "cache", "clear", "--cache-dir", tmp_path / "own", env={"DSERVER_TOKEN": token}
        )
        assert cleared.returncode == 0, cleared.stderr
        stored = StoredItems.of(server, uri)
        found = 0
        for name in [*items][60:90]:
            stored.put(name, items["000"])
            with (path / "data" / name).open("rb", buffering=0) as file:
                assert file.read() == items[name]
                with (path / name).open("rb", buffering=0) as other:  # the same by another path
                    if not is_an_error(other):
                        continue  # the daemon has it in memory
                wait_for(lambda: is_an_error(file), "that the kernel has no page of it")
                found += 1
        assert found


def is_an_error(file: io.FileIO) -> bool:
    try:
        os.pread(file.fileno(), 10, 0)
    except OSError as error:
        return error.errno == errno.EIO
    return False


def test_damaged_blocks_of_the_cache_are_never_pushed(warm: Mount, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "own/blocks/cache.db") as database:
        chance = random.Random(11)
        rows = database.execute("SELECT rowid, value FROM Cache WHERE value IS NOT NULL").fetchall()
        for row, value in rows[::3]:
            damaged = bytearray(value)
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
            database.execute("UPDATE Cache SET value = ? WHERE rowid = ?", (bytes(damaged), row))
        for (row, _), (_, other) in zip(rows[1::3], rows[4::3], strict=False):
            database.execute("UPDATE Cache SET value = ? WHERE rowid = ?", (other, row))
    database.close()

    with warm() as path:
        assert archived(path) == ITEMS
        assert archived(path) == ITEMS


def test_trace_has_what_was_pushed_before_and_nothing_is_pushed_meanwhile(
    warm: Mount, current_user: Account, tmp_path: Path
) -> None:
    trace = tmp_path / "pushes.trace"
    with warm() as path:
        archived(path)
        before = pushed(path)

        done = current_user.dserverfs(
            "trace", "-o", trace, "--", "tar", "-cf", tmp_path / "tar", "-C", path, "data"
        )

        assert done.returncode == 0, done.stderr
        assert pushed(path) == before
        text = trace.read_text()
        for name, content in ITEMS.items():
            if content:
                assert f'"ranges": [[0, {len(content)}]]' in line_of(text, name)


def line_of(trace: str, relpath: str) -> str:
    (line,) = [line for line in trace.splitlines() if f'"{relpath}"' in line]
    return line


def test_cleared_cache_and_what_is_read_then(
    warm: Mount, current_user: Account, tmp_path: Path
) -> None:
    with warm() as path:
        assert archived(path) == ITEMS
        done = current_user.dserverfs("cache", "clear", "--cache-dir", tmp_path / "own")
        assert done.returncode == 0, done.stderr
        assert archived(path) == ITEMS


def test_with_verify_off_nothing_that_was_not_compared_is_pushed(
    mount: Mount, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    items = {f"{n:03}": content_of(f"not compared {n}", 3000) for n in range(120)}
    local = make_dataset(tmp_path, "not-compared", items)
    (uri,) = publish(server.base_uri, token, tmp_path / "publishing", local)
    stored = StoredItems.of(server, uri)
    for name in items:
        stored.put(name, items["000"])
    for _ in range(2):  # from the store, then from the cache
        with mount("--verify", "off", of=uri) as path:
            os.listdir(path / "data")
            for name in items:
                assert (path / "data" / name).read_bytes() == items["000"]
            assert pushed(path) <= 1
