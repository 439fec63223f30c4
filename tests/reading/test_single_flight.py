"""Who fetches a block, who waits for it, and what happens to one that comes too late."""

from __future__ import annotations

import os
from concurrent.futures import Future

import pytest

from dserverfs.base.errors import DeadlineExceeded, IntegrityError, Unreachable
from dserverfs.base.items import BLOCK_SIZE, ItemContent, Run
from dserverfs.base.local_files import SharedFile
from dserverfs.base.retry import Deadline
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import Block, FileBlock, MemoryBlock
from dserverfs.reading.ranges import StaleResponse
from dserverfs.reading.single_flight import SingleFlight, wait_for
from tests.support.reading_world import CONTENT, World

pytest_plugins = ["tests.support.reading_fixtures"]

BLOCK = MemoryBlock(b"content of a block")


@pytest.fixture
def flight(world: World) -> SingleFlight:
    return world.reader.flight


def test_block_is_missing_for_one_only_and_all_wait_for_the_same(
    world: World, flight: SingleFlight
) -> None:
    content = world.content()

    first = flight.request(content, Run(0, 2))
    second = flight.request(content, Run(1, 2))

    assert [each.block_index for each in first.missing] == [0, 1]
    assert [each.block_index for each in second.missing] == [2]
    assert first.blocks[1] is second.blocks[0]


def test_settled_block_is_hot(world: World, flight: SingleFlight) -> None:
    content = world.content()
    (missing,) = flight.request(content, Run(0, 1)).missing

    flight.settle(content, missing, BLOCK, flight.map_of(content))

    assert missing.future.result(0) is BLOCK
    assert flight.request(content, Run(0, 1)) == ([BLOCK], [])
    assert not flight.is_awaited(content)


def test_block_that_comes_after_its_item_was_dropped_is_stale(
    world: World, flight: SingleFlight
) -> None:
    content = world.content()
    (missing,) = flight.request(content, Run(0, 1)).missing
    before = flight.map_of(content)

    world.reader.drop(content)

    with pytest.raises(StaleResponse):
        flight.settle(content, missing, BLOCK, before)
    assert not missing.future.done(), "it is fetched again for those who wait"
    flight.settle(content, missing, BLOCK, flight.map_of(content))
    assert missing.future.result(0) is BLOCK


def test_bytes_of_another_version_are_refused_until_the_item_is_dropped(
    world: World, flight: SingleFlight
) -> None:
    content = world.content()
    blocks = flight.map_of(content)
    flight.check_etag(content, blocks, '"one"')
    assert flight.etag(content) == '"one"'

    with pytest.raises(IntegrityError, match="changed while it was read"):
        flight.check_etag(content, blocks, '"two"')

    world.reader.drop(content)
    with pytest.raises(StaleResponse):
        flight.check_etag(content, blocks, '"one"')
    flight.check_etag(content, flight.map_of(content), '"two"')


@pytest.mark.parametrize("is_awaited", [False, True])
def test_read_ahead_ends_with_the_last_reader_unless_somebody_waits(
    world: World, flight: SingleFlight, is_awaited: bool
) -> None:
    content = world.content()
    hot = [flight.open(content, None) for _ in range(2)]
    ahead = flight.request_ahead(content, Run(0, 1))
    if is_awaited:
        flight.request(content, Run(0, 1))

    flight.close(content, hot[0], None)
    assert flight.still_wanted(content, ahead.missing) == ahead.missing
    flight.close(content, hot[1], None)

    assert flight.still_wanted(content, ahead.missing) == (ahead.missing if is_awaited else [])


def test_block_that_did_not_come_in_time_fails_at_once_when_it_is_asked_for_again(
    world: World, flight: SingleFlight
) -> None:
    content = world.content()
    requested = flight.request(content, Run(0, 1))

    flight.abandon(content, requested.missing, DeadlineExceeded("too slow"))

    (future,) = requested.blocks
    assert isinstance(future, Future)
    assert isinstance(future.exception(0), DeadlineExceeded)
    with pytest.raises(DeadlineExceeded):
        flight.request(content, Run(0, 1))
    assert flight.request(content, Run(1, 1)).missing


