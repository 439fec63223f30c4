"""Runs of an item's blocks from the store, whatever it takes: new URLs, other attempts.

Used by the reader. Knows signed URLs and the store, and that all of an item has
to come from one version of the object; neither cache nor hash. Blocking and
thread-safe.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Protocol, TypeVar

from dserverfs.base.errors import (
    DeadlineExceeded,
    DserverfsError,
    IntegrityError,
    NotConnected,
    StorageRefused,
)
from dserverfs.base.items import BLOCK_SIZE, ItemContent, Run
from dserverfs.base.retry import FIRST_STALL_S, Deadline, Retries
from dserverfs.reading.cache_lookup import HashMismatch
from dserverfs.remote.objects import ByteRange, Storage
from dserverfs.remote.signed_urls import UrlSource

logger = logging.getLogger(__name__)

MAX_ETAGS = 4096

T = TypeVar("T")


class Outdated(Exception):
    """What comes is of no use any more: it was asked for before the item was dropped."""


class Unwanted(Exception):
    """What comes is for nobody: it was fetched ahead, and the item is no longer read."""


class Receiver(Protocol):
    """Who gets the blocks."""

    def begin(self) -> None:
        """Note that a request is about to be sent."""

    def check(self) -> None:
        """Raise Outdated if what that request brings is of no use."""

    def receive(self, index: int, data: bytes) -> None:
        """Take a block; raises Outdated, HashMismatch (once more, then it counts) and others.

        Unwanted ends the fetching, whatever of the run is left.
        """


class Fetcher:
    """Fetches from one store."""

    def __init__(self, urls: UrlSource, storage: Storage) -> None:
        self._urls = urls
        self._storage = storage
        self._lock = threading.Lock()
        self._etags: OrderedDict[str, str] = OrderedDict()

    def fetch(self, content: ItemContent, run: Run, receiver: Receiver, deadline: Deadline) -> None:
        """Give every block of `run` to `receiver`, in order; `deadline` begins anew with each.

        Raises what the resolver, the store and the receiver raise; Unwanted.
        """
        next_block = run.first
        mismatched = False
        retries = Retries(deadline, what=f"item {content.identifier}", first_stall_s=FIRST_STALL_S)

        def on_block(data: bytes) -> None:
            nonlocal next_block
            deadline.restart()
            retries.progressed()
            receiver.receive(next_block, data)
            next_block += 1

        def on_etag(etag: str) -> None:
            receiver.check()
            self._check_etag(content, etag)

        while next_block < run.first + run.length:
            limit = retries.limit()
            receiver.begin()
            url = self._urls.item_url(content.dataset, content.identifier, content.neighbours)
            start = next_block * BLOCK_SIZE
            end = min(content.size_in_bytes, (run.first + run.length) * BLOCK_SIZE)
            try:
                self._storage.read_range(
                    url.url,
                    ByteRange(start, end - start, content.size_in_bytes),
                    block_size=BLOCK_SIZE,
                    etag=self._etags.get(content.key),
                    deadline=limit,
                    on_etag=on_etag,
                    on_block=on_block,
                )
            except Outdated:
                logger.debug("%s: fetched again, it was dropped meanwhile", content.dataset.uri)
            except HashMismatch as error:
                if mismatched:
                    raise
                mismatched = True
                logger.warning("%s; fetched once more", error)
            except DserverfsError as error:
                if isinstance(error, StorageRefused):
                    self._urls.forget_url(content.dataset, content.identifier, url)
                elif isinstance(error, NotConnected) and retries.failures:
                    self._urls.forget_host(url)  # it may have moved
                retries.again(error)

    def forget(self, content: ItemContent) -> None:
        """Take whatever version of the object there is from now on."""
        with self._lock:
            self._etags.pop(content.key, None)

    def _check_etag(self, content: ItemContent, etag: str) -> None:
        """Note the object's ETag; raises IntegrityError if another one was seen before."""
        with self._lock:
            known = self._etags.setdefault(content.key, etag)
            if len(self._etags) > MAX_ETAGS:
                self._etags.popitem(last=False)
        if known != etag:
            raise IntegrityError(f"{content.label} changed while it was read")


def wait_for(future: Future[T], content: ItemContent, deadline: Deadline) -> T:
    """Return the result of `future`; raises DeadlineExceeded if it does not come in time."""
    try:
        return future.result(deadline.remaining_s())
    except TimeoutError as error:
        raise DeadlineExceeded(f"{content.label}: read took too long") from error
