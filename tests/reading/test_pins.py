"""Pinned blocks stay, whoever has them besides, and whoever stores them in which order."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dserverfs.base.block_hashes import block_hash
from dserverfs.base.errors import LocalDiskError
from dserverfs.base.items import BLOCK_SIZE, ItemContent, block_length
from dserverfs.base.model import Identifier
from dserverfs.reading.cache import maintenance, pinning, pins
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import MemoryBlock
from tests.support.reading_world import DATASET

pytest_plugins = ["tests.support.cache_fixtures"]

SERVER = "server"
EVERYTHING = 1 << 30
SMALL, LARGE = 900, BLOCK_SIZE + 5


def item(name: str, size: int = SMALL, content: str | None = None) -> ItemContent:
    """Return an item; two with the same `content` have the same hash."""
    return ItemContent(
        key=f"dserver://server/s3/b/u/{name}=hash",
        dataset=DATASET,
        identifier=Identifier(name),
        size_in_bytes=size,
        hash_function="md5sum_hexdigest",
        hash=hashlib.md5((content or name).encode()).hexdigest(),
        neighbours=lambda limit: [],
        relpath_of=lambda: name,
    )


def block_of(content: ItemContent, index: int) -> MemoryBlock:
    return MemoryBlock(bytes_of(content.hash, block_length(content.size_in_bytes, index)))


@functools.lru_cache
def bytes_of(seed: str, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def keep(cache: BlockCache, *contents: ItemContent) -> None:
    """Store items as those that were read are: small ones by their content, others by hashes."""
    for content in contents:
        for index in range(content.number_of_blocks):
            block = block_of(content, index)
            stored_as = BlockKey(content.content_key, index)
            if content.number_of_blocks > 1:
                stored_as = BlockKey.of_hash(block_hash(block.data))
            cache.store([(stored_as, block)], {stored_as: BlockKey(content.key, index)})
        if content.number_of_blocks > 1:
            hashes = b"".join(
                block_hash(block_of(content, index).data)
                for index in range(content.number_of_blocks)
            )
            page = BlockKey.of_hashes(content.key, content.size_in_bytes, 0)
            cache.store([(page, MemoryBlock(hashes))])


def here(cache: BlockCache, contents: Sequence[ItemContent]) -> list[str]:
    """Return the names of the items of which every block, with its hash, is here."""
    return [
        content.identifier
        for content in contents
        if pinning.is_here(
            cache,
            pins.PinnedItem("", "", content.key, content.content_key, content.size_in_bytes),
        )
    ]


ITEMS = [item("small"), item("large", LARGE), item("other"), item("other large", LARGE)]


@pytest.mark.parametrize("before", [True, False], ids=["pinned first", "stored first"])
def test_pinned_items_outlast_an_eviction_of_everything(cache: BlockCache, before: bool) -> None:
    if before:
        pinning.pin(cache, SERVER, ITEMS[:2])
    keep(cache, *ITEMS)
    if not before:
        pinning.pin(cache, SERVER, ITEMS[:2])
    assert len(here(cache, ITEMS)) == 4

    cache.evict(EVERYTHING)

    assert here(cache, ITEMS) == ["small", "large"]


def test_pinned_items_outlast_what_is_stored_over_the_limit(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", size_limit=3 * LARGE)
    cache.open()
    pinning.pin(cache, SERVER, ITEMS[:2])
    keep(cache, *ITEMS[:2])

    for number in range(5):
        keep(cache, item(f"next {number}", LARGE))

    assert here(cache, ITEMS) == ["small", "large"]
    room = maintenance.room(cache)
    assert room.held <= 3 * LARGE + BLOCK_SIZE
    cache.close()


def test_pins_are_those_of_every_process_that_has_the_cache(
    cache: BlockCache, tmp_path: Path
) -> None:
    other = BlockCache(tmp_path / "blocks")
    other.open()
    assert other.pins.among([ITEMS[0].key]) == set()

    pinning.pin(cache, SERVER, ITEMS[:2])
    keep(other, *ITEMS)
    other.evict(EVERYTHING)
    (dataset,) = other.pins.datasets()
    other.close()

    assert here(cache, ITEMS) == ["small", "large"]
    assert dataset == pins.PinnedDataset("dserver://server/s3/b/u", "n", 2, SMALL + LARGE)


def test_block_that_was_lost_is_pinned_when_it_comes_again(cache: BlockCache) -> None:
    pinning.pin(cache, SERVER, ITEMS[:1])
    keep(cache, ITEMS[0])
    cache.drop([BlockKey(ITEMS[0].content_key, 0)])
    keep(cache, ITEMS[0])

    cache.evict(EVERYTHING)

    assert here(cache, ITEMS) == ["small"]


def test_earlier_versions_evict_pinned_blocks_last(cache: BlockCache, tmp_path: Path) -> None:
    keep(cache, *ITEMS)
    pinning.pin(cache, SERVER, ITEMS[:1])
    cache.close()
    database = sqlite3.connect(tmp_path / "blocks/cache.db")
    order = [key for (key,) in database.execute("SELECT key FROM Cache ORDER BY access_time")]
    database.close()

    assert order[-1] == BlockKey(ITEMS[0].content_key, 0).as_text()


# Of eight items with four contents, of which two share blocks, some are pinned in each step.
NAMES = [f"{content}{copy}" for content in "abCD" for copy in "12"]
SHARED = {
    name: item(name, LARGE if name[0].isupper() else SMALL, name[0].lower()) for name in NAMES
}


STEP = st.tuples(st.sampled_from(["pin", "unpin", "keep"]), st.sets(st.sampled_from(NAMES)))
KEEP_ALL = ("keep", set(NAMES))


@settings(max_examples=12, deadline=None)
@given(before=st.lists(STEP, max_size=3), after=st.lists(STEP, max_size=3))
@example(before=[], after=[("pin", {"C1", "a1", "a2"}), ("unpin", {"a1"})])
def test_exactly_what_some_item_pins_outlasts_an_eviction(
    before: list[tuple[str, set[str]]],
    after: list[tuple[str, set[str]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    cache = BlockCache(tmp_path_factory.mktemp("pins") / "blocks")
    cache.open()
    pinned = set[str]()
    for step, names in [*before, KEEP_ALL, *after]:
        contents = [SHARED[name] for name in sorted(names)]
        if step == "pin":
            pinned |= names
            pinning.pin(cache, SERVER, contents)
        elif step == "unpin":
            pinned -= names
            cache.pins.remove([content.key for content in contents])
            pinning.release(cache)
        else:
            keep(cache, *contents)

    cache.evict(EVERYTHING)

    left = here(cache, list(SHARED.values()))
    assert {name for name in left if name in pinned} == pinned
    assert {name[0] for name in left} == {name[0] for name in pinned}
    assert cache.pins.size_in_bytes() == sum(
        LARGE if letter.isupper() else SMALL for letter in {name[0] for name in pinned}
    )
    cache.close()


def test_clearing_leaves_what_is_pinned_until_that_is_forgotten(cache: BlockCache) -> None:
    keep(cache, *ITEMS)
    pinning.pin(cache, SERVER, ITEMS[:2])

    maintenance.clear(cache)
    left = here(cache, ITEMS)
    pinning.forget(cache)
    maintenance.clear(cache)

    assert left == ["small", "large"]
    assert here(cache, ITEMS) == []
    assert cache.pins.datasets() == []


@pytest.fixture
def damaged(cache: BlockCache, tmp_path: Path) -> BlockCache:
    """A cache whose record of what is pinned cannot be read."""
    pinning.pin(cache, SERVER, ITEMS[:2])
    keep(cache, *ITEMS[:2])
    cache.close()
    for path in (tmp_path / "blocks").glob("pins.db*"):
        path.unlink() if path.suffix != ".db" else path.write_bytes(b"no database" * 1000)
    cache.open()
    return cache


def test_record_that_cannot_be_read_is_told_and_costs_nothing_that_is_pinned(
    damaged: BlockCache,
) -> None:
    keep(damaged, *ITEMS[2:])
    damaged.evict(EVERYTHING)

    assert here(damaged, ITEMS) == ["small", "large"]
    with pytest.raises(LocalDiskError, match=r"pins\.db: what is pinned cannot be read"):
        damaged.pins.datasets()
    with pytest.raises(LocalDiskError, match=r"pins\.db: what is pinned cannot be read"):
        pinning.pin(damaged, SERVER, ITEMS[2:])


def test_record_of_a_newer_version_is_left_alone(cache: BlockCache, tmp_path: Path) -> None:
    pinning.pin(cache, SERVER, ITEMS[:1])
    cache.close()
    database = sqlite3.connect(tmp_path / "blocks/pins.db")
    database.execute(f"PRAGMA user_version = {pins.FORMAT + 1}")
    database.close()
    cache.open()

    with pytest.raises(LocalDiskError, match="newer version"):
        pinning.pin(cache, SERVER, ITEMS[1:])
    keep(cache, *ITEMS)

    assert len(here(cache, ITEMS)) == 4


def test_item_that_is_refused_is_not_pinned(cache: BlockCache) -> None:
    pinning.pin(cache, SERVER, [dataclasses.replace(ITEMS[0], is_refused=True)])

    assert cache.pins.datasets() == []


def test_item_of_more_blocks_than_any_cache_has_is_not_pinned(cache: BlockCache) -> None:
    pinning.pin(cache, SERVER, [item("huge", 2**63 - 1), ITEMS[0]])

    assert [each.relpath for each in cache.pins.items()] == ["small"]
    assert maintenance.room(cache).pinned == SMALL


def test_block_that_is_moved_onto_another_stays_pinned(cache: BlockCache) -> None:
    """It was kept under its item's key, and has the hash of a block of an item not pinned."""
    own = item("own", LARGE)
    pinning.pin(cache, SERVER, [own])
    block = block_of(own, 0)
    as_own, as_hashed = BlockKey(own.key, 0), BlockKey.of_hash(block_hash(block.data))
    cache.store([(as_own, block)], {as_own: as_own})
    cache.store([(as_hashed, MemoryBlock(block.data))], {as_hashed: BlockKey("another", 0)})

    cache.move(as_own, as_hashed, block.serial)
    cache.evict(EVERYTHING)

    assert cache.present([as_own, as_hashed]) == [False, True]
