"""Blocks at hand: bounded in number and in memory, those in use stay."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest

from dserverfs.reading import hot_blocks
from dserverfs.reading.cache.blocks import (
    FileBlock,
    MemoryBlock,
    OpenFile,
    checksums,
    number_of_parts,
)
from dserverfs.reading.hot_blocks import LoadedBlocks

SIZE = 1000


def in_memory(number: int) -> MemoryBlock:
    return MemoryBlock(bytes([number]) * SIZE)


def in_file(directory: Path, number: int) -> FileBlock:
    path = directory / f"{number}"
    data = bytes([number]) * SIZE
    path.write_bytes(data)
    file = OpenFile(os.open(path, os.O_RDONLY))
    return FileBlock(file, 0, SIZE, checksums(data), bytearray(number_of_parts(SIZE)))


@pytest.fixture
def two_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot_blocks, "MAX_LOADED_MEMORY", 2 * SIZE)


def test_shelf_shows_what_comes_and_goes() -> None:
    blocks = LoadedBlocks(10)
    shelf = blocks.shelf("item")
    assert shelf.get(3) is None

    blocks.add(("item", 3), block := in_memory(3))
    blocks.add(("other", 3), in_memory(4))

    assert shelf.get(3) is block
    assert blocks.shelf("item") is shelf
    blocks.drop([("item", 3)])
    assert shelf.get(3) is None
    assert ("other", 3) in blocks


def test_shelf_outlives_its_blocks_as_long_as_a_reader_holds_it() -> None:
    blocks = LoadedBlocks(10)
    shelf = blocks.shelf("item")
    blocks.add(("item", 0), in_memory(0))
    blocks.clear()
    gc.collect()

    blocks.add(("item", 1), block := in_memory(1))

    assert shelf.get(1) is block


def test_block_in_use_is_not_the_first_to_go() -> None:
    blocks = LoadedBlocks(3)
    for number in range(3):
        blocks.add(("item", number), in_memory(number))
    used = blocks.get(("item", 0))
    assert used is not None
    used.used = True

    blocks.add(("item", 3), in_memory(3))
    assert [number for number in range(4) if ("item", number) in blocks] == [0, 2, 3]

    # One use is one chance.
    blocks.add(("item", 4), in_memory(4))
    blocks.add(("item", 5), in_memory(5))
    blocks.add(("item", 6), in_memory(6))
    assert ("item", 0) not in blocks


@pytest.mark.usefixtures("two_in_memory")
def test_when_memory_is_short_the_file_behind_a_block_takes_its_place(tmp_path: Path) -> None:
    blocks = LoadedBlocks(10)
    for number in range(2):
        blocks.add(("item", number), in_memory(number))
        blocks.put_behind(("item", number), in_file(tmp_path, number))
        assert isinstance(blocks.get(("item", number)), MemoryBlock)

    blocks.add(("item", 2), in_memory(2))

    kinds = [type(blocks.get(("item", number))) for number in range(3)]
    assert kinds == [FileBlock, MemoryBlock, MemoryBlock]
    found = blocks.get(("item", 0))
    assert found is not None
    assert bytes(found.read(0, SIZE)) == bytes(SIZE)


@pytest.mark.usefixtures("two_in_memory")
def test_when_memory_is_short_a_block_without_a_file_goes() -> None:
    blocks = LoadedBlocks(10)
    for number in range(3):
        blocks.add(("item", number), in_memory(number))

    assert [("item", number) in blocks for number in range(3)] == [False, True, True]


def test_item_that_is_not_read_any_more_leaves_memory(tmp_path: Path) -> None:
    blocks = LoadedBlocks(10)
    for item in ("item", "other"):
        blocks.add((item, 0), in_memory(0))
        blocks.put_behind((item, 0), in_file(tmp_path, 0))
    blocks.add(("item", 1), in_memory(1))  # the cache does not have it yet

    blocks.leave_memory("item")

    assert isinstance(blocks.get(("item", 0)), FileBlock)
    assert isinstance(blocks.get(("item", 1)), MemoryBlock)
    assert isinstance(blocks.get(("other", 0)), MemoryBlock)


def test_file_of_a_block_that_is_gone_from_memory_is_kept(tmp_path: Path) -> None:
    blocks = LoadedBlocks(10)

    blocks.put_behind(("item", 0), block := in_file(tmp_path, 0))

    assert blocks.get(("item", 0)) is block


def test_file_that_was_removed_from_the_cache_is_closed(tmp_path: Path) -> None:
    blocks = LoadedBlocks(10)
    shelf = blocks.shelf("item")
    for number in (0, 1):
        blocks.add(("item", number), in_file(tmp_path, number))
    blocks.add(("item", 2), in_memory(2))
    blocks.put_behind(("item", 2), in_file(tmp_path, 2))
    before = len(os.listdir("/proc/self/fd"))
    for number in (0, 2):
        (tmp_path / f"{number}").unlink()

    blocks.close_removed(threading.Lock())

    assert sorted(shelf) == [1, 2]
    assert len(os.listdir("/proc/self/fd")) == before - 2
    assert isinstance(shelf[2], MemoryBlock), "what is in memory needs no file"


def test_dropped_block_does_not_come_back_with_its_file(tmp_path: Path) -> None:
    blocks = LoadedBlocks(10)
    blocks.add(("item", 0), in_memory(0))
    blocks.put_behind(("item", 0), in_file(tmp_path, 0))

    blocks.drop([("item", 0)])
    blocks.leave_memory("item")

    assert ("item", 0) not in blocks
