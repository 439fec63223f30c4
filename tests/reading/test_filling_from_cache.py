"""Missing blocks that the cache has: counted, read ahead on the disk, hashed as others are."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dserverfs.base.items import BLOCK_SIZE, Run
from dserverfs.base.retry import Deadline
from dserverfs.reading import block_filling
from dserverfs.reading.cache.blocks import Block, FileBlock
from dserverfs.remote.objects import Source
from tests.support.editing import wait_until
from tests.support.faulty_store import FaultyStore, faulty_store
from tests.support.patience import LATE_S
from tests.support.reading_world import CONTENT, World


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    with faulty_store(CONTENT) as store:
        yield store


@pytest.fixture
def world(store: FaultyStore, tmp_path: Path) -> Iterator[World]:
    """A reader whose cache has the first four blocks."""
    first = World(store, tmp_path / "blocks")
    obtain(first, *range(4))
    first.reader.flush()
    first.close()
    world = World(store, tmp_path / "blocks")
    yield world
    world.close()


def obtain(world: World, *indices: int) -> list[Block]:
    filler, content = world.reader.filler, world.content()
    return [filler.obtain(content, index, Deadline(LATE_S)) for index in indices]


def test_bytes_are_counted_where_they_came_from(world: World) -> None:
    counting = world.reader.filler._parts.hashing.counting
    obtain(world, 0, 3)
    assert counting.counts.from_cache == 2 * BLOCK_SIZE

    obtain(world, 0, 4)
    world.reader.flush()

    assert counting.counts.from_cache == 2 * BLOCK_SIZE
    assert counting.counts.received == BLOCK_SIZE


@pytest.mark.parametrize(("run", "expected"), [(Run(0, 1), 0), (Run(0, 2), 2), (Run(2, 4), 2)])
def test_run_is_read_ahead_by_the_kernel_and_a_single_block_is_not(
    world: World, monkeypatch: pytest.MonkeyPatch, run: Run, expected: int
) -> None:
    read = list[Block]()

    def note(block: FileBlock) -> None:
        read.append(block)

    monkeypatch.setattr(FileBlock, "read_ahead", note)

    world.reader.filler.request_blocks(world.content(), run)
    world.reader.filler.flush()

    assert len(read) == expected


def test_hot_blocks_in_files_are_read_ahead_by_the_kernel(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: queue.SimpleQueue[Sequence[Block]] = queue.SimpleQueue()
    monkeypatch.setattr(block_filling, "read_ahead", told.put)
    held = world.reader.flight.open(world.content(), None)
    in_files = obtain(world, 0, 1)
    obtain(world, 4)
    assert not isinstance(held[4], FileBlock), "in memory"

    world.reader.filler.request_ahead(world.content(), Run(4, 1))
    world.reader.filler.request_ahead(world.content(), Run(0, 2))

    assert told.get(timeout=LATE_S) == in_files


@pytest.mark.parametrize("is_whole", [True, False])
def test_blocks_of_the_cache_are_taken_for_what_they_were_kept_as(
    world: World, store: FaultyStore, tmp_path: Path, is_whole: bool
) -> None:
    if is_whole:
        obtain(world, *range(6))
        world.reader.flush()
    again = World(store, tmp_path / "blocks")

    obtain(again, 0, 1)

    assert again.reader.hashes.is_unverified(again.content()) is not is_whole
    again.close()


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 2, 4, 5, 3, 1]])
def test_item_is_verified_in_whatever_order_its_blocks_come(world: World, order: list[int]) -> None:
    assert not world.reader.hashes.is_verified(world.content())

    obtain(world, *order)

    wait_until(lambda: world.reader.hashes.is_verified(world.content()))


def test_item_that_is_distrusted_comes_from_the_store_itself(world: World) -> None:
    content, other = world.content(), world.content(key="other")

    world.reader.filler.distrust(content)

    ranges = world.reader.ranges
    assert (ranges._source(content), ranges._source(other)) == (Source.STORE, Source.NEAREST)
