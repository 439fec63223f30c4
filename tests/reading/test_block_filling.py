"""Blocks that are missing: what is asked of the store for them, and who gets what in the end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.errors import DserverfsError, IntegrityError
from dserverfs.base.items import BLOCK_SIZE, ItemContent, Run
from dserverfs.base.retry import Deadline
from dserverfs.reading import block_filling
from dserverfs.reading.cache.blocks import Block
from tests.support.faulty_store import FaultyStore, Handler, faulty_store, refuse
from tests.support.patience import LATE_S
from tests.support.reading_world import CONTENT, Hashes, World

FEW = Run(0, 4)


class Halt:
    """Holds an answer of the store back until it may go on."""

    def __init__(self) -> None:
        self.reached, self.may_go_on = threading.Event(), threading.Event()

    def __call__(self, handler: Handler) -> None:
        self.reached.set()
        assert self.may_go_on.wait(LATE_S)
        handler.serve()


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    with faulty_store(CONTENT) as store:
        yield store


@pytest.fixture
def worlds(store: FaultyStore, tmp_path: Path) -> Iterator[Any]:
    """Makes readers that share a cache, with hashes of blocks or without."""
    made: list[World] = []

    def make(hashes: Hashes | None = None) -> World:
        more: dict[str, Any] = {} if hashes is None else {"block_hashes": hashes}
        made.append(World(store, tmp_path / "blocks", **more))
        return made[-1]

    yield make
    for world in made:
        world.close()


def ranges(store: FaultyStore) -> list[str]:
    return [request["Range"].removeprefix("bytes=") for request in store.requests]


def bytes_of(blocks: list[Block | Future[Block]]) -> list[bytes | None]:
    """Return the bytes of each block; None for one that failed."""
    found: list[bytes | None] = []
    for each in blocks:
        try:
            block = each.result(LATE_S) if isinstance(each, Future) else each
            found.append(bytes(block.read(0, BLOCK_SIZE)))
        except DserverfsError:
            found.append(None)
    return found


def pieces(content: bytes, run: Run = FEW) -> list[bytes | None]:
    starts = range(run.first * BLOCK_SIZE, (run.first + run.length) * BLOCK_SIZE, BLOCK_SIZE)
    return [content[start : start + BLOCK_SIZE] for start in starts]


def received(world: World) -> int:
    """Return how many bytes came from the store."""
    return world.reader.filler._parts.hashing.counting.counts.received


# What is asked of the store


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (Run(0, 1), f"0-{BLOCK_SIZE - 1}"),
        (Run(2, 3), f"{2 * BLOCK_SIZE}-{5 * BLOCK_SIZE - 1}"),
        (Run(4, 2), f"{4 * BLOCK_SIZE}-{len(CONTENT) - 1}"),
        (Run(5, 1), f"{5 * BLOCK_SIZE}-{len(CONTENT) - 1}"),
    ],
)
def test_run_is_one_range(store: FaultyStore, worlds: Any, run: Run, expected: str) -> None:
    world = worlds()

    assert bytes_of(world.reader.filler.request_blocks(world.content(), run)) == pieces(
        CONTENT, run
    )

    assert ranges(store) == [expected]


def test_blocks_that_are_here_are_asked_of_nobody_and_the_others_in_runs(
    store: FaultyStore, worlds: Any
) -> None:
    first = worlds()
    bytes_of(first.reader.filler.request_blocks(first.content(), Run(2, 1)))
    first.reader.flush()
    store.requests.clear()
    world = worlds()

    assert bytes_of(world.reader.filler.request_blocks(world.content(), Run(0, 5))) == pieces(
        CONTENT, Run(0, 5)
    )

    assert ranges(store) == [
        f"0-{2 * BLOCK_SIZE - 1}",
        f"{3 * BLOCK_SIZE}-{5 * BLOCK_SIZE - 1}",
    ]
    assert received(world) == 4 * BLOCK_SIZE


@pytest.mark.parametrize("has_hashes", [True, False])
def test_later_ranges_are_of_the_first_version_unless_each_block_is_compared(
    store: FaultyStore, worlds: Any, has_hashes: bool
) -> None:
    world = worlds(Hashes(CONTENT) if has_hashes else None)
    for number in (0, 2):
        bytes_of(world.reader.filler.request_blocks(world.content(), Run(number, 1)))

    asked = [request.get("If-Match") for request in store.requests]
    assert asked == [None, None if has_hashes else store.etag]
    store.etag = '"two"'
    last = bytes_of(world.reader.filler.request_blocks(world.content(), Run(3, 1)))
    assert last == (pieces(CONTENT, Run(3, 1)) if has_hashes else [None])


@pytest.mark.parametrize("count", [1, 5, 6])
def test_what_is_read_ahead_comes_in_requests_of_a_bounded_length(
    store: FaultyStore, worlds: Any, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(block_filling, "MAX_RUN", 2)
    world = worlds()
    held = world.reader.flight.open(world.content(), None)

    world.reader.filler.request_ahead(world.content(), Run(0, count))
    world.reader.filler.flush()

    ends = [min(start + 2, count) * BLOCK_SIZE for start in range(0, count, 2)]
    assert sorted(ranges(store), key=lambda text: int(text.partition("-")[0])) == [
        f"{start * BLOCK_SIZE}-{min(end, len(CONTENT)) - 1}"
        for start, end in zip(range(0, count, 2), ends, strict=True)
    ]
    assert {*held} == {*range(count)}


# What is dropped, or not wanted any more


@pytest.mark.parametrize("has_hashes", [True, False])
def test_block_of_an_item_that_is_dropped_meanwhile_is_fetched_anew(
    store: FaultyStore, worlds: Any, has_hashes: bool
) -> None:
    hashes = Hashes(CONTENT)
    world = worlds(hashes if has_hashes else None)
    content = world.content()
    if has_hashes:
        world.reader.pages.obtain(content, 0)

    def drop_and_serve(handler: Handler) -> None:
        world.reader.drop(content)
        handler.serve()

    store.faults = [drop_and_serve, drop_and_serve]

    block = world.reader.filler.obtain(content, 1, Deadline(LATE_S))

    assert bytes(block.read(0, BLOCK_SIZE)) == pieces(CONTENT)[1]
    assert len(store.requests) == 3
    assert world.reader.flight.map_of(content)[1] is block


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("when", ["before", "between"])
def test_rest_of_a_run_that_nobody_wants_any_more_is_not_fetched(
    store: FaultyStore, worlds: Any, asked: bool, when: str
) -> None:
    world = worlds()
    content, flight = world.content(), world.reader.flight
    held = flight.open(content, None)
    futures = flight.request_ahead(content, Run(0, 5))
    reading = flight.request(content, Run(0, 1)).blocks if asked else []

    def close(*_: object) -> None:
        flight.close(content, held, None)

    def close_and_serve(handler: Handler) -> None:
        close()
        handler.serve()

    if when == "before":
        store.faults = [close_and_serve]
    else:
        futures.missing[0].future.add_done_callback(close)
    world.reader.filler.fetch(content, futures.missing)
    world.reader.flush()

    assert len(store.requests) <= 1 + (when == "before" and asked)
    handed = asked or when == "between"
    assert bytes_of(reading) == pieces(CONTENT)[: len(reading)]
    assert received(world) == BLOCK_SIZE * handed
    assert world.reader.held([content]) == [BLOCK_SIZE * handed]


def test_run_that_nobody_wants_when_its_turn_comes_is_not_asked_for(
    store: FaultyStore, worlds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_filling, "AHEAD_THREADS", 1)
    world = worlds()
    content, other = world.content(), world.content(key="other")
    halt = Halt()
    store.faults = [halt]
    kept = world.reader.flight.open(content, None)
    world.reader.filler.request_ahead(content, Run(0, 1))
    assert halt.reached.wait(LATE_S)
    held = world.reader.flight.open(other, None)
    world.reader.filler.request_ahead(other, FEW)
    world.reader.flight.close(other, held, None)
    halt.may_go_on.set()
    world.reader.filler.flush()

    assert ranges(store) == [f"0-{BLOCK_SIZE - 1}"]
    assert {*kept} == {0}


# Errors


@pytest.mark.expects_log("a fault of ours while reading")
def test_fault_of_ours_is_told_to_the_reader_and_not_remembered(worlds: Any) -> None:
    world = worlds()

    def fail(*_: object) -> Any:
        raise ZeroDivisionError("ours")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.reader.cached, "find_many", fail)
        blocks = world.reader.filler.request_blocks(world.content(), FEW)
        for each in blocks:
            assert isinstance(each, Future)
            with pytest.raises(ZeroDivisionError):
                each.result(LATE_S)
    world.reader.filler.flush()

    assert bytes_of(world.reader.filler.request_blocks(world.content(), FEW)) == pieces(CONTENT)


def test_error_of_the_store_is_that_of_all_blocks_that_did_not_come(
    store: FaultyStore, worlds: Any
) -> None:
    world = worlds()
    store.faults = [refuse(403, "AccessDenied")] * 2

    blocks = world.reader.filler.request_blocks(world.content(), FEW)

    assert bytes_of(blocks) == [None] * 4
    assert bytes_of(world.reader.filler.request_blocks(world.content(), FEW)) == pieces(CONTENT)


@pytest.mark.expects_log("does not have its hash; fetched once more")
@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_wrong_block_is_an_error_for_its_readers_alone(
    store: FaultyStore, worlds: Any, wrong: int
) -> None:
    hashes = Hashes(CONTENT)
    world = worlds(hashes)
    store.content = damaged(CONTENT, wrong)

    blocks = world.reader.filler.request_blocks(world.content(), FEW)

    expected = pieces(CONTENT)
    expected[wrong] = None
    assert bytes_of(blocks) == expected
    assert len(store.requests) == 2 + (wrong < 3), "once more, and the rest"
    world.reader.pages.wait()
    assert hashes.asked == 2, "or was it the hash?"
    store.content = CONTENT
    (again,) = world.reader.filler.request_blocks(world.content(), Run(wrong, 1))
    assert bytes_of([again]) == [pieces(CONTENT)[wrong]]


def damaged(content: bytes, block: int) -> bytes:
    changed = bytearray(content)
    changed[block * BLOCK_SIZE + 5] ^= 1
    return bytes(changed)


def test_item_of_another_version_is_dropped_before_its_readers_are_told(
    store: FaultyStore, worlds: Any
) -> None:
    """Nothing of it may be mixed with what the next reader fetches."""
    world = worlds()
    content = world.content()
    seen: queue.SimpleQueue[int] = queue.SimpleQueue()
    assert bytes_of(world.reader.filler.request_blocks(content, Run(0, 2))) == pieces(
        CONTENT, Run(0, 2)
    )
    world.reader.flush()
    assert world.reader.held([content]) == [2 * BLOCK_SIZE]
    store.etag = '"two"'

    (block,) = world.reader.filler.request_blocks(content, Run(3, 1))
    assert isinstance(block, Future)
    block.add_done_callback(lambda done: seen.put(world.reader.held([content])[0]))
    with pytest.raises(IntegrityError):
        block.result(LATE_S)

    assert seen.get(timeout=LATE_S) == 0
    assert bytes_of(world.reader.filler.request_blocks(content, FEW)) == pieces(CONTENT)


# Hashes that come later


def copied(store: FaultyStore, worlds: Any) -> tuple[World, ItemContent]:
    """Have all but the last block in the cache by their hashes, and an item that has them too."""
    first = worlds(Hashes(CONTENT))
    bytes_of(first.reader.filler.request_blocks(first.content(), Run(0, 6)))
    first.reader.flush()
    store.content = damaged(CONTENT, 5)
    store.requests.clear()
    world = worlds(Hashes(store.content))
    return world, world.content(key="another")


def test_blocks_whose_hashes_came_with_the_first_one_are_taken_from_the_cache(
    store: FaultyStore, worlds: Any
) -> None:
    world, content = copied(store, worlds)

    blocks = bytes_of(world.reader.filler.request_blocks(content, Run(0, 6)))

    assert blocks == pieces(store.content, Run(0, 6))
    assert received(world) == BLOCK_SIZE + len(CONTENT) - 5 * BLOCK_SIZE, "the first and the last"


@pytest.mark.parametrize("run", [FEW, Run(2, 1)])
def test_blocks_whose_hashes_came_are_read_though_the_store_fails(
    store: FaultyStore, worlds: Any, run: Run
) -> None:
    world, content = copied(store, worlds)
    store.faults = [refuse(403, "AccessDenied")] * 2

    blocks = bytes_of(world.reader.filler.request_blocks(content, run))

    assert blocks == pieces(CONTENT, run)
    assert received(world) == 0


def test_run_whose_hashes_are_known_is_one_range_and_fails_as_others_do(
    store: FaultyStore, worlds: Any
) -> None:
    world = worlds(Hashes(CONTENT))
    content = world.content()
    world.reader.pages.obtain(content, 0)
    store.faults = [refuse(403, "AccessDenied")] * 2
    assert bytes_of(world.reader.filler.request_blocks(content, FEW)) == [None] * 4
    store.requests.clear()

    assert bytes_of(world.reader.filler.request_blocks(content, FEW)) == pieces(CONTENT)

    assert ranges(store) == [f"0-{4 * BLOCK_SIZE - 1}"]


# The end


def test_flush_waits_for_all_that_is_under_way(store: FaultyStore, worlds: Any) -> None:
    world = worlds()
    halt = Halt()
    store.faults = [halt]
    held = world.reader.flight.open(world.content(), None)
    world.reader.filler.request_ahead(world.content(), FEW)
    assert halt.reached.wait(LATE_S)
    flushing = threading.Thread(target=world.reader.filler.flush)
    flushing.start()
    flushing.join(0.05)
    assert flushing.is_alive()
    halt.may_go_on.set()
    flushing.join(LATE_S)

    assert {*held} == {0, 1, 2, 3}
    world.reader.filler.flush()


@pytest.mark.parametrize("pool", ["DEMAND_THREADS", "AHEAD_THREADS"])
def test_end_waits_for_nobody_and_what_is_queued_fails(
    store: FaultyStore, worlds: Any, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    monkeypatch.setattr(block_filling, pool, 1)
    world = worlds()
    filler, flight = world.reader.filler, world.reader.flight
    halt = Halt()
    store.faults = [halt]
    contents = [world.content(key=f"key{number}") for number in range(2)]
    ask = filler.request_blocks if pool == "DEMAND_THREADS" else filler.request_ahead
    for content in contents:
        ask(content, Run(0, 1))
        assert halt.reached.wait(LATE_S)
    waiting = [flight.request(content, Run(0, 1)).blocks[0] for content in contents]

    filler.close()

    assert not waiting[0].done()
    assert bytes_of([waiting[1]]) == [None]
    late = flight.request(world.content(key="late"), Run(0, 1))
    filler.fetch(world.content(key="late"), late.missing)
    assert bytes_of(late.blocks) == [None]
    halt.may_go_on.set()
    assert bytes_of([waiting[0]]) == pieces(CONTENT)[:1]
    filler.flush()
    assert len(store.requests) == 1