def in_the_cache(world: World, content: ItemContent, index: int) -> MemoryBlock:
    """Store a block in the cache alone, uncompared."""
    block = MemoryBlock(CONTENT[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
    world.cache.store([(BlockKey(content.key, index), block)])
    return block


def test_block_is_found_wherever_it_is(world: World, flight: SingleFlight) -> None:
    content = world.content()
    (missing,) = flight.request(content, Run(0, 1)).missing
    flight.settle(content, missing, BLOCK, flight.map_of(content))
    flight.take_out(content, 0)
    announced = flight.find(content, 0), flight.find_uncompared(content, 0)
    world.hot.add(BlockKey(content.key, 1), BLOCK)
    hot = flight.find(content, 1), flight.find_uncompared(content, 1)
    stored = in_the_cache(world, content, 2)

    assert [*announced, *hot] == [BLOCK] * 4
    for find in (flight.find, flight.find_uncompared):
        block = find(content, 2)
        assert block is not None
        assert block.serial == stored.serial
        assert find(content, 3) is None


def test_block_is_coming_if_it_is_here_or_under_way(world: World, flight: SingleFlight) -> None:
    content = world.content()
    flight.request_ahead(content, Run(0, 1))
    world.hot.add(BlockKey(content.key, 1), BLOCK)
    in_the_cache(world, content, 2)

    assert [flight.is_coming(content, index) for index in range(4)] == [True, True, True, False]


def test_block_on_its_way_to_the_disk_is_hot_again_when_it_is_asked_for(
    world: World, flight: SingleFlight
) -> None:
    content = world.content()
    (missing,) = flight.request(content, Run(0, 1)).missing
    flight.settle(content, missing, BLOCK, flight.map_of(content))
    assert flight.take_out(content, 0) is BLOCK
    assert flight.take_out(content, 0) is None

    assert flight.request(content, Run(0, 1)) == ([BLOCK], [])

    assert flight.take_out(content, 0) is BLOCK


@pytest.mark.parametrize("row", [0, 7])
def test_block_is_announced_to_the_writer_unless_the_cache_has_it(
    world: World, flight: SingleFlight, row: int
) -> None:
    content = world.content()
    block = MemoryBlock(b"content", row)
    (missing,) = flight.request(content, Run(0, 1)).missing

    flight.settle(content, missing, block, flight.map_of(content))

    waiting = world.reader._writer.waiting(BlockKey(content.key, 0))
    assert waiting is (None if row else block)


def test_use_of_a_block_is_noted_once_since_it_was_last_counted(
    world: World, flight: SingleFlight, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[Block] = []
    monkeypatch.setattr(world.cache, "note_use", noted.append)
    content, block = world.content(), MemoryBlock(b"content")
    world.hot.add(BlockKey(content.key, 0), block)

    for _ in range(2):
        flight.request(content, Run(0, 1))
        flight.note_use(block)
    assert (noted, block.used) == ([block], True)
    block.used = False
    flight.note_use(block)

    assert noted == [block, block]


def test_readers_that_are_open_are_told_of_a_drop(world: World, flight: SingleFlight) -> None:
    content = world.content()
    told: list[str] = []
    calls = [lambda name=name: told.append(name) for name in ("first", "second")]
    blocks = [flight.open(content, call) for call in calls]
    silent = flight.open(content, None)
    flight.close(content, blocks[0], calls[0])
    flight.close(content, silent, None)

    for tell in flight.drop(content):
        tell()

    assert told == ["second"]
    assert blocks[1].readers == 1
    assert flight.drop(content) == []


def test_closed_item_of_several_blocks_keeps_no_memory_for_what_is_on_the_disk(
    world: World, flight: SingleFlight
) -> None:
    several, one = world.content(), world.content(BLOCK_SIZE, key="one block")
    opened = SharedFile(os.open("/dev/null", os.O_RDONLY))
    file = FileBlock(opened, 0, 7, b"", bytearray(1))
    for content in (several, one):
        blocks = flight.open(content, None)
        block = MemoryBlock(b"content")
        world.hot.add(BlockKey(content.key, 0), block)
        world.hot.attach_file(BlockKey(content.key, 0), file)

        flight.close(content, blocks, None)

        assert (flight.take_out(content, 0) is file) == (content is several)


def test_read_ahead_of_an_item_that_was_dropped_is_left_to_its_new_readers(
    world: World, flight: SingleFlight
) -> None:
    content = world.content()
    before = flight.open(content, None)
    flight.drop(content)
    ahead = flight.request_ahead(content, Run(0, 1)).missing

    flight.close(content, before, None)

    assert flight.still_wanted(content, ahead) == ahead


@pytest.mark.parametrize("error", [Unreachable("cut off"), DeadlineExceeded("too slow")])
def test_only_what_took_too_long_fails_again_and_not_if_it_has_come_since(
    world: World, flight: SingleFlight, error: Exception
) -> None:
    content = world.content()
    flight.abandon(content, flight.request(content, Run(0, 2)).missing, error)
    world.hot.add(BlockKey(content.key, 0), BLOCK)

    assert flight.request(content, Run(0, 1)).blocks == [BLOCK]
    if isinstance(error, DeadlineExceeded):
        with pytest.raises(DeadlineExceeded):
            flight.request(content, Run(1, 1))
    else:
        assert flight.request(content, Run(1, 1)).missing


def test_reader_that_gave_up_fails_again_for_what_is_still_under_way(
    world: World, flight: SingleFlight
) -> None:
    content = world.content()
    flight.request(content, Run(1, 1))

    flight.give_up(content, Run(0, 3))

    assert flight.request(content, Run(0, 1)).missing
    assert flight.request(content, Run(2, 1)).missing
    with pytest.raises(DeadlineExceeded, match="does not answer in time"):
        flight.request(content, Run(1, 1))


def test_nothing_is_hot_after_the_end(world: World, flight: SingleFlight) -> None:
    content = world.content()
    world.hot.add(BlockKey(content.key, 0), BLOCK)

    flight.clear()

    assert flight.find(content, 0) is None


def test_future_is_waited_for_in_time(world: World) -> None:
    future: Future[int] = Future()
    future.set_result(5)
    assert wait_for(future, world.content(), Deadline(60.0)) == 5

    with pytest.raises(DeadlineExceeded, match="read took too long"):
        wait_for(Future(), world.content(), Deadline(0.001))
