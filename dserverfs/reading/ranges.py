"""Bytes of items from the store: for each attempt a URL, a deadline and the next byte to ask for.

The one place that asks a store for items, and the one rule of what is tried again. Used
to fill blocks, to verify what is stored and to download whole items. Knows signed URLs
and the store; neither cache nor hash. Blocking and thread-safe.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol, TypeVar

from dserverfs.base.errors import DserverfsError, IntegrityError, NotConnected, StorageRefused
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.base.retry import ELSEWHERE_S, FIRST_STALL_S, Deadline, Retries
from dserverfs.reading.cache_lookup import HashMismatch
from dserverfs.remote.objects import ByteRange, Source, Storage, StoredObject
from dserverfs.remote.signed_urls import UrlSource

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_DISTRUSTED = 4096  # items; those beyond are compared as all are, and fetched once more


class StaleResponse(Exception):
    """The response is of no use: the item was dropped after the request was sent."""


class Version(Protocol):
    """The version of an object that bytes have to be of."""

    def expected(self) -> str | None:
        """Return the ETag to ask for, or None; called before each request."""

    def check(self, etag: str) -> None:
        """Raise StaleResponse, or IntegrityError if `etag` is that of another version."""


class FirstVersion:
    """The version that the first response is of; every later one has to be the same."""

    def __init__(self, content: ItemContent) -> None:
        self._content = content
        self._lock = threading.Lock()
        self._etag: str | None = None

    def expected(self) -> None:
        return None

    def check(self, etag: str) -> None:
        with self._lock:
            self._etag = self._etag or etag
            is_same = self._etag == etag
        if not is_same:
            raise changed(self._content)


def changed(content: ItemContent) -> IntegrityError:
    return IntegrityError(f"{content.label} changed while it was read")


class RangeFetcher:
    """Fetches from one store."""

    def __init__(self, urls: UrlSource, storage: Storage) -> None:
        self._urls = urls
        self._storage = storage
        self._lock = threading.Lock()
        self._distrusted: OrderedDict[str, None] = OrderedDict()  # keys of items

    def distrust(self, content: ItemContent) -> None:
        """Have an item come from the store itself from now on: bytes of it were wrong."""
        with self._lock:
            self._distrusted[content.key] = None
            if len(self._distrusted) > MAX_DISTRUSTED:
                self._distrusted.popitem(last=False)

    def fetch(
        self,
        content: ItemContent,
        wanted: ByteRange,
        version: Version,
        on_block: Callable[[bytes], None],
        deadline: Deadline,
    ) -> None:
        """Hand the wanted bytes to `on_block` in order, a block at a time.

        A response that breaks off is continued where it ended, and `deadline` begins
        anew with each block. `on_block` may raise StaleResponse, or HashMismatch (the
        first of these has the block fetched again, the second is raised). All other errors
        of `on_block`, the store and the URL source end the fetching.
        """
        offset = wanted.start
        end = wanted.start + wanted.length
        has_mismatched = False
        retries = Retries(
            deadline,
            what=f"item {content.identifier}",
            first_stall_s=FIRST_STALL_S,
            elsewhere_s=ELSEWHERE_S,
        )

        def receive(data: bytes) -> None:
            nonlocal offset, has_mismatched
            deadline.restart()
            retries.progressed()
            on_block(data)
            offset += len(data)
            has_mismatched = False

        def attempt(url: str, limit: Deadline) -> None:
            self._storage.read_range(
                url,
                ByteRange(offset, end - offset, wanted.item_size),
                block_size=BLOCK_SIZE,
                etag=version.expected(),
                deadline=limit,
                on_etag=version.check,
                on_block=receive,
                source=self._source(content),
            )

        while offset < end:
            try:
                self._ask(content, retries, attempt)
            except StaleResponse:
                logger.debug("%s: fetched again, it was dropped", content.dataset.uri)
            except HashMismatch as error:
                if has_mismatched:
                    raise
                has_mismatched = True
                self.distrust(content)
                logger.warning("%s; fetched once more", error)

    def _source(self, content: ItemContent) -> Source:
        with self._lock:
            return Source.STORE if content.key in self._distrusted else Source.NEAREST

    def look(self, content: ItemContent, deadline: Deadline) -> StoredObject:
        """Return size and ETag of what is stored; raises NotFound or NotStored if nothing is."""
        return self._ask(content, Retries(deadline), self._storage.look)

    def _ask(
        self, content: ItemContent, retries: Retries, attempt: Callable[[str, Deadline], T]
    ) -> T:
        """Return the outcome of `attempt` for the item's URL: the one loop of attempts.

        A refused URL is replaced by a new one, once.
        """
        while True:
            limit = retries.limit()
            url = self._urls.item_url(content.dataset, content.identifier, content.neighbours)
            try:
                return attempt(url.url, limit)
            except DserverfsError as error:
                if isinstance(error, StorageRefused):
                    self._urls.forget_url(content.dataset, content.identifier, url)
                elif isinstance(error, NotConnected) and retries.failures:
                    self._urls.forget_host(url)  # it may have moved
                retries.again(error)
