"""A block in a file of the cache: any part of it is right or damaged, and compared once."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from dserverfs import base
from dserverfs.base.checksums import CHUNK_BYTES, checksums, number_of_chunks
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.local_files import SharedFile
from dserverfs.reading.cache.blocks import (
    Block,
    DamagedBlock,
    FileBlock,
    MemoryBlock,
    is_sound,
    read_ahead,
)

START = 777  # of the block in its file
LENGTH = 2 * CHUNK_BYTES + 11
CONTENT = random.Random(2).randbytes(LENGTH)
EDGES = sorted(
    {
        max(0, edge + step)
        for edge in (0, CHUNK_BYTES, 2 * CHUNK_BYTES, LENGTH)
        for step in (-1, 0, 1)
    }
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(START) + CONTENT + b"of the next block")
    return path


@pytest.fixture
def block(path: Path) -> FileBlock:
    return block_of(path)


def block_of(path: Path) -> FileBlock:
    file = SharedFile(os.open(path, os.O_RDONLY))
    checked = bytearray(number_of_chunks(LENGTH))
    return FileBlock(file, START, LENGTH, checksums(CONTENT), checked, 3, 5)


@pytest.fixture(params=["read", "nowait", "nowait into memory"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to read; also where the file system cannot tell what is in memory."""
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, into, offset, flags: preadv(fd, into, offset))
    way: str = request.param
    return way


def read(block: Block, way: str, offset: int, size: int) -> bytes | None:
    if way == "read":
        return bytes(block.read(offset, size))
    buffer = memoryview(bytearray(BLOCK_SIZE)) if "memory" in way else None
    found = block.read_nowait(offset, size, buffer)
    return None if found is None else bytes(found)


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(START + place)
        (byte,) = file.read(1)
        file.seek(START + place)
        file.write(bytes([byte ^ 1]))


def test_every_part_is_the_one_that_was_stored(path: Path, way: str) -> None:
    warm = block_of(path)
    assert read(warm, way, 0, LENGTH) == CONTENT
    for offset in EDGES:
        for end in EDGES:
            if offset <= end:
                expected = CONTENT[offset:end]
                for block in (block_of(path), warm, MemoryBlock(CONTENT)):
                    assert read(block, way, offset, end - offset) == expected, (offset, end)


@pytest.mark.parametrize("wrong", [0, CHUNK_BYTES - 1, CHUNK_BYTES, LENGTH - 1])
def test_wrong_byte_is_found_by_whoever_reads_its_chunk_first_and_by_no_other(
    path: Path, way: str, wrong: int
) -> None:
    flip(path, wrong)
    for offset in EDGES[:-2]:
        block = block_of(path)
        if offset // CHUNK_BYTES == wrong // CHUNK_BYTES:
            with pytest.raises(DamagedBlock, match="checksum"):
                read(block, way, offset, 1)
            with pytest.raises(DamagedBlock, match="checksum"):
                read(block, way, offset, 1)
        else:
            assert read(block, way, offset, 1) == CONTENT[offset : offset + 1]


def test_chunk_that_was_compared_is_not_compared_again(
    path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    def counted(data: bytes) -> bytes:
        compared.append(len(data))
        return checksums(data)

    monkeypatch.setattr(base.checksums, "checksums", counted)
    block = block_of(path)

    for offset, size in ((CHUNK_BYTES, 1), (CHUNK_BYTES + 5, 9), (2 * CHUNK_BYTES, 4), (0, 1)):
        assert read(block, way, offset, size) == CONTENT[offset : offset + size]
    read(block, way, 0, LENGTH)

    assert compared == [CHUNK_BYTES, 11, CHUNK_BYTES]


def test_file_that_became_shorter_gives_no_byte(path: Path, way: str) -> None:
    os.truncate(path, START + LENGTH - 1)
    block = block_of(path)

    if way == "read":
        with pytest.raises(DamagedBlock, match="shorter"):
            block.read(LENGTH - 5, 5)
    else:
        assert read(block, way, LENGTH - 5, 5) is None
    assert read(block, way, 0, 9) == CONTENT[:9]


@pytest.mark.parametrize(
    ("number", "is_damaged"),
    [(errno.EAGAIN, False), (errno.EOPNOTSUPP, False), (errno.EIO, True)],
)
def test_only_what_cannot_be_told_at_once_is_left_to_a_thread(
    block: FileBlock, monkeypatch: pytest.MonkeyPatch, number: int, is_damaged: bool
) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", fail)
    monkeypatch.setattr(os, "pread", fail)

    if is_damaged:
        with pytest.raises(DamagedBlock, match="cannot be read"):
            block.read_nowait(0, 5)
    else:
        assert block.read_nowait(0, 5) is None
    with pytest.raises(DamagedBlock, match="cannot be read"):
        block.read(0, 5)


@pytest.mark.parametrize("wrong", [None, 0, LENGTH - 1])
def test_block_is_sound_if_all_of_it_is(path: Path, wrong: int | None) -> None:
    if wrong is not None:
        flip(path, wrong)

    assert is_sound(block_of(path)) == (wrong is None)


def test_kernel_is_told_of_the_block_alone_and_may_refuse(
    block: FileBlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, ...]] = []

    def advise(*arguments: int) -> None:
        told.append(arguments[1:])
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", advise)

    read_ahead([block, MemoryBlock(b"x")])

    assert told == [(START, LENGTH, os.POSIX_FADV_WILLNEED)]


def test_block_in_memory_knows_what_the_cache_knows_of_it() -> None:
    first, second, known = MemoryBlock(b"x"), MemoryBlock(b"x"), MemoryBlock(b"x", 4, 0)

    assert first.serial
    assert first.serial != second.serial, "equal bytes may come twice"
    assert max(first.serial, second.serial) < 2**63, "SQLite has no larger integers"
    assert (known.row, known.serial, first.row) == (4, 0, 0)
    assert first.checksums == checksums(b"x") == known.checksums
    assert (first.used, first.memory_in_bytes) == (False, 1)
