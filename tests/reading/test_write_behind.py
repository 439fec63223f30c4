"""Blocks on their way to the cache: had back, written, or discarded for good."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import Block, FileBlock, MemoryBlock
from dserverfs.reading.cache.write_behind import MAX_WAITING, CacheWriter

pytest_plugins = ["tests.support.cache_fixtures"]

KEYS = [BlockKey("item", number) for number in range(3 * MAX_WAITING)]
DATA = b"x" * 100_000


def put(writer: CacheWriter, key: BlockKey) -> MemoryBlock:
    block = MemoryBlock(DATA)
    writer.announce(key, block)
    writer.put(key, block, key)
    return block


def held(cache: BlockCache, keys: list[BlockKey]) -> list[BlockKey]:
    return [key for key in keys if cache.load(key, len(DATA)) is not None]


def test_every_block_is_at_hand_until_it_is_in_the_cache(cache: BlockCache) -> None:
    writer = CacheWriter(cache)

    for key in KEYS:
        put(writer, key)
        assert writer.waiting(key) or cache.load(key, len(DATA))
    writer.close()

    assert held(cache, KEYS) == KEYS


def test_flush_returns_when_all_is_written(cache: BlockCache) -> None:
    writer = CacheWriter(cache)
    for key in KEYS[:5]:
        put(writer, key)

    writer.flush()

    assert held(cache, KEYS[:5]) == KEYS[:5]
    assert not any(writer.waiting(key) for key in KEYS[:5])
    writer.close()


def test_discarded_blocks_are_not_written_afterwards(cache: BlockCache) -> None:
    writer = CacheWriter(cache)
    for key in KEYS[:MAX_WAITING]:
        put(writer, key)

    writer.discard("item")
    written = held(cache, KEYS[:MAX_WAITING])
    cache.drop(written)
    put(writer, KEYS[-1])
    writer.close()

    assert held(cache, KEYS) == [KEYS[-1]]


def test_closed_writer_takes_no_more(cache: BlockCache) -> None:
    writer = CacheWriter(cache)
    writer.close()

    put(writer, KEYS[0])

    assert held(cache, KEYS) == []


def test_discarded_block_is_not_written_though_it_is_put_afterwards(cache: BlockCache) -> None:
    writer = CacheWriter(cache)
    block = MemoryBlock(DATA)
    writer.announce(KEYS[0], block)

    writer.discard("item")
    writer.put(KEYS[0], block, KEYS[0])
    writer.close()

    assert held(cache, KEYS) == []


def test_written_block_is_handed_over_as_a_file(cache: BlockCache) -> None:
    handed: dict[BlockKey, Block] = {}
    writer = CacheWriter(cache, handed.__setitem__)

    put(writer, KEYS[0])
    writer.close()

    assert isinstance(handed[KEYS[0]], FileBlock)
    assert bytes(handed[KEYS[0]].read(0, len(DATA))) == DATA


def test_verified_item_is_entered_behind_its_blocks(cache: BlockCache) -> None:
    writer = CacheWriter(cache)
    blocks = [put(writer, key) for key in KEYS[:3]]
    writer.enter_verified("item", "=content", [block.serial for block in blocks])
    writer.close()

    assert cache.count("=content") == 3
    assert cache.count("item") == 0


@pytest.mark.parametrize("patience_s", [0.0, 60.0])
def test_block_waits_for_a_slow_disk_as_long_as_the_writer_has_patience(
    cache: BlockCache, monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    may_write = threading.Event()
    store = cache.store

    def slow(*arguments: Any) -> Any:
        assert may_write.wait(60)
        return store(*arguments)

    monkeypatch.setattr(cache, "store", slow)
    writer = CacheWriter(cache, patience_s=patience_s)
    putting = threading.Thread(target=lambda: [put(writer, key) for key in KEYS])
    putting.start()
    if not patience_s:
        putting.join()
    may_write.set()
    putting.join()
    writer.close()

    assert (held(cache, KEYS) == KEYS) is bool(patience_s)
