"""Runs of blocks from a store that is no longer where it was."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

import pytest

from dserverfs.base import retry
from dserverfs.base.errors import NotConnected
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.base.model import Dataset, Identifier
from dserverfs.base.retry import Deadline
from dserverfs.reading.ranges import FirstVersion, RangeFetcher
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


def fetch(urls: Urls) -> bytes:
    content = ItemContent(
        "key", DATASET, Identifier("a" * 40), len(CONTENT), "md5", "", lambda _: []
    )
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
