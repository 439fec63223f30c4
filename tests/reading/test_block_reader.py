"""Reading items: right bytes whatever the store does, each block fetched once."""

from __future__ import annotations

import os
import random
import tracemalloc
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from dserverfs.base import limits
from dserverfs.base.errors import (
    DserverfsError,
    IntegrityError,
    NotStored,
    ProtocolError,
    Unreachable,
)
from dserverfs.base.hashes import Policy
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.reading.open_item import OpenItem
from tests.support.faulty_store import (
    Fault,
    cut_after,
    ignore_range,
    refuse,
)
from tests.support.patience import LATE_S
from tests.support.reading_world import CONTENT, World, wrong_bytes

pytest_plugins = ["tests.support.reading_fixtures"]

EDGES = [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, len(CONTENT) - 1, len(CONTENT)]


@pytest.mark.parametrize("offset", EDGES)
@pytest.mark.parametrize("size", [1, 4096, BLOCK_SIZE, BLOCK_SIZE + 2, len(CONTENT) + 5])
def test_reply_is_exactly_what_was_asked_for(world: World, offset: int, size: int) -> None:
    item = OpenItem(world.reader, world.content())

    assert item.read(offset, size) == CONTENT[offset : offset + size]


def test_empty_item_is_read_without_a_request(world: World) -> None:
    assert OpenItem(world.reader, world.content(0)).read(0, 4096) == b""
    assert world.store.requests == []


def test_item_read_in_order_crosses_the_network_once_in_few_requests(world: World) -> None:
    item = OpenItem(world.reader, world.content())

    data = b"".join(item.read(start, 128 * 1024) for start in range(0, len(CONTENT), 128 * 1024))

    assert data == CONTENT
    ranges = [request["Range"] for request in world.store.requests]
    assert len(ranges) == len(set(ranges)) <= 5


def test_second_reader_and_second_process_fetch_nothing(world: World, tmp_path: Path) -> None:
    OpenItem(world.reader, world.content()).read(0, len(CONTENT))
    before = len(world.store.requests)
    world.reader.flush()
    again = World(world.store, tmp_path / "blocks")

    assert OpenItem(world.reader, world.content()).read(0, len(CONTENT)) == CONTENT
    assert OpenItem(again.reader, again.content()).read(0, len(CONTENT)) == CONTENT

    assert len(world.store.requests) == before
    again.close()


def test_fifty_readers_of_one_item_fetch_every_block_once(world: World) -> None:
    def read(seed: int) -> bool:
        item = OpenItem(world.reader, world.content())
        offsets = list(range(0, len(CONTENT), 64 * 1024))
        random.Random(seed).shuffle(offsets)
        return all(
            item.read(offset, 64 * 1024) == CONTENT[offset : offset + 64 * 1024]
            for offset in offsets
        )

    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(read, range(50)))

    fetched = [block for request in world.store.requests for block in blocks_of(request)]
    assert sorted(fetched) == list(range(6))


