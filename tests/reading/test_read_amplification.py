"""How much is fetched for what is read: about as much, whatever is read of an item."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.base.items import BLOCK_SIZE, Run
from dserverfs.reading.open_item import OpenItem
from tests.reading.test_item_prefetch import Directory
from tests.support.faulty_store import FaultyStore, Handler, faulty_store
from tests.support.patience import LATE_S
from tests.support.reading_world import World, reading_world

BLOCKS = 60
CONTENT = bytes(BLOCKS * BLOCK_SIZE)
PIECE = 128 * 1024  # as the kernel asks for


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with reading_world(CONTENT, tmp_path / "blocks") as world:
        yield world


def fetched_blocks(store: FaultyStore) -> list[int]:
    blocks: list[int] = []
    for request in store.requests:
        first, last = request["Range"].removeprefix("bytes=").split("-")
        blocks += range(int(first) // BLOCK_SIZE, int(last) // BLOCK_SIZE + 1)
    return blocks


def read(item: OpenItem, start: int, end: int) -> None:
    for offset in range(start, end, PIECE):
        size = min(PIECE, end - offset)
        assert item.read(offset, size) == CONTENT[offset : offset + size]


@pytest.mark.parametrize(
    ("read_bytes", "most"),
    [(4096, 1), (PIECE, 1), (BLOCK_SIZE // 2, 2), (BLOCK_SIZE, 3), (4 * BLOCK_SIZE, 12)],
)
@pytest.mark.parametrize("start", [0, 20 * BLOCK_SIZE])
def test_beginning_of_a_file_has_three_times_as_much_fetched_at_most(
    world: World, start: int, read_bytes: int, most: int
) -> None:
    item = OpenItem(world.reader, world.content(len(CONTENT)))

    read(item, start, start + read_bytes)
    world.reader.flush()

    assert len(fetched_blocks(world.store)) <= most


def test_each_read_at_random_has_one_block_fetched(world: World) -> None:
    places = random.Random(1).sample(range(0, BLOCKS, 3), 15)
    content = world.content(len(CONTENT))

    for place in places:
        item = OpenItem(world.reader, content)
        assert item.read(place * BLOCK_SIZE + 5000, 4096) == bytes(4096)
    world.reader.flush()

    assert sorted(fetched_blocks(world.store)) == sorted(places)


def test_file_that_is_read_to_its_end_is_fetched_once_in_large_requests(world: World) -> None:
    read(OpenItem(world.reader, world.content(len(CONTENT))), 0, len(CONTENT))

    assert sorted(fetched_blocks(world.store)) == [*range(BLOCKS)]
    assert len(world.store.requests) <= 12


def test_headers_of_many_large_files_have_one_block_of_each_fetched(tmp_path: Path) -> None:
    with faulty_store(bytes(8 * BLOCK_SIZE)) as store:
        directory = Directory(store, tmp_path / "blocks")
        directory.size = 8 * BLOCK_SIZE
        for place in range(20):
            item = OpenItem(directory.reader, directory.item(place))
            assert item.read(0, PIECE) == bytes(PIECE)
            item.close()
        directory.reader.flush()

        blocks = fetched_blocks(store)
        directory.close()
    assert len(blocks) <= 20 + 20, "those and the beginnings of the next"
    assert set(blocks) == {0}


class Gate:
    """Answers a request ahead when it is opened, and says that it came."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.opened = threading.Event()

    def __call__(self, handler: Handler) -> None:
        self.arrived.set()
        assert self.opened.wait(LATE_S)
        handler.serve()


@pytest.mark.parametrize("others", [0, 1])
def test_what_is_fetched_ahead_is_left_when_the_last_closes_the_file(
    world: World, others: int
) -> None:
    gates = [Gate() for _ in range(3)]  # as many as fetch ahead at a time
    items = [OpenItem(world.reader, world.content(len(CONTENT))) for _ in range(1 + others)]
    read(items[0], 0, BLOCK_SIZE)
    world.reader.flush()
    before = len(fetched_blocks(world.store))
    world.store.faults = [*gates]
    content = world.content(len(CONTENT))
    for first in (20, 30, 40, 50):
        world.reader.filler.request_ahead(content, Run(first, 4))
    assert all(gate.arrived.wait(LATE_S) for gate in gates)

    items[0].close()
    for gate in gates:
        gate.opened.set()
    world.reader.flush()

    # What was asked for is read to the end of its first block; the fourth waits in vain.
    ahead = fetched_blocks(world.store)[before:]
    assert len(ahead) == (16 if others else 12)
    again = OpenItem(world.reader, content)
    for block in (20, 21, 53, 52):
        assert again.read(block * BLOCK_SIZE, 10) == bytes(10)


def test_read_ahead_that_somebody_waits_for_is_fetched_though_the_file_is_closed(
    world: World,
) -> None:
    gate = Gate()
    item = OpenItem(world.reader, world.content(len(CONTENT)))
    world.store.faults = [gate]
    world.reader.filler.request_ahead(world.content(len(CONTENT)), Run(0, 3))
    assert gate.arrived.wait(LATE_S)

    (waiting,) = item.request_blocks(2 * BLOCK_SIZE, 10)
    item.close()
    gate.opened.set()

    assert hasattr(waiting, "result")
    assert bytes(waiting.result(LATE_S).read(0, 10)) == bytes(10)
