"""The arithmetic of blocks and the read-ahead policy."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from dserverfs.base.checksums import CHUNK_BYTES, checksums, number_of_chunks
from dserverfs.base.items import BLOCK_SIZE, block_length, number_of_blocks
from dserverfs.base.local_files import SharedFile
from dserverfs.reading.cache.blocks import DamagedBlock, FileBlock, MemoryBlock
from dserverfs.reading.read_ahead import ALIGNMENT, MAX_WINDOW, ReadAhead


@pytest.mark.parametrize(
    ("size", "blocks", "last"),
    [
        (0, 0, None),
        (1, 1, 1),
        (BLOCK_SIZE - 1, 1, BLOCK_SIZE - 1),
        (BLOCK_SIZE, 1, BLOCK_SIZE),
        (BLOCK_SIZE + 1, 2, 1),
        (3 * BLOCK_SIZE, 3, BLOCK_SIZE),
    ],
)
def test_blocks_cover_the_item_exactly(size: int, blocks: int, last: int | None) -> None:
    assert number_of_blocks(size) == blocks
    if last is not None:
        assert block_length(size, blocks - 1) == last


def test_read_ahead_asks_for_every_block_once_when_read_in_order() -> None:
    ahead = ReadAhead()
    asked: list[int] = []

    for block in range(500):
        run = ahead.plan(block * BLOCK_SIZE, BLOCK_SIZE, 500)
        asked += range(run.first, run.first + run.length)

    assert asked == sorted(set(asked))
    assert set(asked) == set(range(1, 500))


def test_read_ahead_window_grows_and_stays_within_its_limit() -> None:
    ahead = ReadAhead()
    furthest = 0

    for block in range(400):
        run = ahead.plan(block * BLOCK_SIZE, BLOCK_SIZE, 10_000)
        furthest = max(furthest, run.first + run.length - block)

    assert MAX_WINDOW // 2 < furthest <= MAX_WINDOW + 1


@pytest.mark.parametrize("first", [0, 5, 1003])
def test_read_ahead_of_a_long_reader_ends_where_stores_divide_objects(first: int) -> None:
    ahead = ReadAhead()
    total = first + 505

    runs = [ahead.plan(block * BLOCK_SIZE, BLOCK_SIZE, total) for block in range(first, total)]

    ends = [run.first + run.length for run in runs if run.length >= MAX_WINDOW // 2]
    assert len(ends) > 20
    assert not any(end % ALIGNMENT for end in ends if end < total)


def test_read_ahead_asks_for_nothing_when_reads_jump() -> None:
    ahead = ReadAhead()

    asked = [
        ahead.plan(block * BLOCK_SIZE, BLOCK_SIZE, 10_000).length
        for block in (500, 20, 9000, 77, 4000)
    ]

    assert asked == [0, 0, 0, 0, 0]


def test_read_ahead_survives_reads_a_little_out_of_order() -> None:
    ahead = ReadAhead()
    asked: set[int] = set()

    for block in (0, 1, 3, 2, 4, 5, 7, 6, 8, 9):
        run = ahead.plan(block * BLOCK_SIZE, BLOCK_SIZE, 100)
        asked |= set(range(run.first, run.first + run.length))

    assert set(range(2, 12)) <= asked


def test_read_ahead_starts_again_after_a_seek_back_to_the_beginning() -> None:
    ahead = ReadAhead()
    for block in range(10):
        ahead.plan(block * BLOCK_SIZE, BLOCK_SIZE, 50)
    ahead.plan(40 * BLOCK_SIZE, BLOCK_SIZE, 50)

    ahead.plan(0 * BLOCK_SIZE, BLOCK_SIZE, 50)
    run = ahead.plan(1 * BLOCK_SIZE, BLOCK_SIZE, 50)

    assert run.first == 2
    assert run.length > 0


CONTENT = random.Random(7).randbytes(3 * CHUNK_BYTES + 100)


def file_block(path: Path, content: bytes = CONTENT) -> FileBlock:
    """Return a block of CONTENT whose file holds `content`, no part compared yet."""
    path.write_bytes(content)
    checked = bytearray(number_of_chunks(len(CONTENT)))
    file = SharedFile(os.open(path, os.O_RDONLY))
    return FileBlock(file, 0, len(CONTENT), checksums(CONTENT), checked)


def flipped(place: int) -> bytes:
    damaged = bytearray(CONTENT)
    damaged[place] ^= 1
    return bytes(damaged)


@pytest.mark.parametrize(
    "offset", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, len(CONTENT) - 1, len(CONTENT)]
)
@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 10 * CHUNK_BYTES])
def test_file_block_reads_its_bytes_though_the_file_is_unlinked(
    tmp_path: Path, offset: int, size: int
) -> None:
    block = file_block(tmp_path / "block")
    (tmp_path / "block").unlink()

    for _ in range(2):  # compared, and then not any more
        assert bytes(block.read(offset, size)) == CONTENT[offset : offset + size]
        at_once = block.read_nowait(offset, size)
        assert at_once is None or bytes(at_once) == CONTENT[offset : offset + size]


@pytest.mark.parametrize("place", [0, CHUNK_BYTES, len(CONTENT) - 1])
def test_file_block_gives_no_byte_of_a_damaged_part_and_every_other(
    tmp_path: Path, place: int
) -> None:
    block = file_block(tmp_path / "block", flipped(place))

    for part in range(number_of_chunks(len(CONTENT))):
        start = part * CHUNK_BYTES
        if part == place // CHUNK_BYTES:
            with pytest.raises(DamagedBlock):
                block.read(start + 5, 1)
        else:
            assert bytes(block.read(start + 5, 9)) == CONTENT[start + 5 : start + 14]
    with pytest.raises(DamagedBlock):
        block.read(0, len(CONTENT))


def test_file_block_compares_a_part_once(tmp_path: Path) -> None:
    block = file_block(tmp_path / "block")
    block.read(0, 1)

    (tmp_path / "block").write_bytes(flipped(3))

    assert bytes(block.read(0, 4)) == flipped(3)[:4]


def test_file_block_of_a_shortened_file_is_damaged_not_short(tmp_path: Path) -> None:
    block = file_block(tmp_path / "block", CONTENT[:-1])

    with pytest.raises(DamagedBlock, match="shorter"):
        block.read(0, len(CONTENT))
    assert block.read_nowait(0, len(CONTENT)) is None


def test_memory_block_cuts_without_copying() -> None:
    data = bytearray(b"0123456789")

    view = MemoryBlock(data).read_nowait(2, 3)

    assert view is not None
    assert bytes(view) == b"234"
    assert view.readonly
