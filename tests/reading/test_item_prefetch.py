"""Items read one after the other: the next ones are there before they are asked for."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dserverfs.base.errors import NotStored
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.base.model import Identifier
from dserverfs.reading.item_order import FIRST_WINDOW
from dserverfs.reading.open_item import OpenItem
from tests.support.faulty_store import Fault, Handler, faulty_store, refuse, stall
from tests.support.patience import LATE_S
from tests.support.reading_world import DATASET, LoneItem, World

CONTENT = b"0123456789" * 400
COUNT = 100


@functools.cache
def md5_of(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Directory(World):
    """Items side by side, no two alike."""

    size = len(CONTENT)

    def item(self, place: int) -> ItemContent:
        return LoneItem(
            key=f"key/{place}",
            dataset=DATASET,
            identifier=Identifier(f"{place:040x}"),
            size_in_bytes=self.size,
            hash_function="md5sum_hexdigest",
            hash=md5_of(self.store.content),
            neighbours=lambda limit: [],
            place=place,
            items_from=self.items_from,
        )

    def items_from(self, place: int, limit: int) -> Sequence[ItemContent]:
        return [self.item(each) for each in range(place, min(place + limit, COUNT))]

    def read(self, place: int) -> bytes:
        return OpenItem(self.reader, self.item(place)).read(0, 128 * 1024)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    with faulty_store(CONTENT) as store:
        directory = Directory(store, tmp_path / "blocks")
        yield directory
        directory.close()


def ahead(fault: Fault) -> Fault:
    """Do that to a request for a whole item, as only those made ahead are."""

    def only_ahead(handler: Handler) -> None:
        if "Range" in handler.headers:
            handler.store.faults.insert(0, only_ahead)
            handler.serve()
        else:
            fault(handler)

    return only_ahead


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + LATE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def test_items_read_in_order_are_right_and_each_is_fetched_once(directory: Directory) -> None:
    assert [directory.read(place) for place in range(COUNT)] == [CONTENT] * COUNT

    assert len(directory.store.requests) == COUNT


def test_next_items_are_fetched_before_they_are_asked_for(directory: Directory) -> None:
    directory.read(0)
    directory.read(1)

    wait_until(lambda: len(directory.store.requests) == 2 + FIRST_WINDOW)
    assert [directory.read(place) for place in range(2, 2 + FIRST_WINDOW // 2)] == [CONTENT] * (
        FIRST_WINDOW // 2
    )


def test_items_read_in_no_order_are_fetched_alone(directory: Directory) -> None:
    for place in (50, 3, 80, 20):
        directory.read(place)

    assert len(directory.store.requests) == 4


def test_items_that_were_fetched_ahead_are_cached(directory: Directory, tmp_path: Path) -> None:
    for place in range(COUNT):
        directory.read(place)
    directory.reader.close()
    directory.reader = Directory(directory.store, tmp_path / "blocks").reader

    assert [directory.read(place) for place in range(COUNT)] == [CONTENT] * COUNT
    assert len(directory.store.requests) == COUNT


def test_eight_readers_of_the_same_directory_fetch_each_item_once(directory: Directory) -> None:
    def read_all(_: int) -> bool:
        return all(directory.read(place) == CONTENT for place in range(COUNT))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read_all, range(8)))

    assert len(directory.store.requests) == COUNT


def wrong(handler: Handler) -> None:
    handler.answer(200, bytes(len(CONTENT)))


@pytest.mark.parametrize(
    "faults",
    [
        [refuse(403, "AccessDenied")] * 6,
        [refuse(503, "SlowDown")] * FIRST_WINDOW,
        [wrong] * 5,
        [refuse(404, "NoSuchKey"), wrong, refuse(500, "InternalError")],
    ],
)
def test_what_fails_ahead_is_fetched_for_those_who_ask(
    directory: Directory, faults: list[Fault]
) -> None:
    directory.read(0)
    directory.store.faults = [ahead(fault) for fault in faults]

    directory.read(1)
    wait_until(lambda: not directory.store.faults)

    assert [directory.read(place) for place in range(COUNT)] == [CONTENT] * COUNT


def test_item_that_is_gone_is_missing_and_the_others_are_read(directory: Directory) -> None:
    directory.store.faults = [ahead(refuse(404, "NoSuchKey"))] * FIRST_WINDOW
    directory.read(0)
    directory.read(1)
    wait_until(lambda: not directory.store.faults)

    directory.store.faults = [refuse(404, "NoSuchKey")]
    with pytest.raises(NotStored):
        directory.read(50)

    assert [directory.read(place) for place in range(COUNT)] == [CONTENT] * COUNT


def test_store_that_stalls_ahead_does_not_hold_up_another_item(directory: Directory) -> None:
    directory.read(0)
    directory.store.faults = [ahead(stall)] * FIRST_WINDOW
    directory.read(1)
    wait_until(lambda: not directory.store.faults)

    assert directory.read(90) == CONTENT


def test_closing_releases_those_who_wait_for_what_stalls(directory: Directory) -> None:
    directory.read(0)
    directory.store.faults = [ahead(stall)] * FIRST_WINDOW
    directory.read(1)
    wait_until(lambda: not directory.store.faults)
    waiting = OpenItem(directory.reader, directory.item(5)).request_blocks(0, 10)

    directory.reader.close()

    (entry,) = waiting
    assert hasattr(entry, "exception")
    assert entry.exception(LATE_S) is not None


def test_of_larger_items_the_beginnings_are_fetched_within_the_budget(
    directory: Directory,
) -> None:
    directory.store.content = bytes(3 * BLOCK_SIZE)
    directory.size = 3 * BLOCK_SIZE

    for place in (0, 1):
        OpenItem(directory.reader, directory.item(place)).read(0, 4096)

    wait_until(lambda: len(directory.store.requests) >= 2 + 8)
    assert all("Range" in request for request in directory.store.requests)
