"""Files of the block cache: blocks stored together share one, and each can go by itself."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dserverfs.reading.cache import maintenance
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_files import MAX_BLOCKS_IN_FILE, MIN_FILE_SIZE, files_in
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import MemoryBlock

pytest_plugins = ["tests.support.cache_fixtures"]

ITEM = "dserver://h/s3/b/uuid/item"
SIZES = [MIN_FILE_SIZE + number for number in range(5)]
CONTENTS = [os.urandom(size) for size in SIZES]


def store(cache: BlockCache, item: str = ITEM) -> None:
    stored = cache.store(
        [
            (BlockKey(item, number), MemoryBlock(content))
            for number, content in reversed([*enumerate(CONTENTS)])
        ]
    )
    assert len(stored) == len(CONTENTS)
    for number, content in enumerate(CONTENTS):
        assert bytes(stored[BlockKey(item, number)].read(0, len(content))) == content


def found(cache: BlockCache, item: str = ITEM) -> list[bytes | None]:
    blocks = [cache.load(BlockKey(item, number), size) for number, size in enumerate(SIZES)]
    return [
        None if block is None else bytes(block.read(0, size))
        for block, size in zip(blocks, SIZES, strict=True)
    ]


def inodes(tmp_path: Path) -> set[int]:
    directory = tmp_path / "blocks"
    return {(directory / name).stat().st_ino for name in files_in(directory)}


def test_blocks_of_an_item_stored_together_share_a_file(cache: BlockCache, tmp_path: Path) -> None:
    store(cache)
    store(cache, "another")

    assert len(inodes(tmp_path)) == 2
    assert found(cache) == CONTENTS
    assert found(cache, "another") == CONTENTS


def test_file_holds_only_so_many_blocks(cache: BlockCache, tmp_path: Path) -> None:
    content = bytes(MIN_FILE_SIZE)
    count = 2 * MAX_BLOCKS_IN_FILE + 1
    cache.store([(BlockKey(ITEM, number), MemoryBlock(content)) for number in range(count)])

    assert len(inodes(tmp_path)) == 3
    assert cache.count(ITEM) == count


def test_block_that_goes_takes_no_other_with_it(cache: BlockCache, tmp_path: Path) -> None:
    store(cache)
    held = cache.load(BlockKey(ITEM, 2), SIZES[2])
    assert held is not None

    cache.drop([BlockKey(ITEM, 2), BlockKey(ITEM, 0)])

    assert found(cache) == [None, CONTENTS[1], None, CONTENTS[3], CONTENTS[4]]
    assert bytes(held.read(0, SIZES[2])) == CONTENTS[2], "who has it open reads on"


def test_file_goes_with_its_last_block(cache: BlockCache, tmp_path: Path) -> None:
    store(cache)
    cache.drop([BlockKey(ITEM, number) for number in range(len(SIZES))])

    assert files_in(tmp_path / "blocks") == set()


@pytest.mark.expects_log("damaged block")
def test_file_cut_off_loses_the_blocks_behind_the_cut(cache: BlockCache, tmp_path: Path) -> None:
    store(cache)
    (path, *_) = (tmp_path / "blocks").glob("*/*.blk")
    os.truncate(path, sum(SIZES[:3]))

    assert found(cache) == [*CONTENTS[:3], None, None]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_file_system_without_links_has_a_file_for_each(
    cache: BlockCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(source: object, target: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    store(cache)

    assert len(inodes(tmp_path)) == len(files_in(tmp_path / "blocks")) == len(SIZES)
    assert found(cache) == CONTENTS


@pytest.mark.expects_log("No space left")
def test_disk_that_fills_up_between_names_keeps_nothing(
    cache: BlockCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def link(source: object, target: object) -> None:
        nonlocal calls
        calls += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", link)
    blocks = [(BlockKey(ITEM, n), MemoryBlock(content)) for n, content in enumerate(CONTENTS)]

    assert cache.store(blocks) == {}
    assert calls == 1
    assert files_in(tmp_path / "blocks") == set()
    assert found(cache) == [None] * len(SIZES)


def test_blocks_of_one_file_are_used_and_give_way_together(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks")
    cache.open()
    store(cache, "first")
    store(cache, "second")
    block = cache.load(BlockKey("first", 4), SIZES[4])  # used later than all of the second
    assert block is not None

    cache.evict(sum(SIZES))

    assert found(cache, "second") == [None] * len(SIZES)
    assert found(cache, "first") == CONTENTS
    cache.close()


def test_check_of_all_blocks_finds_the_one_that_is_wrong(cache: BlockCache, tmp_path: Path) -> None:
    store(cache)
    (path, *_) = (tmp_path / "blocks").glob("*/*.blk")
    with path.open("r+b") as file:
        file.seek(sum(SIZES[:3]) + 1)
        file.write(bytes([CONTENTS[3][1] ^ 1]))

    result = maintenance.check(cache, lambda done, total: None)

    assert (result.blocks, result.damaged, result.missing) == (len(SIZES), 1, 0)
    assert found(cache) == [*CONTENTS[:3], None, CONTENTS[4]]
