"""How much a cache holds, and which blocks give way: to others, to a limit, to the full disk."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dserverfs.base import disk_space
from dserverfs.base.disk_space import AS_IT_IS
from dserverfs.reading.cache import block_cache
from dserverfs.reading.cache.block_cache import BlockCache, CacheTuning, CacheUsage
from dserverfs.reading.cache.block_files import MIN_FILE_SIZE, files_in
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import MemoryBlock
from dserverfs.reading.cache.pins import PinnedItem
from tests.support.failing_caches import (
    BLOCK,
    BROKEN,
    FOR_LONG,
    FULL,
    KEYS,
    LARGE,
    SMALL,
    Failing,
    has,
)

pytest_plugins = ["tests.support.cache_fixtures"]

# Room for others


@pytest.mark.parametrize(
    ("lacking", "is_kept", "left"),
    [([0], True, 2), ([1, 0], True, 1), ([1, 1], False, 1), ([BROKEN], False, 2)],
    ids=["enough", "enough after an eviction", "never enough", "unknown"],
)
def test_nothing_is_kept_that_others_have_no_room_for(
    open_cache: Callable[..., BlockCache],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    lacking: list[int | OSError],
    is_kept: bool,
    left: int,
) -> None:
    open_cache().store([(KEYS[0], BLOCK)])
    open_cache().store([(KEYS[1], BLOCK)])
    looks = iter(lacking)

    def look(directory: Path) -> int:
        found = next(looks)
        if isinstance(found, OSError):
            raise found
        return found

    monkeypatch.setattr(disk_space, "lacking_in_bytes", look)
    if lacking == [BROKEN]:
        request.applymarker(pytest.mark.expects_log("cannot be written"))
    cache = open_cache(FOR_LONG)

    for number in (2, 3):
        assert bool(cache.store([(KEYS[number], BLOCK)])) is is_kept

    assert [*looks] == [], "asked once in a while"
    assert cache.count("item") == left + 2 * is_kept
    assert has(cache, KEYS[1]) == [True], "the oldest gave way"


@pytest.mark.expects_log("cannot be written.*No space left")
def test_full_disk_has_the_oldest_give_way(open_cache: Callable[..., BlockCache]) -> None:
    cache = open_cache(FOR_LONG)
    for key in KEYS[:2]:
        cache.store([(key, BLOCK)])

    with pytest.MonkeyPatch.context() as patch:
        Failing(patch, "store", FULL)
        cache.store([(KEYS[2], BLOCK)])

    assert has(cache, *KEYS[:3]) == [False, True, False]


@pytest.mark.expects_log("cannot be written.*No space left")
def test_full_disk_has_enough_give_way_for_what_comes_next(
    open_cache: Callable[..., BlockCache],
) -> None:
    cache = open_cache(CacheTuning())
    for key in KEYS:
        cache.store([(key, BLOCK)])

    with pytest.MonkeyPatch.context() as patch:
        Failing(patch, "store", FULL)
        cache.store([(KEYS[2], BLOCK)])

    assert has(cache, *KEYS) == [False] * len(KEYS)


class Free:
    """What is said to be free, one look after the other; the last one for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
        self.looks = 0

        def look(directory: Path) -> int:
            self.looks += 1
            return sizes[min(self.looks, len(sizes)) - 1]

        monkeypatch.setattr(disk_space, "free_in_bytes", look)


