"""Small items that are handed on: all their bytes, compared, or none."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.base.hashes import Policy
from dserverfs.base.items import ItemContent
from dserverfs.base.model import Identifier
from dserverfs.reading.open_item import OpenItem
from dserverfs.reading.small_items import SMALL_BYTES, is_small
from tests.support.faulty_store import faulty_store
from tests.support.reading_world import DATASET, World, wrong_bytes

CONTENT = b"small " * 700


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with faulty_store(CONTENT) as store:
        made = World(store, tmp_path / "blocks")
        yield made
        made.close()


def item(key: str = "key", hash_function: str = "md5sum_hexdigest") -> ItemContent:
    return ItemContent(
        key=key,
        dataset=DATASET,
        identifier=Identifier(f"{key:0>40}"),
        size_in_bytes=len(CONTENT),
        hash_function=hash_function,
        hash=hashlib.md5(CONTENT).hexdigest(),
        neighbours=lambda limit: [],
    )


def read(world: World, content: ItemContent, **limits: object) -> None:
    reader = world.new_reader(**limits)
    assert OpenItem(reader, content).read(0, len(CONTENT)) == CONTENT
    reader.flush()
    reader.close()


def test_bytes_are_from_memory_or_the_cache_and_nothing_is_fetched(world: World) -> None:
    assert world.reader.small.compared([item()]) == [None]
    assert OpenItem(world.reader, item()).read(0, len(CONTENT)) == CONTENT
    asked = len(world.store.requests)

    assert world.reader.small.compared([item()]) == [CONTENT]
    world.reader.flush()
    world.hot.clear()
    assert world.reader.small.compared([item(), item("of the same hash")]) == [CONTENT] * 2
    assert len(world.store.requests) == asked


@pytest.mark.parametrize("verify", [*Policy])
def test_what_was_not_compared_is_not_handed_on(world: World, verify: Policy) -> None:
    """Nobody can compare an item whose hash function is not known."""
    unknown = item(hash_function="sha-of-the-future")
    reader = world.new_reader(verify=Policy.OFF)
    OpenItem(reader, unknown).read(0, len(CONTENT))
    reader.flush()
    other = world.new_reader(verify=verify)

    assert [each.small.compared([unknown]) for each in (reader, other)] == [[None], [None]]
    world.hot.clear()
    assert [each.small.compared([unknown]) for each in (reader, other)] == [[None], [None]]
    for each in (reader, other):
        each.close()


def test_wrong_bytes_that_were_kept_uncompared_are_not_handed_on(world: World) -> None:
    world.store.faults += [wrong_bytes]
    reader = world.new_reader(verify=Policy.OFF)
    assert OpenItem(reader, item()).read(0, len(CONTENT)) == bytes(len(CONTENT))
    reader.flush()

    assert reader.small.compared([item()]) == [None]
    reader.close()
    world.hot.clear()
    assert world.reader.small.compared([item()]) == [None]


@pytest.mark.expects_log("a damaged block is fetched again")
def test_damaged_block_is_not_handed_on(world: World, tmp_path: Path) -> None:
    read(world, item())
    world.hot.clear()
    with sqlite3.connect(tmp_path / "blocks/cache.db") as database:
        changed = database.execute("UPDATE Cache SET value = zeroblob(length(value))").rowcount
    database.close()
    assert changed == 1

    assert world.reader.small.compared([item()]) == [None]


def test_items_with_files_of_their_own_and_empty_ones_are_not_small() -> None:
    sizes = {0: False, 1: True, SMALL_BYTES - 1: True, SMALL_BYTES: False}
    for size, small in sizes.items():
        assert is_small(
            ItemContent("k", DATASET, Identifier("i"), size, "m", "0", lambda n: [])
        ) is (small)


def test_item_that_turns_out_wrong_is_told_to_those_who_watch(world: World) -> None:
    told: list[str] = []
    world.reader.drops.watch(lambda content: told.append(content.key))

    world.reader.drop(item())

    assert told == ["key"]
