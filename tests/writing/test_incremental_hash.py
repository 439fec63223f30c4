"""MD5 while a file is written: right, used only while it must be, and given up in time."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from dserverfs.base.hashes import PIECE_BYTES
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.writing.staging.file_hashes import Hashes, Stamp
from dserverfs.writing.staging.incremental_hash import STEP_BYTES, HashAhead
from tests.support.accounts import Account
from tests.support.few_threads import no_more_threads
from tests.support.mounts import mounted
from tests.support.servers import ServerHandle
from tests.support.staged_datasets import freeze, status

MIB = 1024 * 1024
LARGE = random.Random(1).randbytes(2 * STEP_BYTES + MIB + 1)
TIMES = 10


class Writer:
    """One handle, that tells what it does as the staged tree does."""

    def __init__(self, ahead: HashAhead, path: Path) -> None:
        self.ahead = ahead
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.inode = os.fstat(self.fd).st_ino

    def write(self, data: bytes, offset: int) -> None:
        self.ahead.begins(self.inode, self.fd, offset)
        os.pwrite(self.fd, data, offset)
        self.ahead.ended(self.inode, self.fd, offset + len(data))

    def write_large(self) -> None:
        for offset in range(0, len(LARGE), MIB):
            self.write(LARGE[offset : offset + MIB], offset)

    def close(self) -> None:
        self.ahead.closed(self.inode, self.fd)
        os.close(self.fd)

    def stamp(self) -> Stamp:
        return Stamp.of(os.fstat(self.fd))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    writer = Writer(HashAhead(), path)
    writer.ahead.made(os.fstat(writer.fd))
    yield writer
    join()
    os.close(writer.fd)


def hashes_of_blocks(content: bytes) -> bytes:
    blocks = range(0, len(content), BLOCK_SIZE)
    return b"".join(blake3(content[start : start + BLOCK_SIZE]).digest() for start in blocks)


def join() -> None:
    """Return when everything that is due is hashed."""
    for thread in threading.enumerate():
        if thread.name == "hash-ahead":
            thread.join()


def let_the_clock_tick(path: Path) -> None:
    while not Stamp.of(path.stat()).is_settled():
        time.sleep(0.001)


def test_what_was_written_is_hashed_when_it_is_closed(writer: Writer, path: Path) -> None:
    writer.write_large()
    second = Writer(writer.ahead, path)

    second.close()
    join()

    begun = writer.ahead.take(writer.stamp())
    assert begun is not None
    assert begun.length == len(LARGE)
    assert begun.md5.hexdigest() == hashlib.md5(LARGE).hexdigest()
    assert begun.blocks.hashes() == hashes_of_blocks(LARGE)


def test_what_no_thread_could_hash_is_hashed_when_there_is_one(writer: Writer, path: Path) -> None:
    with no_more_threads():
        writer.write_large()
        entries = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        assert [os.readlink(entry) for entry in entries].count(str(path)) == 1

    Writer(writer.ahead, path).close()
    join()

    begun = writer.ahead.take(writer.stamp())
    assert begun is not None
    assert begun.md5.hexdigest() == hashlib.md5(LARGE).hexdigest()


def test_only_what_is_left_is_read_at_the_freeze(writer: Writer, path: Path) -> None:
    writer.write(LARGE[:STEP_BYTES], 0)
    join()
    writer.write(LARGE[STEP_BYTES : STEP_BYTES + PIECE_BYTES], STEP_BYTES)
    written = LARGE[: STEP_BYTES + PIECE_BYTES]

    with Hashes(path.with_name("db"), path.parent, begun=writer.ahead.take) as hashes:
        digest = hashes.of(path)
        blocks = hashes.known_blocks(path, digest)

    assert digest == hashlib.md5(written).hexdigest()
    assert blocks == hashes_of_blocks(written)
    assert hashes.bytes_read == PIECE_BYTES


def test_file_is_hashed_right_while_the_thread_is_at_work_on_it(path: Path) -> None:
    for number in range(20):
        file = path.with_name(f"file-{number}")
        writer = Writer(HashAhead(), file)
        writer.ahead.made(os.fstat(writer.fd))
        writer.write_large()
        writer.close()

        with Hashes(path.with_name("db"), path.parent, begun=writer.ahead.take) as hashes:
            assert hashes.of(file) == hashlib.md5(LARGE).hexdigest()


def test_small_file_is_not_followed_once_it_is_closed(writer: Writer, path: Path) -> None:
    writer.write(b"small", 0)

    Writer(writer.ahead, path).close()

    assert not writer.ahead.follows(writer.inode)


def test_file_is_followed_through_a_rename_and_other_times(writer: Writer, path: Path) -> None:
    writer.write_large()
    join()
    before = path.stat()
    os.utime(path, (1, 1))
    path.rename(path.with_name("other"))

    writer.ahead.touched(before, os.fstat(writer.fd))

    assert writer.ahead.take(writer.stamp()) is not None


def overwrites(writer: Writer, path: Path) -> None:
    writer.write(b"other", 3)


def leaves_a_hole(writer: Writer, path: Path) -> None:
    writer.write(b"other", len(LARGE) + 1)


def is_half_way_in_a_write(writer: Writer, path: Path) -> None:
    writer.ahead.begins(writer.inode, writer.fd, len(LARGE))


def writes_on_after_a_write_that_failed(writer: Writer, path: Path) -> None:
    writer.ahead.begins(writer.inode, writer.fd, len(LARGE))
    writer.write(b"more", len(LARGE))


def is_forgotten(writer: Writer, path: Path) -> None:
    writer.ahead.forget(writer.inode)


def is_changed_by_another(writer: Writer, path: Path) -> None:
    let_the_clock_tick(path)
    with path.open("r+b") as file:
        file.write(b"other")


def is_changed_by_another_between_two_writes(writer: Writer, path: Path) -> None:
    is_changed_by_another(writer, path)
    writer.write(b"more", len(LARGE))


def is_changed_by_another_and_renamed(writer: Writer, path: Path) -> None:
    is_changed_by_another(writer, path)
    before = path.stat()
    path.rename(path.with_name("other"))
    writer.ahead.touched(before, os.fstat(writer.fd))


def is_cut_by_another(writer: Writer, path: Path) -> None:
    os.truncate(path, 5)


@pytest.mark.parametrize(
    "happens",
    [
        overwrites,
        leaves_a_hole,
        is_half_way_in_a_write,
        writes_on_after_a_write_that_failed,
        is_forgotten,
        is_changed_by_another,
        is_changed_by_another_between_two_writes,
        is_changed_by_another_and_renamed,
        is_cut_by_another,
    ],
)
def test_nothing_is_known_of_a_file_that(
    writer: Writer, path: Path, happens: Callable[[Writer, Path], None]
) -> None:
    writer.write_large()
    happens(writer, path)
    join()

    assert writer.ahead.take(writer.stamp()) is None


def test_thread_and_descriptors_go_when_there_is_nothing_to_hash(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    writer = Writer(HashAhead(), path)
    writer.ahead.made(os.fstat(writer.fd))

    writer.write_large()
    writer.close()
    join()

    assert len(os.listdir("/proc/self/fd")) == before


# In a mount


@pytest.fixture(scope="module")
def base(fuse: None, current_user: Account, server: ServerHandle, token: str) -> Iterator[Path]:
    """The base URI, in which datasets are frozen by command only."""
    options = ("--freeze-delay", "manual")
    with mounted(current_user, server.base_uri, token, *options) as path:
        yield path


def in_order(file: Path) -> None:
    file.write_bytes(LARGE)


def the_second_half_first(file: Path) -> None:
    half = len(LARGE) // 2
    with file.open("wb", buffering=0) as out:
        os.pwrite(out.fileno(), LARGE[half:], half)
        os.pwrite(out.fileno(), LARGE[:half], 0)


def changed_by_the_same_handle(file: Path) -> None:
    with file.open("wb", buffering=0) as out:
        out.write(LARGE)
        os.pwrite(out.fileno(), b"other", MIB)


def changed_after_it_was_closed(file: Path) -> None:
    file.write_bytes(LARGE)
    with file.open("r+b") as out:
        out.write(b"other")


def changed_by_its_other_name(file: Path) -> None:
    file.write_bytes(LARGE)
    other = file.with_name("linked")
    os.link(file, other)
    with other.open("r+b") as out:
        out.write(b"other")


def cut_and_filled_up_again(file: Path) -> None:
    with file.open("wb", buffering=0) as out:
        out.write(LARGE)
        out.truncate(MIB)
        out.seek(MIB)
        out.write(LARGE[::-1][MIB:])


def cut_by_opening_it(file: Path) -> None:
    file.write_bytes(LARGE)
    file.write_bytes(LARGE[::-1])


def grown_by_truncate(file: Path) -> None:
    file.write_bytes(LARGE)
    os.truncate(file, len(LARGE) + MIB)


def written_by_mmap(file: Path) -> None:
    with file.open("w+b", buffering=0) as out:
        out.write(LARGE)
        with mmap.mmap(out.fileno(), 0) as memory:
            memory[MIB : MIB + 5] = b"other"


def appended_by_two_handles(file: Path) -> None:
    with file.open("wb", buffering=0) as one, file.open("ab", buffering=0) as two:
        for offset in range(0, len(LARGE), 2 * MIB):
            one.seek(offset)
            one.write(LARGE[offset : offset + MIB])
            two.write(LARGE[offset + MIB : offset + 2 * MIB])


def overwritten_by_a_second_handle(file: Path) -> None:
    with file.open("wb", buffering=0) as one:
        one.write(LARGE)
        with file.open("r+b", buffering=0) as two:
            two.write(b"other")
        one.write(b"more")


def renamed_over_another(file: Path) -> None:
    file.write_bytes(LARGE[::-1])
    new = file.with_name("new")
    new.write_bytes(LARGE)
    os.utime(new, (1, 1))
    new.chmod(0o600)
    new.rename(file)


def exchanged_by_names(file: Path) -> None:
    other = file.with_name("other")
    file.write_bytes(LARGE)
    other.write_bytes(LARGE[::-1])
    file.rename(file.with_name("third"))
    other.rename(file)


def deleted_and_made_again(file: Path) -> None:
    file.write_bytes(LARGE)
    file.unlink()
    file.write_bytes(LARGE[::-1])


@pytest.mark.parametrize(
    "write",
    [
        in_order,
        the_second_half_first,
        changed_by_the_same_handle,
        changed_after_it_was_closed,
        changed_by_its_other_name,
        cut_and_filled_up_again,
        cut_by_opening_it,
        grown_by_truncate,
        written_by_mmap,
        appended_by_two_handles,
        overwritten_by_a_second_handle,
        renamed_over_another,
        exchanged_by_names,
        deleted_and_made_again,
    ],
)
def test_dataset_has_what_its_files_had_when_it_was_frozen(
    base: Path, current_user: Account, tmp_path: Path, write: Callable[[Path], None]
) -> None:
    dataset = base / write.__name__
    dataset.mkdir()
    write(tmp_path / "file")

    write(dataset / "file")
    freeze(current_user, dataset)

    frozen = {path.name: path.read_bytes() for path in (dataset / "data").iterdir()}
    assert frozen == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_file_that_is_changed_behind_the_mount_is_frozen_as_it_is(
    base: Path, current_user: Account
) -> None:
    dataset = base / "behind"
    dataset.mkdir()
    (dataset / "file").write_bytes(LARGE)
    local = Path(status(current_user, dataset)["directory"]) / "tree/file"

    let_the_clock_tick(local)
    with local.open("r+b") as out:
        out.write(b"other")
    freeze(current_user, dataset)

    shown = dataset / "data/file"
    assert shown.read_bytes() == b"other" + LARGE[5:]


def test_less_is_left_to_hash_of_what_is_written_from_beginning_to_end(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> None:
    log = current_user.home / "hash-ahead.log"
    options = ("--freeze-delay", "manual", "--log-file", str(log), "--log-level", "debug")
    with mounted(current_user, server.base_uri, token, *options) as base:
        (base / "ahead").mkdir()
        with (base / "ahead/file").open("wb") as out:
            out.writelines([LARGE] * TIMES)

        freeze(current_user, base / "ahead")

    left = re.findall(r"(\d+) bytes were left to be hashed", log.read_text())
    assert len(left) == 1
    assert int(left[0]) < TIMES * len(LARGE)  # how much less is for the machine to say
