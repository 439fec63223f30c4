"""PUTs that are tried until they succeed, and how much of an upload is done.

Used by what sends items, whole or in parts. A `Target` says where to; the faults
of store and network end here, or after a bounded number of attempts. Thread-safe
but for targets, of which each thread has its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from dserverfs.base.errors import Cancelled, Garbled, StorageRefused, Unreachable
from dserverfs.base.progress import OnProgress, Progress, unwatched
from dserverfs.base.retry import AWAY, STALL_S, Deadline, Retries
from dserverfs.remote.objects import Storage
from dserverfs.remote.puts import FilePart
from dserverfs.remote.upload_urls import UploadUrl, UploadUrls
from dserverfs.writing.upload.url_source import Announcement

logger = logging.getLogger(__name__)

# In a row, for one PUT: with the waits between them 32 s of a store that refuses
# connections, and at most 4 minutes of one that stalls.
ATTEMPTS = 6
_MOVED_AFTER = 3
# Answers to a body that is not that of the pinned Content-MD5: of S3, Azure, Azurite.
_OTHER_CONTENT = frozenset({"BadDigest", "Md5Mismatch", "InvalidOperation"})


class Target(Protocol):
    """The place of a PUT."""

    def url(self) -> UploadUrl:
        """Return a URL that is good for a while, and its headers; may ask the server."""

    def renew(self) -> None:
        """Do not return the same again."""


class AnnouncedTarget:
    """One of the URLs of an announcement."""

    def __init__(
        self, announcement: Announcement, choose: Callable[[UploadUrls], UploadUrl]
    ) -> None:
        self._announcement = announcement
        self._choose = choose
        self._urls: UploadUrls | None = None

    def url(self) -> UploadUrl:
        self._urls = self._announcement.urls()
        return self._choose(self._urls)

    def renew(self) -> None:
        if self._urls is not None:
            self._announcement.renewed(self._urls)


class Tally:
    """How much is done. Tells it on, and ends everything if the caller or a failure asks to."""

    def __init__(
        self,
        sizes: Iterable[int],
        on_progress: OnProgress = unwatched,
        stop: threading.Event | None = None,
        on_sent: Callable[[int], None] = lambda count: None,
    ) -> None:
        """`sizes` are those of all items, in bytes. `on_sent` is told bytes that were sent."""
        self._on_sent = on_sent
        self._on_progress = on_progress
        self._stop = stop or threading.Event()
        self._broken = threading.Event()
        self._lock = threading.Lock()
        self._bytes = self._all_bytes = 0
        self._items = self._all_items = 0
        for size in sizes:
            self._all_bytes += size
            self._all_items += 1

    def add_sent(self, count: int) -> None:
        """Count bytes that were sent; raises Cancelled."""
        self.check()
        if count:
            self._on_sent(count)
            self._add(count, 0)

    def take_back(self, count: int) -> None:
        """Uncount bytes of an attempt that failed."""
        if count:
            self._add(-count, 0)

    def add_item(self, size_in_bytes: int = 0) -> None:
        """Count an item that is stored, and bytes of it that were not sent just now."""
        self._add(size_in_bytes, 1)

    def end(self) -> None:
        """Have all other threads end soon."""
        self._broken.set()

    def check(self) -> None:
        """Raise Cancelled if it is to end."""
        if self._stop.is_set() or self._broken.is_set():
            raise Cancelled("the upload was stopped; it can be taken up again")

    def wait(self, seconds: float) -> None:
        """Sleep, or raise Cancelled as soon as it is to end."""
        left = seconds
        while left > 0 and not self._broken.is_set():
            if self._stop.wait(min(left, 0.1)):
                break
            left -= 0.1
        self.check()

    def _add(self, count: int, items: int) -> None:
        with self._lock:
            self._bytes += count
            self._items += items
            self._on_progress(Progress(self._bytes, self._all_bytes, self._items, self._all_items))


class Attempts:
    """PUTs of one upload."""

    def __init__(self, storage: Storage, tally: Tally) -> None:
        self._storage = storage
        self._tally = tally

    def persist(
        self,
        target: Target,
        content: FilePart | bytes,
        *,
        on_other_content: Callable[[], None] = lambda: None,
        counted: bool = True,
    ) -> Mapping[str, str]:
        """PUT until it is stored; return the headers of the answer.

        A refused URL is renewed once, every other fault followed by a few attempts.
        `on_other_content` is called, and may raise, when the store got other
        bytes than the URL pins; `counted` bytes are progress.
        """
        retries = Retries(
            Deadline(float("inf")),
            what="PUT",
            attempts=ATTEMPTS,
            first_stall_s=STALL_S,
            sleep=self._tally.wait,
        )
        while True:
            place = target.url()
            try:
                return self._attempt(place, content, counted)
            except StorageRefused as error:
                if error.code in _OTHER_CONTENT:
                    on_other_content()
                    retries.again(Garbled(f"{error}, though the file is as hashed"))
                else:
                    retries.again(error)
                    target.renew()
            except Unreachable as error:
                retries.again(error)
                if retries.failures == _MOVED_AFTER:
                    _ask_where_it_is_now(target)

    def _attempt(
        self, place: UploadUrl, content: FilePart | bytes, counted: bool
    ) -> Mapping[str, str]:
        sent = 0

        def on_progress(count: int) -> None:
            nonlocal sent
            sent += count if counted else 0
            self._tally.add_sent(count if counted else 0)

        try:
            return self._storage.write(place.url, place.headers, content, on_progress)
        except BaseException:
            self._tally.take_back(sent)
            raise


def _ask_where_it_is_now(target: Target) -> None:
    """Have other URLs: a store that was restarted may have another address."""
    try:
        target.renew()
    except AWAY as error:
        logger.debug("no other URL: %s", error)
