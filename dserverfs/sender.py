"""Sending items to the store until they are there: attempts, expired URLs, changed files.

Used by the uploader's threads, each with a `Line` of its own. Thread-safe but for
the lines.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator

from dserverfs.announcement import Announcement
from dserverfs.errors import Cancelled, IntegrityError, ItemChanged, ProtocolError, Unreachable
from dserverfs.hashing import Stamp
from dserverfs.local_dataset import LocalDataset
from dserverfs.model import Identifier, Item
from dserverfs.outgoing import FilePart, Line
from dserverfs.storage import Storage, StorageBusy, StorageRefused
from dserverfs.transport import backoff_s
from dserverfs.upload_routes import UploadUrl, UploadUrls

logger = logging.getLogger(__name__)

# In a row, for one item: with the waits between them 32 s of a store that refuses
# connections, and at most 4 minutes of one that stalls.
ATTEMPTS = 6
MAX_BACKOFF_S = 15.0
_MOVED_AFTER = 3
MAX_RETRY_AFTER_S = 60.0
_READ_BYTES = 1024 * 1024
# What a store says to a body that is not that of the pinned Content-MD5: S3, Azure.
_OTHER_CONTENT = frozenset({"BadDigest", "Md5Mismatch"})


class Tally:
    """How much is done. Tells it on, and ends everything if the caller or a failure asks to."""

    def __init__(
        self,
        dataset: LocalDataset,
        progress: Callable[[int, int, int, int], None] | None,
        stop: threading.Event | None,
    ) -> None:
        self._progress = progress
        self._stop = stop or threading.Event()
        self._broken = threading.Event()
        self._lock = threading.Lock()
        self._bytes = 0
        self._items = 0
        self._all_bytes = sum(item.size_in_bytes for item in dataset.items.values())
        self._all_items = len(dataset.items)

    def pulse(self, count: int) -> None:
        """Count bytes that were sent; raises Cancelled."""
        self.check()
        if count:
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
            if self._progress is not None:
                self._progress(self._bytes, self._all_bytes, self._items, self._all_items)


class Sender:
    """Gets the items of one upload stored."""

    def __init__(
        self,
        storage: Storage,
        announcement: Announcement,
        dataset: LocalDataset,
        tally: Tally,
    ) -> None:
        self._storage = storage
        self._announcement = announcement
        self._dataset = dataset
        self._tally = tally
        self._stamps: dict[Identifier, Stamp] = {}

    def note_files(self) -> None:
        """Remember what the items' files are now; raises ItemChanged for a size not announced."""
        for item in self._dataset.items.values():
            stamp = self._look(item)
            if stamp.size != item.size_in_bytes:
                raise _changed(item, f"has {stamp.size} bytes and not {item.size_in_bytes}")
            self._stamps[item.identifier] = stamp

    def check_files(self) -> None:
        """Raise ItemChanged if a file is not what it was for `note_files`."""
        for item in self._dataset.items.values():
            self._check(item, self._look(item))

    def send(self, line: Line, item: Item) -> None:
        """Return when the item is stored; raises ItemChanged, Unreachable, Cancelled, ..."""
        with self._open(item) as descriptor:
            content = FilePart(descriptor, 0, item.size_in_bytes, item.relpath)
            self._persist(
                line,
                content if item.size_in_bytes else b"",
                lambda urls: urls.items[item.identifier],
                lambda: self._require_same_content(item, descriptor),
                counted=True,
            )
            self._check(item, Stamp.of(os.fstat(descriptor)))
        self._tally.add_item()

    def send_readme(self, line: Line) -> None:
        self._persist(
            line, self._dataset.readme, lambda urls: urls.readme, lambda: None, counted=False
        )

    def _persist(
        self,
        line: Line,
        content: FilePart | bytes,
        choose: Callable[[UploadUrls], UploadUrl],
        on_other_content: Callable[[], None],
        *,
        counted: bool,
    ) -> None:
        """PUT until it is stored. Refused URLs are renewed once; every other fault is retried."""
        failures = 0
        refused = False
        while True:
            urls = self._announcement.urls()
            target = choose(urls)
            try:
                self._attempt(line, target, content, counted)
                return
            except StorageRefused as error:
                if error.code in _OTHER_CONTENT:
                    on_other_content()
                    failure: Exception = IntegrityError(f"{error}, though the file is as hashed")
                elif refused:
                    raise ProtocolError(f"{error}, for a URL signed just now") from error
                else:
                    refused = True
                    self._announcement.renewed(urls)
                    continue
            except Unreachable as error:
                failure = error
            refused = False
            failures += 1
            if failures >= ATTEMPTS:
                raise failure
            if failures == _MOVED_AFTER:
                self._ask_where_it_is_now(urls)
            logger.debug("attempt %d failed: %s", failures, failure)
            self._tally.wait(_pause_s(failure, failures))

    def _ask_where_it_is_now(self, urls: UploadUrls) -> None:
        """Announce again: a store that was restarted may have another address."""
        try:
            self._announcement.renewed(urls)
        except Unreachable as error:
            logger.debug("%s: %s", urls.uri, error)

    def _attempt(
        self, line: Line, target: UploadUrl, content: FilePart | bytes, counted: bool
    ) -> None:
        sent = 0

        def pulse(count: int) -> None:
            nonlocal sent
            sent += count if counted else 0
            self._tally.pulse(count if counted else 0)

        try:
            self._storage.write(line, target.url, target.headers, content, pulse)
        except BaseException:
            self._tally.take_back(sent)
            raise

    def _require_same_content(self, item: Item, descriptor: int) -> None:
        """Raise ItemChanged unless the file has the hash that was announced."""
        md5 = hashlib.md5(usedforsecurity=False)
        offset = 0
        while piece := os.pread(descriptor, _READ_BYTES, offset):
            self._tally.check()
            md5.update(piece)
            offset += len(piece)
        if md5.hexdigest() != item.hash:
            raise _changed(item, "has other content than was hashed")

    @contextlib.contextmanager
    def _open(self, item: Item) -> Iterator[int]:
        try:
            descriptor = os.open(self._dataset.path_of(item), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _changed(item, f"cannot be read: {error.strerror}") from error
        try:
            self._check(item, Stamp.of(os.fstat(descriptor)))
            yield descriptor
        finally:
            os.close(descriptor)

    def _look(self, item: Item) -> Stamp:
        try:
            return Stamp.of(os.stat(self._dataset.path_of(item)))
        except OSError as error:
            raise _changed(item, f"cannot be read: {error.strerror}") from error

    def _check(self, item: Item, stamp: Stamp) -> None:
        if stamp != self._stamps[item.identifier]:
            raise _changed(item, "was changed during the upload")


def _pause_s(failure: Exception, failures: int) -> float:
    wait_s = min(backoff_s(failures - 1), MAX_BACKOFF_S)
    if isinstance(failure, StorageBusy):
        wait_s = max(wait_s, min(failure.retry_after_s, MAX_RETRY_AFTER_S))
    return wait_s


def _changed(item: Item, how: str) -> ItemChanged:
    return ItemChanged(f"{item.relpath}: {how}; nothing is registered", relpath=item.relpath)