def blocks_of(request: dict[str, str]) -> range:
    first, last = request["Range"].removeprefix("bytes=").split("-")
    return range(int(first) // BLOCK_SIZE, int(last) // BLOCK_SIZE + 1)


@pytest.mark.parametrize(
    "faults",
    [
        [ignore_range],
        [cut_after(10)],
        [cut_after(BLOCK_SIZE + 10), cut_after(BLOCK_SIZE + 10)],
        [refuse(503, "SlowDown")],
        [refuse(500, "InternalError"), refuse(502, "BadGateway")],
        [refuse(403, "AccessDenied")],
    ],
)
def test_passing_fault_does_not_reach_the_reader(world: World, faults: list[Fault]) -> None:
    world.store.faults = [*faults]

    assert OpenItem(world.reader, world.content()).read(0, len(CONTENT)) == CONTENT


def test_expired_url_is_renewed_once_and_then_given_up(world: World) -> None:
    world.store.faults = [refuse(403, "AccessDenied")] * 2

    with pytest.raises(ProtocolError, match="AccessDenied"):
        OpenItem(world.reader, world.content()).read(4 * BLOCK_SIZE, 1)

    assert world.urls.forgotten == 2
    assert OpenItem(world.reader, world.content()).read(0, 10) == CONTENT[:10]


@pytest.mark.parametrize(
    ("fault", "error"),
    [(refuse(404, "NoSuchKey"), NotStored), (refuse(416, "InvalidRange"), IntegrityError)],
)
def test_lasting_fault_is_an_error_and_is_not_remembered(
    world: World, fault: Fault, error: type[DserverfsError]
) -> None:
    world.store.faults = [fault]

    with pytest.raises(error):
        OpenItem(world.reader, world.content()).read(4 * BLOCK_SIZE, 1)

    assert OpenItem(world.reader, world.content()).read(0, 10) == CONTENT[:10]


def test_object_of_another_size_than_the_manifest_says_gives_no_byte(world: World) -> None:
    with pytest.raises(IntegrityError):
        OpenItem(world.reader, world.content(len(CONTENT) - 1)).read(0, 10)


def test_object_that_changes_while_it_is_read_gives_no_mixture(world: World) -> None:
    item = OpenItem(world.reader, world.content())
    item.read(0, 10)
    world.store.etag = '"two"'

    with pytest.raises(IntegrityError):
        item.read(4 * BLOCK_SIZE, 10)


def test_store_that_is_gone_is_unreachable_but_cached_blocks_are_read(world: World) -> None:
    item = OpenItem(world.reader, world.content())
    item.read(0, 10)
    world.store.url = "http://127.0.0.1:1/bucket/key"

    assert item.read(0, BLOCK_SIZE) == CONTENT[:BLOCK_SIZE]
    with pytest.raises(Unreachable):
        item.read(4 * BLOCK_SIZE, 10)


@pytest.mark.expects_log("No space left")
def test_without_a_usable_cache_disk_bytes_are_right_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(fd: int, data: object, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)

    assert OpenItem(world.reader, world.content()).read(0, len(CONTENT)) == CONTENT
    assert (
        OpenItem(world.reader, world.content()).read(99, BLOCK_SIZE)
        == CONTENT[99 : 99 + BLOCK_SIZE]
    )


@pytest.mark.expects_log("fetched once more")
def test_wrong_bytes_of_a_small_item_are_fetched_once_more(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.store.content = CONTENT[:5000]
    world.store.faults = [wrong_bytes]

    assert OpenItem(world.reader, world.content(5000)).read(0, 9999) == CONTENT[:5000]
    assert "fetched once more" in caplog.text


@pytest.mark.expects_log("fetched once more")
def test_lastingly_wrong_bytes_of_a_small_item_are_never_handed_out(world: World) -> None:
    world.store.content = CONTENT[:5000]
    world.store.faults = [wrong_bytes, wrong_bytes]

    with pytest.raises(IntegrityError, match="the manifest says"):
        OpenItem(world.reader, world.content(5000)).read(0, 1)

    assert OpenItem(world.reader, world.content(5000)).read(0, 1) == CONTENT[:1]


def read_in_order(world: World) -> bytes:
    item = OpenItem(world.reader, world.content())
    return b"".join(item.read(start, 128 * 1024) for start in range(0, len(CONTENT), 128 * 1024))


@pytest.mark.expects_log("does not have the manifest's hash")
@pytest.mark.parametrize("wrong", [0, BLOCK_SIZE + 5, 3 * BLOCK_SIZE, len(CONTENT) - 1])
def test_item_read_whole_with_one_wrong_byte_fails_before_its_end(world: World, wrong: int) -> None:
    hash_of_right = world.content()
    damaged = bytearray(CONTENT)
    damaged[wrong] ^= 1
    world.store.content = bytes(damaged)
    item = OpenItem(world.reader, hash_of_right)

    # Which of two readers finds it, the one of this block or one ahead of it, is for the machine.
    with pytest.raises(IntegrityError, match=r"of the manifest|was read wrong"):
        list(map(item.read, range(0, len(CONTENT), BLOCK_SIZE), [BLOCK_SIZE] * 6))

    world.store.content = CONTENT
    assert read_in_order(world) == CONTENT


def test_without_verification_bytes_are_handed_out_as_they_come(
    world: World, tmp_path: Path
) -> None:
    content = world.content()
    world.store.content = bytes(len(CONTENT))
    reader = world.new_reader(verify=Policy.OFF)

    assert OpenItem(reader, content).read(0, len(CONTENT)) == bytes(len(CONTENT))

    reader.close()


def test_item_read_from_its_end_is_not_held_up(world: World) -> None:
    item = OpenItem(world.reader, world.content())

    for start in range(5 * BLOCK_SIZE, -1, -BLOCK_SIZE):
        assert item.read(start, BLOCK_SIZE) == CONTENT[start : start + BLOCK_SIZE]


def test_want_never_blocks_and_hands_out_futures(world: World) -> None:
    item = OpenItem(world.reader, world.content())

    wanted = item.request_blocks(BLOCK_SIZE - 5, 10)

    blocks = [entry.result(LATE_S) if isinstance(entry, Future) else entry for entry in wanted]
    assert bytes(item.cut(blocks, BLOCK_SIZE - 5, 10)) == CONTENT[BLOCK_SIZE - 5 : BLOCK_SIZE + 5]


def test_short_way_gives_the_same_bytes_as_the_long_one(world: World) -> None:
    item = OpenItem(world.reader, world.content())
    buffer = memoryview(bytearray(BLOCK_SIZE))
    assert item.read_nowait(4096, 4096, buffer) is None, "nothing is at hand yet"
    assert item.read(0, len(CONTENT)) == CONTENT
    chance = random.Random(2)
    short = 0
    for closed in (False, True):  # from memory, and from the cache's files
        if closed:
            world.reader.flush()
            item.close()
        for _ in range(300):
            offset, size = chance.randrange(len(CONTENT) + 10), chance.choice((1, 4096, BLOCK_SIZE))
            data = item.read_nowait(offset, size, buffer)
            if data is not None:
                assert bytes(data) == CONTENT[offset : offset + size]
                short += 1
        crossing = item.read_nowait(BLOCK_SIZE - 1, 2, buffer)
        assert crossing is None, "two blocks take the long way"
    assert short > 300


def test_short_way_hands_out_nothing_of_an_item_that_is_not_compared_yet(world: World) -> None:
    """All of it was asked for, and the comparison has not come to its end."""
    wrong = 2 * BLOCK_SIZE + 5
    content = world.content()
    item = OpenItem(world.reader, content)
    buffer = memoryview(bytearray(BLOCK_SIZE))
    assert item.read(0, wrong) == CONTENT[:wrong]
    world.reader.hashes.mark_unverified(content)
    for index in range(content.number_of_blocks):
        item.request_blocks(index * BLOCK_SIZE, 1)

    assert item.read_nowait(BLOCK_SIZE, 10, buffer) is None


def test_short_way_refuses_an_item_that_was_read_wrong(world: World) -> None:
    content = world.content()
    item = OpenItem(world.reader, content)
    buffer = memoryview(bytearray(BLOCK_SIZE))
    item.read(0, len(CONTENT))
    world.reader.drop(content)
    assert OpenItem(world.reader, content).read(0, len(CONTENT)) == CONTENT

    with pytest.raises(IntegrityError, match="open it again"):
        item.read_nowait(BLOCK_SIZE, 10, buffer)


def test_item_of_any_size_is_dropped_by_what_there_is_of_it(world: World) -> None:
    """A manifest may say 2**63: nothing is made for each block that there would be."""
    content = world.content(limits.MAX_SIZE_BYTES)
    tracemalloc.start()

    with pytest.raises(IntegrityError):
        OpenItem(world.reader, content).read(0, 1)
    world.reader.drop(content)

    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20 * BLOCK_SIZE


# What somebody else may read


def shared_by(item: OpenItem, index: int) -> set[int]:
    """Ask until nothing new is shared; return the blocks that were, each with its own bytes."""
    found: set[int] = set()
    for _ in range(20):
        shared = dict(item.shareable(index, 3))
        assert len(shared) <= 3
        assert index in shared or not shared
        for number, block in shared.items():
            at = number * BLOCK_SIZE
            assert bytes(block.read(0, BLOCK_SIZE)) == CONTENT[at : at + BLOCK_SIZE]
        found |= shared.keys()
    return found


def test_all_hot_blocks_in_files_are_shared_few_at_a_time(world: World) -> None:
    item = OpenItem(world.reader, world.content())
    item.read(0, len(CONTENT))
    assert shared_by(item, 1) == set(), "they are in memory"
    item.close()
    world.reader.flush()
    again = OpenItem(world.reader, world.content())
    again.read(0, len(CONTENT))
    with world.hot.lock:
        world.hot.spill_to_files(world.content().key)

    last = len(CONTENT) // BLOCK_SIZE  # it is small, and in no file
    assert [len(again.shareable(1, 3)) for _ in range(2)] == [1, 1], "one that is read once is not"
    assert shared_by(again, 1) == set(range(last))
    assert again.shareable(last, 3) == again.shareable(last + 1, 3) == ()
    world.reader.drops.drop(world.content())
    assert shared_by(again, 1) == set()
