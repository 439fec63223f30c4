"""Who fetches a block, who waits for it, and what happens to one that comes too late."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from dserverfs.base.errors import DeadlineExceeded, IntegrityError
from dserverfs.base.items import Run
from dserverfs.reading.cache.blocks import MemoryBlock
from dserverfs.reading.ranges import StaleResponse
from dserverfs.reading.single_flight import SingleFlight
from tests.support.reading_world import World

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
