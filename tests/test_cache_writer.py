"""Blocks on their way to the cache: had back, written, or discarded for good."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.cache import BlockCache, BlockKey
from dserverfs.cache_writer import MAX_WAITING, CacheWriter

KEYS = [BlockKey("item", number) for number in range(3 * MAX_WAITING)]
DATA = b"x" * 100_000


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[BlockCache]:
    cache = BlockCache(tmp_path / "blocks")
    cache.open()
    yield cache
    cache.close()


def held(cache: BlockCache, keys: list[BlockKey]) -> list[BlockKey]:
    return [key for key in keys if cache.load(key, len(DATA)) is not None]


def test_every_block_is_at_hand_until_it_is_in_the_cache(cache: BlockCache) -> None:
    writer = CacheWriter(cache)

    for key in KEYS:
        writer.put(key, DATA)
        assert writer.waiting(key) or cache.load(key, len(DATA))
    writer.close()

    assert held(cache, KEYS) == KEYS


def test_flush_returns_when_all_is_written(cache: BlockCache) -> None:
    writer = CacheWriter(cache)
    for key in KEYS[:5]:
        writer.put(key, DATA)

    writer.flush()

    assert held(cache, KEYS[:5]) == KEYS[:5]
    assert not any(writer.waiting(key) for key in KEYS[:5])
    writer.close()


def test_discarded_blocks_are_not_written_afterwards(cache: BlockCache) -> None:
    writer = CacheWriter(cache)
    for key in KEYS[:MAX_WAITING]:
        writer.put(key, DATA)

    writer.discard(KEYS[:MAX_WAITING])
    written = held(cache, KEYS[:MAX_WAITING])
    cache.drop(written)
    writer.put(KEYS[-1], DATA)
    writer.close()

    assert held(cache, KEYS) == [KEYS[-1]]


def test_closed_writer_takes_no_more(cache: BlockCache) -> None:
    writer = CacheWriter(cache)
    writer.close()

    writer.put(KEYS[0], DATA)

    assert held(cache, KEYS) == []
