"""Runs of blocks from a store that has moved, breaks off, or hands out what is wrong."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dserverfs.base import retry
from dserverfs.base.errors import (
    IntegrityError,
    NotConnected,
    ProtocolError,
    StorageRefused,
    Unreachable,
)
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.base.model import Dataset, Identifier
from dserverfs.base.retry import Deadline
from dserverfs.reading.cache_lookup import HashMismatch
from dserverfs.reading.ranges import FirstVersion, RangeFetcher, StaleResponse
from dserverfs.remote.objects import ByteRange, Storage
from dserverfs.remote.signed_urls import SignedURL
from tests.support.faulty_store import cut_after, faulty_store
from tests.support.reading_world import DATASET

CONTENT = bytes(range(256)) * 4096 * 3 + b"end"


class Urls:
    """Knows an old address, and signs for the new one when that was forgotten."""

    def __init__(self, old: str, new: str) -> None:
        self._url, self._new = old, new
        self.forgotten = 0

    def item_url(
        self,
        dataset: Dataset,
        identifier: Identifier,
        neighbours: Callable[[int], Sequence[Identifier]],
    ) -> SignedURL:
        return SignedURL(self._url, float("inf"))

    def forget_url(self, dataset: Dataset, identifier: Identifier, url: SignedURL) -> None:
        raise AssertionError("the store refused nothing")

    def forget_host(self, url: SignedURL) -> None:
        self.forgotten += 1
        self._url = self._new


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)


@pytest.fixture
def nowhere() -> str:
    """A URL of a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/bucket/key?X-Amz-Signature=secret"


def item_of(size: int) -> ItemContent:
    return ItemContent("key", DATASET, Identifier("a" * 40), size, "md5", "", lambda _: [])


def fetch(urls: Urls) -> bytes:
    content = item_of(len(CONTENT))
    storage = Storage()
    blocks: list[bytes] = []
    try:
        wanted = ByteRange(0, len(CONTENT), len(CONTENT))
        ranges = RangeFetcher(urls, storage)
        ranges.fetch(content, wanted, FirstVersion(content), blocks.append, Deadline(30.0))
    finally:
        storage.close()
    assert [len(block) for block in blocks] == [BLOCK_SIZE] * 3 + [3]
    return b"".join(blocks)


def test_store_that_moved_is_asked_where_it_is_now(nowhere: str) -> None:
    with faulty_store(CONTENT) as store:
        urls = Urls(nowhere, store.url)

        assert fetch(urls) == CONTENT

    assert urls.forgotten == 1


def test_store_that_is_nowhere_is_told_without_its_signature(nowhere: str) -> None:
    with pytest.raises(NotConnected) as failure:
        fetch(Urls(nowhere, nowhere))

    assert "secret" not in str(failure.value)


def test_store_that_breaks_off_in_each_block_is_read_to_the_end() -> None:
    with faulty_store(CONTENT) as store:
        store.faults = [cut_after(BLOCK_SIZE + 5) for _ in range(2)]

        assert fetch(Urls(store.url, store.url)) == CONTENT

    assert len(store.requests) == 3


# By themselves


class Told:
    """A store that hands out bytes as it is told: for each request up to how many blocks."""

    def __init__(self, *steps: int | Exception) -> None:
        self.steps = list(steps)
        self.ranges: list[ByteRange] = []
        self.etags: list[str | None] = []

    def read_range(
        self, url: str, wanted: ByteRange, *, on_etag: Any, on_block: Any, **limits: Any
    ) -> None:
        self.ranges.append(wanted)
        self.etags.append(limits["etag"])
        on_etag('"one"')
        step = self.steps.pop(0) if self.steps else 9
        if isinstance(step, Exception):
            raise step
        for start in range(wanted.start, wanted.start + wanted.length, BLOCK_SIZE):
            if step == 0:
                raise Unreachable("cut off")
            step -= 1
            on_block(CONTENT[start : min(start + BLOCK_SIZE, wanted.start + wanted.length)])


