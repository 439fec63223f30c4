"""The arithmetic of blocks and the read-ahead policy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dserverfs.blocks import (
    BLOCK_SIZE,
    MAX_WINDOW,
    FileBlock,
    MemoryBlock,
    ReadAhead,
    block_length,
    number_of_blocks,
)


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
        run = ahead.plan(block, block, 500)
        asked += range(run.first, run.first + run.length)

    assert asked == sorted(set(asked))
    assert set(asked) == set(range(1, 500))


def test_read_ahead_window_grows_and_stays_within_its_limit() -> None:
    ahead = ReadAhead()
    furthest = 0

    for block in range(400):
        run = ahead.plan(block, block, 10_000)
        furthest = max(furthest, run.first + run.length - block)

    assert MAX_WINDOW // 2 < furthest <= MAX_WINDOW + 1


def test_read_ahead_asks_for_nothing_when_reads_jump() -> None:
    ahead = ReadAhead()

    asked = [ahead.plan(block, block, 10_000).length for block in (500, 20, 9000, 77, 4000)]

    assert asked == [0, 0, 0, 0, 0]


def test_read_ahead_survives_reads_a_little_out_of_order() -> None:
    ahead = ReadAhead()
    asked: set[int] = set()

    for block in (0, 1, 3, 2, 4, 5, 7, 6, 8, 9):
        run = ahead.plan(block, block, 100)
        asked |= set(range(run.first, run.first + run.length))

    assert set(range(2, 12)) <= asked


def test_read_ahead_starts_again_after_a_seek_back_to_the_beginning() -> None:
    ahead = ReadAhead()
    for block in range(10):
        ahead.plan(block, block, 50)
    ahead.plan(40, 40, 50)

    ahead.plan(0, 0, 50)
    run = ahead.plan(1, 1, 50)

    assert run.first == 2
    assert run.length > 0


def test_file_block_reads_its_bytes_though_the_file_is_unlinked(tmp_path: Path) -> None:
    path = tmp_path / "block"
    path.write_bytes(bytes(range(256)) * 16 + b"crc!")
    block = FileBlock(os.open(path, os.O_RDONLY), 4096)
    path.unlink()

    assert block.read(0, 10_000) == bytes(range(256)) * 16
    assert block.read(4090, 10) == bytes(range(250, 256))
    assert block.read_nowait(16, 16) in (None, bytes(range(16, 32)))


def test_file_block_of_a_shortened_file_is_an_error_not_short_bytes(tmp_path: Path) -> None:
    path = tmp_path / "block"
    path.write_bytes(b"x" * 100)
    block = FileBlock(os.open(path, os.O_RDONLY), 4096)

    with pytest.raises(OSError, match="shorter"):
        block.read(0, 4096)
    assert block.read_nowait(0, 4096) is None


def test_memory_block_cuts_without_copying() -> None:
    data = bytearray(b"0123456789")

    view = MemoryBlock(data).read_nowait(2, 3)

    assert view is not None
    assert bytes(view) == b"234"
    assert view.readonly
