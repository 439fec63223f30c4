"""Blocks on their way to the cache: had back, written, or discarded for good."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dserverfs.reading.cache import write_behind
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import Block, FileBlock, MemoryBlock
from dserverfs.reading.cache.write_behind import MAX_BATCH, MAX_WAITING, CacheWriter, Put
from tests.support.few_threads import no_more_threads
from tests.support.patience import LATE_S

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
    writer = CacheWriter(cache, patience_s=60.0)

    for key in KEYS:
        put(writer, key)
        assert writer.waiting(key) or cache.load(key, len(DATA))
    writer.close()

    assert held(cache, KEYS) == KEYS
    assert "cache" not in {thread.name for thread in threading.enumerate()}


def test_blocks_that_are_put_together_are_at_hand_until_they_are_in_the_cache(
    cache: BlockCache,
) -> None:
    writer = CacheWriter(cache)
    may_write = gate(cache)
    puts = [Put(key, key._replace(item="kept as"), MemoryBlock(DATA)) for key in KEYS[:3]]

    writer.put_many(puts)

    assert [writer.waiting(key) for key in KEYS[:3]] == [each.block for each in puts]
    may_write.set()
    writer.flush()
    assert [writer.waiting(key) for key in KEYS[:3]] == [None] * 3
    assert len(held(cache, [each.stored_as for each in puts])) == 3
    writer.close()


def gate(cache: BlockCache) -> threading.Event:
    """Have nothing stored until the event is set."""
    may_write, store = threading.Event(), cache.store

    def gated(*arguments: Any) -> Any:
        assert may_write.wait(60)
        return store(*arguments)

    cache.store = gated  # type: ignore[method-assign, assignment]
    return may_write


def test_so_many_blocks_are_written_in_one_transaction_and_no_more(cache: BlockCache) -> None:
    writer = CacheWriter(cache)
    may_write, gated, sizes = gate(cache), cache.store, list[int]()

    def counted(blocks: Any, origins: Any) -> Any:
        sizes.append(len(blocks))
        return gated(blocks, origins)

    cache.store = counted  # type: ignore[method-assign, assignment]
    for key in KEYS[:MAX_WAITING]:
        put(writer, key)
    may_write.set()
    writer.close()

    assert sum(sizes) == MAX_WAITING
    assert max(sizes[1:]) == MAX_BATCH


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
    other = BlockKey("other", 0)
    put(writer, other)

    writer.discard("item")
    assert not any(writer.waiting(key) for key in KEYS)
    written = held(cache, KEYS[:MAX_WAITING])
    cache.drop(written)
    put(writer, KEYS[-1])
    writer.close()

    assert held(cache, [*KEYS, other]) == [KEYS[-1], other]


def test_closed_writer_takes_no_more_and_holds_nobody_up(cache: BlockCache) -> None:
    writer = CacheWriter(cache, patience_s=3600.0)
    writer.close()

    for key in KEYS:
        block = put(writer, key)
        writer.put_many([Put(key, key, block)])
        writer.enter_verified("item", "=content", [block.serial])
        writer.move(key, KEYS[0], block.serial)

    assert held(cache, KEYS) == []
    assert not any(writer.waiting(key) for key in KEYS)


def test_block_that_is_discarded_while_it_is_written_is_not_handed_over(
    cache: BlockCache,
) -> None:
    handed: dict[BlockKey, Block] = {}
    writer = CacheWriter(cache, handed.__setitem__)
    store, discarding = cache.store, threading.Thread(target=writer.discard, args=("item",))

    def discarded(*arguments: Any) -> Any:
        stored = store(*arguments)
        discarding.start()  # it waits for the end of this
        while writer.waiting(KEYS[0]):
            discarding.join(0.001)
        return stored

    cache.store = discarded  # type: ignore[method-assign, assignment]
    put(writer, KEYS[0])
    writer.close()
    discarding.join()

    assert handed == {}


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
    writer.announce(KEYS[1], small := MemoryBlock(b"small"))
    writer.put(KEYS[1], small, KEYS[1])
    writer.close()

    assert handed.keys() == {KEYS[0]}, "a small one has none"
    assert cache.load(KEYS[1], 5) is not None
    assert isinstance(handed[KEYS[0]], FileBlock)
    assert bytes(handed[KEYS[0]].read(0, len(DATA))) == DATA


def test_verified_item_is_entered_behind_its_blocks(cache: BlockCache) -> None:
    writer = CacheWriter(cache)
    blocks = [put(writer, key) for key in KEYS[:3]]
    writer.enter_verified("item", "=content", [block.serial for block in blocks])
    moved = put(writer, KEYS[3])
    writer.move(KEYS[3], BlockKey("=hash", 0), moved.serial)
    writer.close()

    assert cache.count("=content") == 3
    assert (cache.count("=hash"), cache.count("item")) == (1, 0)


@pytest.mark.parametrize("patience_s", [0.0, 60.0])
def test_block_waits_for_a_slow_disk_as_long_as_the_writer_has_patience(
    cache: BlockCache, patience_s: float
) -> None:
    may_write = gate(cache)
    writer = CacheWriter(cache, patience_s=patience_s)
    came: list[BlockKey] = []

    def put_all() -> None:
        for key in KEYS:
            put(writer, key)
            came.append(key)

    putting = threading.Thread(target=put_all)
    putting.start()
    if not patience_s:
        putting.join()
        assert 0 < sum(writer.waiting(key) is not None for key in KEYS) < len(KEYS)
    may_write.set()
    putting.join()
    writer.close()

    assert came == KEYS
    assert (held(cache, KEYS) == KEYS) is bool(patience_s)


# What is not expected


@pytest.mark.expects_log("a fault of ours while writing to the cache")
@pytest.mark.parametrize("failing", ["store", "enter_verified", "move"])
def test_fault_of_ours_costs_the_blocks_that_it_met_and_no_others(
    cache: BlockCache, failing: str
) -> None:
    writer = CacheWriter(cache)

    def fail(*arguments: object) -> Any:
        raise ValueError("a fault")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, failing, fail)
        block = put(writer, KEYS[0])
        writer.enter_verified("item", "=content", [block.serial])
        writer.move(KEYS[0], KEYS[1], block.serial)
        writer.flush()
    assert writer.waiting(KEYS[0]) is None

    put(writer, KEYS[2])
    writer.flush()
    assert held(cache, KEYS[2:3]) == KEYS[2:3]
    writer.close()


@pytest.mark.parametrize("waiting", [1, 3 * MAX_WAITING])
def test_disk_that_hangs_holds_up_no_end(
    cache: BlockCache, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    monkeypatch.setattr(write_behind, "CLOSE_TIMEOUT_S", 0.01)
    may_write = gate(cache)
    writer = CacheWriter(cache, patience_s=0.0)
    for key in KEYS[:waiting]:
        put(writer, key)
    closing = threading.Thread(target=writer.close)

    closing.start()
    closing.join(LATE_S)

    assert not closing.is_alive()
    may_write.set()
    monkeypatch.setattr(write_behind, "CLOSE_TIMEOUT_S", LATE_S)
    writer.close()
    assert "cache" not in {thread.name for thread in threading.enumerate()}


def test_blocks_are_read_uncached_while_there_is_no_thread_to_write_them(
    cache: BlockCache,
) -> None:
    writer = CacheWriter(cache, patience_s=3600.0)

    with no_more_threads():
        for key in KEYS:
            block = put(writer, key)
            writer.put_many([Put(key, key, block)])
            writer.enter_verified("item", "=content", [block.serial])
            writer.move(key, KEYS[0], block.serial)
        assert not any(writer.waiting(key) for key in KEYS)
        writer.flush()
    put(writer, KEYS[0])
    writer.close()

    assert held(cache, KEYS) == KEYS[:1]


def test_block_that_was_fetched_anew_is_written_though_the_first_one_was_on_its_way(
    cache: BlockCache,
) -> None:
    may_write = gate(cache)
    writer = CacheWriter(cache)
    put(writer, KEYS[0])
    writer.announce(KEYS[0], anew := MemoryBlock(DATA[::-1]))

    may_write.set()
    writer.flush()
    assert writer.waiting(KEYS[0]) is anew
    writer.put(KEYS[0], anew, KEYS[0])
    writer.close()

    found = cache.load(KEYS[0], len(DATA))
    assert found is not None
    assert found.serial == anew.serial