@pytest.mark.parametrize("held", [0, 1])
def test_eviction_waits_until_others_have_closed_what_it_took_and_no_longer(
    open_cache: Callable[..., BlockCache], monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    """The others' own eviction counts as well: they may still have to close."""
    cache = open_cache()
    cache.store([(key, BLOCK) for key in KEYS[:held]])

    waits = Free(monkeypatch, 0, 0, 10)
    assert cache.evict(10)
    assert waits.looks == 3

    monkeypatch.setattr(block_cache, "OTHERS_CLOSE_S", 0.0)
    in_vain = Free(monkeypatch, 0)
    assert not cache.evict(10)
    assert in_vain.looks == 1


def test_eviction_that_finds_nothing_waits_for_nobody(
    open_cache: Callable[..., BlockCache], cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache()
    os.utime(cache_directory / "evicted", (0, 0))

    assert not cache.evict(1)

    free = Free(monkeypatch, 0)
    assert not cache.evict(1)
    assert free.looks == 1


# The order of use, and the size


@pytest.mark.parametrize("closes", [True, False])
def test_one_use_counts_before_the_next_eviction(
    open_cache: Callable[..., BlockCache], closes: bool
) -> None:
    cache = open_cache()
    for key in KEYS[:2]:
        cache.store([(key, BLOCK)])
    assert has(cache, KEYS[0]) == [True]
    other = open_cache()
    if closes:
        cache.close()
    (other if closes else cache).evict(1)

    assert has(other, *KEYS[:2]) == [True, False]


@pytest.mark.parametrize("by", ["loads", "stores"])
def test_order_of_use_is_written_before_much_of_it_waits(
    open_cache: Callable[..., BlockCache],
    cache_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
) -> None:
    monkeypatch.setattr(block_cache, "_NOTES_PER_BATCH", 3)
    cache = open_cache()
    cache.store([(key, MemoryBlock(SMALL)) for key in KEYS])
    database = sqlite3.connect(cache_directory / "cache.db")

    def last_used() -> list[float]:
        return [t for (t,) in database.execute("SELECT access_time FROM Cache ORDER BY key")]

    stored = last_used()
    blocks = cache.load_many([(key, len(SMALL)) for key in KEYS[:2]])
    assert last_used() == stored
    if by == "loads":
        cache.load(KEYS[2], len(SMALL))
    else:
        for block in blocks:
            assert block is not None
        other = open_cache().load(KEYS[2], len(SMALL))
        assert other is not None
        cache.note_use(other)
        assert last_used() == stored
        cache.store([(KEYS[2], MemoryBlock(SMALL))])

    now = last_used()
    database.close()
    assert [a < b for a, b in zip(stored, now, strict=True)] == [True] * 3 + [False] * 3


def test_use_of_a_block_in_a_file_is_one_of_all_in_that_file(
    open_cache: Callable[..., BlockCache], cache_directory: Path
) -> None:
    """Small ones, of which each has its own row, were used alone."""
    cache = open_cache()
    cache.store([(BlockKey("large", i), MemoryBlock(bytes(MIN_FILE_SIZE))) for i in range(2)])
    cache.store([(BlockKey("small", i), MemoryBlock(SMALL)) for i in range(2)])
    database = sqlite3.connect(cache_directory / "cache.db")

    def last_used() -> dict[str, float]:
        return dict(database.execute("SELECT key, access_time FROM Cache").fetchall())

    stored = last_used()
    for key, length in ((BlockKey("large", 1), MIN_FILE_SIZE), (BlockKey("small", 1), len(SMALL))):
        assert cache.load(key, length) is not None
    cache.close()
    now = last_used()
    database.close()

    used = {key for key, moment_s in now.items() if moment_s > stored[key]}
    keys = [BlockKey("large", 0), BlockKey("large", 1), BlockKey("small", 1)]
    assert used == {key.as_text() for key in keys}


def tidied(before: set[threading.Thread]) -> None:
    for thread in {*threading.enumerate()} - before:
        if thread.name == "tidy":
            thread.join()


@pytest.mark.parametrize(
    ("limit", "is_held"), [(AS_IT_IS, True), (0, True), (2 * MIN_FILE_SIZE, False)]
)
def test_cache_over_its_limit_shrinks_when_it_is_opened_by_one_who_has_a_limit(
    open_cache: Callable[..., BlockCache], cache_directory: Path, limit: int, is_held: bool
) -> None:
    cache = open_cache()
    cache.store([(key, BLOCK) for key in KEYS[:1]])
    for key in KEYS[1:]:
        cache.store([(key, BLOCK)])
    cache.close()
    with sqlite3.connect(cache_directory / "cache.db") as database:
        database.execute("UPDATE Settings SET value = 1 WHERE key = 'size_limit'")
    database.close()
    before = {*threading.enumerate()}

    opened = open_cache(size_limit=limit)
    tidied(before)

    assert (opened.count("item") == len(KEYS)) is is_held
    assert opened.table is not None
    held_in_bytes = opened.table.held_in_bytes()
    assert opened.usage() == CacheUsage(str(cache_directory), held_in_bytes, max(limit, 1))


@pytest.mark.parametrize("is_due", [True, False])
def test_cache_is_swept_when_it_is_opened_once_a_day(
    open_cache: Callable[..., BlockCache], cache_directory: Path, is_due: bool
) -> None:
    cache = open_cache()
    cache.store([(KEYS[0], BLOCK)])
    cache.close()
    (kept,) = files_in(cache_directory)
    orphan = cache_directory / f"0/{31 * '0'}-0.blk"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(LARGE)
    for path in (orphan, cache_directory / kept):
        os.utime(path, (0, 0))
    if is_due:
        (cache_directory / "swept").unlink()
    before = {*threading.enumerate()}

    cache.open()
    tidied(before)

    assert orphan.exists() is not is_due
    assert has(cache, KEYS[0]) == [True]


def test_size_that_was_counted_wrong_costs_no_block(
    open_cache: Callable[..., BlockCache], cache_directory: Path
) -> None:
    cache = open_cache(size_limit=100 * len(LARGE))
    cache.store([(KEYS[0], BLOCK)])
    usage = cache.usage()
    cache.close()
    with sqlite3.connect(cache_directory / "cache.db") as database:
        database.execute(f"UPDATE Settings SET value = value + {1 << 60} WHERE key = 'size'")
    database.close()
    before = {*threading.enumerate()}

    cache.open()
    tidied(before)

    assert has(cache, KEYS[0]) == [True]
    assert cache.usage() == usage


# Blocks that are named by what they are


def test_block_of_the_same_hash_is_kept_once_and_another_in_its_place_is_not(
    open_cache: Callable[..., BlockCache], cache_directory: Path
) -> None:
    cache = open_cache()
    key = BlockKey.of_hash(b"hash")
    first, again, other = MemoryBlock(LARGE), MemoryBlock(LARGE), MemoryBlock(LARGE[:-1] + b"y")
    cache.store([(key, first)])
    (name,) = files_in(cache_directory)

    assert cache.store([(key, again)])[key].serial == first.serial
    assert files_in(cache_directory) == {name}

    (cache_directory / name).unlink()
    assert cache.store([(key, again)])[key].serial == again.serial
    assert cache.store([(key, other)])[key].serial == other.serial
    assert bytes(cache.store([(key, other)])[key].read(0, 1 << 20)) == LARGE[:-1] + b"y"


def test_block_of_an_item_that_comes_again_is_the_one_that_came_last(
    open_cache: Callable[..., BlockCache],
) -> None:
    """Who compared the first one did not compare this one, be it the same."""
    cache = open_cache()
    for block in (MemoryBlock(LARGE), MemoryBlock(LARGE)):
        assert cache.store([(KEYS[0], block)])[KEYS[0]].serial == block.serial
        found = cache.load(KEYS[0], len(LARGE))
        assert found is not None
        assert found.serial == block.serial


@pytest.mark.parametrize("others", [True, False])
def test_block_that_is_here_already_is_pinned_when_a_pinned_item_has_it_as_well(
    open_cache: Callable[..., BlockCache], others: bool
) -> None:
    cache = open_cache()
    key, origin = BlockKey.of_hash(b"hash"), KEYS[0]
    cache.store([(key, BLOCK)])
    item = origin.item if others else "another"
    cache.pins.add("uri", "name", [PinnedItem("uri", "a", item, "=content", len(LARGE))])

    cache.store([(key, MemoryBlock(LARGE))], {key: origin})
    cache.evict(1 << 20)

    assert has(cache, key) == [others]


def test_blocks_that_were_read_of_one_item_lie_in_one_file_in_its_order(
    open_cache: Callable[..., BlockCache], cache_directory: Path
) -> None:
    cache = open_cache()
    origins, blocks = {}, []
    for number in (2, 0, 1):
        for item in ("a", "b"):
            data = f"{item}{number}".encode() + LARGE
            key = BlockKey.of_hash(data[1::-1])
            origins[key] = BlockKey(item, number)
            blocks.append((key, MemoryBlock(data)))

    cache.store(blocks, origins)

    contents = {(cache_directory / name).read_bytes() for name in files_in(cache_directory)}
    expected = (b"".join(f"{item}{n}".encode() + LARGE for n in range(3)) for item in "ab")
    assert contents == {*expected}


def test_item_of_many_blocks_is_entered_whole(
    open_cache: Callable[..., BlockCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_cache, "_ROWS_PER_TRANSACTION", 2)
    cache = open_cache()
    blocks = [MemoryBlock(SMALL) for _ in KEYS[:5]]
    cache.store([*zip(KEYS, blocks, strict=False)])

    cache.enter_verified("item", "=content", [block.serial for block in blocks])

    assert (cache.count("item"), cache.count("=content")) == (0, 5)