class Signing:
    """Signs, and notes what is forgotten."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    def item_url(self, *arguments: Any) -> SignedURL:
        return SignedURL("url", float("inf"))

    def forget_url(self, *arguments: Any) -> None:
        self.forgotten.append("url")

    def forget_host(self, url: SignedURL) -> None:
        self.forgotten.append("host")


class Given:
    """A version, and what becomes of each block: an error, or it is taken."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.blocks: list[bytes] = []
        self.seen: list[str] = []

    def expected(self) -> str | None:
        return f"after {len(self.blocks)}"

    def check(self, etag: str) -> None:
        self.seen.append(etag)

    def take(self, data: bytes) -> None:
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        self.blocks.append(data)


def fetch_told(store: Any, given: Given, deadline: Deadline | None = None) -> list[str]:
    """Fetch all but the first block; return what was forgotten of URLs."""
    signing = Signing()
    wanted = ByteRange(BLOCK_SIZE, len(CONTENT) - BLOCK_SIZE, len(CONTENT))
    RangeFetcher(signing, store).fetch(
        item_of(len(CONTENT)), wanted, given, given.take, deadline or Deadline(30.0)
    )
    assert b"".join(given.blocks) == CONTENT[BLOCK_SIZE:]
    return signing.forgotten


def test_response_that_breaks_off_goes_on_behind_the_last_block() -> None:
    store, given = Told(1, 1, 0, 0), Given()

    assert fetch_told(store, given) == []

    starts = [range.start // BLOCK_SIZE for range in store.ranges]
    assert starts == [1, 2, 3, 3, 3]
    assert all(range.start + range.length == len(CONTENT) for range in store.ranges)
    assert store.etags[0] == "after 0"
    assert store.etags[-1] == "after 2"
    assert given.seen == ['"one"'] * 5


def test_failures_count_anew_and_time_begins_anew_with_each_block() -> None:
    now_s = [0.0]
    deadline = Deadline(10.0, clock_s=lambda: now_s[0])

    class Slow(Given):
        def take(self, data: bytes) -> None:
            super().take(data)
            now_s[0] += 6.0

    fetch_told(Told(0, 0, 0, 1, 0, 0, 1, 0, 0), Slow(), deadline)
    with pytest.raises(Unreachable):
        fetch_told(Told(*[0] * 4), Slow(), deadline)


def test_url_that_was_refused_is_forgotten_once() -> None:
    refused = StorageRefused("403")

    assert fetch_told(Told(refused, 1, refused), Given()) == ["url", "url"]
    with pytest.raises(ProtocolError, match="signed just now"):
        fetch_told(Told(refused, refused), Given())


def test_host_is_forgotten_when_it_was_not_reached_twice() -> None:
    nowhere = NotConnected("refused")

    assert fetch_told(Told(nowhere), Given()) == []
    assert fetch_told(Told(nowhere, nowhere), Given()) == ["host"]
    assert fetch_told(Told(0, 0), Given()) == [], "it answers, if badly"


def test_block_of_an_item_that_was_dropped_is_fetched_again() -> None:
    store = Told()

    fetch_told(store, Given(StaleResponse(), StaleResponse(), None, StaleResponse()))

    assert [range.start // BLOCK_SIZE for range in store.ranges] == [1, 1, 1, 2]


@pytest.mark.expects_log("wrong; fetched once more")
def test_wrong_block_is_fetched_once_more_each() -> None:
    wrong = HashMismatch("wrong")
    store = Told()
    fetch_told(store, Given(wrong, None, wrong, None, wrong, None))
    assert [range.start // BLOCK_SIZE for range in store.ranges] == [1, 1, 2, 3]

    with pytest.raises(HashMismatch):
        fetch_told(Told(), Given(wrong, wrong))


def test_first_version_is_that_of_all() -> None:
    version = FirstVersion(item_of(5))
    for _ in range(2):
        version.check('"one"')

    with pytest.raises(IntegrityError, match="changed while it was read"):
        version.check('"two"')
    version.check('"one"')
