"""Blocks at hand: bounded in number and in memory, those in use stay."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from dserverfs.base.checksums import checksums, number_of_chunks
from dserverfs.base.local_files import SharedFile
from dserverfs.reading.cache.blocks import FileBlock, MemoryBlock
from dserverfs.reading.hot_blocks import HotBlocks

SIZE = 1000


def in_memory(number: int) -> MemoryBlock:
    return MemoryBlock(bytes([number]) * SIZE)


def in_file(directory: Path, number: int) -> FileBlock:
    path = directory / f"{number}"
    data = bytes([number]) * SIZE
    path.write_bytes(data)
    file = SharedFile(os.open(path, os.O_RDONLY))
    return FileBlock(file, 0, SIZE, checksums(data), bytearray(number_of_chunks(SIZE)))


def two_in_memory() -> HotBlocks:
    return HotBlocks(max_blocks=10, max_memory_in_bytes=2 * SIZE)


def test_map_shows_what_comes_and_goes() -> None:
    blocks = HotBlocks(max_blocks=10)
    live = blocks.map_of("item")
    assert live.get(3) is None

    blocks.add(("item", 3), block := in_memory(3))
    blocks.add(("other", 3), in_memory(4))

    assert live.get(3) is block
    assert blocks.map_of("item") is live
    blocks.pop(("item", 3))
    assert live.get(3) is None
    assert ("other", 3) in blocks


def test_map_outlives_its_blocks_as_long_as_a_reader_holds_it() -> None:
    blocks = HotBlocks(max_blocks=10)
    live = blocks.map_of("item")
    blocks.add(("item", 0), in_memory(0))
    blocks.clear()
    gc.collect()

    blocks.add(("item", 1), block := in_memory(1))

    assert live.get(1) is block


def test_block_in_use_is_not_the_first_to_go() -> None:
    blocks = HotBlocks(max_blocks=3)
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


SHARED = 4  # blocks in a file


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "memory", "attach", "pop", "use", "drop", "spill"]),
            st.integers(0, 23),
        ),
        max_size=60,
    ),
    st.integers(1, 4),
)
def test_files_that_blocks_share_are_counted_once_and_bounded(
    steps: list[tuple[str, int]], max_files: int
) -> None:
    blocks = HotBlocks(max_blocks=12, max_files=max_files, max_memory_in_bytes=3 * SIZE)
    files = [SharedFile(os.open("/dev/null", os.O_RDONLY)) for _ in range(6)]
    fds = [file.fd for file in files]
    found = None
    for step, number in steps:
        key = (f"item {number % 3}", number)
        block = FileBlock(files[number // SHARED], 0, SIZE, b"", bytearray(1))
        if step == "add":
            blocks.add(key, block)
        elif step == "memory":
            blocks.add(key, in_memory(number))
        elif step == "attach":
            blocks.attach_file(key, block)
        elif step == "pop":
            blocks.pop(key)
        elif step == "drop":
            blocks.drop_item(key[0])
        elif step == "spill":
            blocks.spill_to_files(key[0])
        elif (found := blocks.get(key)) is not None:
            found.used = True
        blocks.check()
        del block
        gc.collect(0)

    found = None
    del files
    assert sum(is_open(fd) for fd in fds) <= max_files


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_when_memory_is_short_the_file_behind_a_block_takes_its_place(tmp_path: Path) -> None:
    blocks = two_in_memory()
    for number in range(2):
        blocks.add(("item", number), in_memory(number))
        blocks.attach_file(("item", number), in_file(tmp_path, number))
        assert isinstance(blocks.get(("item", number)), MemoryBlock)

    blocks.add(("item", 2), in_memory(2))

    kinds = [type(blocks.get(("item", number))) for number in range(3)]
    assert kinds == [FileBlock, MemoryBlock, MemoryBlock]
    found = blocks.get(("item", 0))
    assert found is not None
    assert bytes(found.read(0, SIZE)) == bytes(SIZE)


def test_when_memory_is_short_a_block_without_a_file_goes() -> None:
    blocks = two_in_memory()
    for number in range(3):
        blocks.add(("item", number), in_memory(number))

    assert [("item", number) in blocks for number in range(3)] == [False, True, True]


def test_item_that_is_not_read_any_more_leaves_memory(tmp_path: Path) -> None:
    blocks = HotBlocks(max_blocks=10)
    for item in ("item", "other"):
        blocks.add((item, 0), in_memory(0))
        blocks.attach_file((item, 0), in_file(tmp_path, 0))
    blocks.add(("item", 1), in_memory(1))  # the cache does not have it yet

    blocks.spill_to_files("item")

    assert isinstance(blocks.get(("item", 0)), FileBlock)
    assert isinstance(blocks.get(("item", 1)), MemoryBlock)
    assert isinstance(blocks.get(("other", 0)), MemoryBlock)


def test_file_of_a_block_that_is_gone_from_memory_is_kept(tmp_path: Path) -> None:
    blocks = HotBlocks(max_blocks=10)

    blocks.attach_file(("item", 0), block := in_file(tmp_path, 0))

    assert blocks.get(("item", 0)) is block


def test_file_that_was_removed_from_the_cache_is_closed(tmp_path: Path) -> None:
    blocks = HotBlocks(max_blocks=10)
    live = blocks.map_of("item")
    for number in (0, 1):
        blocks.add(("item", number), in_file(tmp_path, number))
    blocks.add(("item", 2), in_memory(2))
    blocks.attach_file(("item", 2), in_file(tmp_path, 2))
    before = len(os.listdir("/proc/self/fd"))
    for number in (0, 2):
        (tmp_path / f"{number}").unlink()

    blocks.close_removed()

    assert sorted(live) == [1, 2]
    assert len(os.listdir("/proc/self/fd")) == before - 2
    assert isinstance(live[2], MemoryBlock), "what is in memory needs no file"


def test_dropped_block_does_not_come_back_with_its_file(tmp_path: Path) -> None:
    blocks = HotBlocks(max_blocks=10)
    blocks.add(("item", 0), in_memory(0))
    blocks.attach_file(("item", 0), in_file(tmp_path, 0))

    blocks.pop(("item", 0))
    blocks.spill_to_files("item")

    assert ("item", 0) not in blocks


def test_map_of_a_dropped_item_stays_empty_and_the_next_one_is_another() -> None:
    blocks = HotBlocks(max_blocks=10)
    live = blocks.map_of("item")
    blocks.add(("item", 0), in_memory(0))

    blocks.drop_item("item")
    blocks.add(("item", 1), block := in_memory(1))

    assert live.is_dropped
    assert live == {}
    assert not blocks.map_of("item").is_dropped
    assert blocks.map_of("item") == {1: block}


def test_nothing_is_kept_of_an_item_that_was_dropped_and_is_not_read() -> None:
    blocks = HotBlocks(max_blocks=10)
    blocks.add(("item", 0), in_memory(0))
    live = weakref.ref(blocks.map_of("item"))

    blocks.drop_item("item")

    gc.collect()
    assert live() is None


def test_only_those_who_have_a_dropped_item_open_are_told() -> None:
    blocks = HotBlocks(max_blocks=10)
    told: list[str] = []
    here, gone = blocks.map_of("item"), blocks.map_of("other")
    here.on_drop.append(lambda: told.append("item"))
    gone.on_drop.append(lambda: told.append("other"))

    for tell in [*blocks.drop_item("item"), *blocks.drop_item("item")]:
        tell()

    assert told == ["item"]
