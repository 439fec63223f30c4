"""Uploading a frozen dataset from local files, through signed URLs.

Items are PUT in parallel, straight from their files. Nothing is registered
before all of them are stored, so whenever it stops there is either a registered
dataset or objects that nothing lists, and it can be called again. Blocking;
several datasets may be uploaded at once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from dserverfs.base import threads
from dserverfs.base.errors import Cancelled, Conflict, NotFound, TooLarge, Unsupported
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import Dataset, Identifier, Item
from dserverfs.base.progress import OnProgress, unwatched
from dserverfs.remote.api import Resolver
from dserverfs.remote.manifest_parsing import ManifestStream
from dserverfs.remote.objects import Storage
from dserverfs.remote.upload_urls import UploadUrls
from dserverfs.writing.upload import block_hashes
from dserverfs.writing.upload.azure import MAX_BLOB_BYTES
from dserverfs.writing.upload.item_upload import Sender
from dserverfs.writing.upload.put_retry import Attempts, Tally
from dserverfs.writing.upload.url_source import Announcement

logger = logging.getLogger(__name__)

# Of these each waits for the store most of the time: 2,000 PUTs of 4 KiB to a store on
# the same machine take 2.7 s with 1, 1.1 with 4, 0.9 with 16; a distant one needs them all.
THREADS = 16
# More of them at once only share the same link.
LARGE_THREADS = 4
LARGE_BYTES = 8 * 1024 * 1024

MAX_PUT_BYTES = 5 * 1024**3  # of S3
MAX_OBJECT_BYTES = 5 * 1024**4  # of S3, in parts


class Uploader:
    """Puts datasets on one server."""

    def __init__(self, resolver: Resolver, storage: Storage, *, hash_overlay: bool = False) -> None:
        """`hash_overlay`: block hashes are an overlay where the server keeps no object of them."""
        self._resolver = resolver
        self._hash_overlay = hash_overlay
        self._routes = resolver.uploads
        self._storage = storage
        self._lock = threading.Lock()
        self.sent_in_bytes = 0  # since this was made, also what has to be sent again

    def _note_sent(self, count: int) -> None:
        with self._lock:
            self.sent_in_bytes += count

    def upload(
        self,
        dataset: LocalDataset,
        base_uri: str,
        *,
        on_progress: OnProgress = unwatched,
        stop: threading.Event | None = None,
        before_complete: Callable[[], None] = lambda: None,
        on_taken: Callable[[Item], None] = lambda item: None,
        on_registered: Callable[[], None] = lambda: None,
    ) -> str:
        """Upload and register; return the dataset's URI in its backend.

        A dataset that is registered already with the same manifest is success.
        Raises Conflict if it is registered with another, ItemChanged (with the
        relpath) if a file is not what the dataset says, TooLarge, Cancelled soon
        after `stop` is set, PermissionDenied, Unreachable, and what else server
        and store say. It can be called again then: what is stored already is not
        sent again where the server can tell. Only when Unreachable is raised at
        the very end may it be registered nevertheless; calling again tells.
        `before_complete` is called when everything is stored, before the server is
        asked to register; if it raises, the server is not asked, or nothing comes of
        it that it was registered before. `on_taken` is called
        with each item that the store took from this upload: that it has the others is
        the server's word only. `on_registered` is called, before `before_complete`, when
        nothing was announced for it is registered already, with this manifest; what it
        raises ends the upload.
        """
        self._require_sizes(dataset, base_uri)
        if self._hash_overlay and not self._routes.takes_block_hashes():
            dataset = block_hashes.with_overlay(dataset)
        sizes = (item.size_in_bytes for item in dataset.items.values())
        tally = Tally(sizes, on_progress, stop, self._note_sent)
        announcement = Announcement(self._routes, dataset, base_uri)
        sender = Sender(self._storage, announcement, dataset, tally)
        sender.note_files()
        tally.check()
        try:
            urls = announcement.urls()
        except Conflict:
            uri = f"{base_uri}/{dataset.admin_metadata['uuid']}"
            if not self.is_registered(dataset, uri):
                raise
            on_registered()
            before_complete()
            return uri
        for item in dataset.items.values():
            if item.identifier in urls.stored:
                tally.add_item(item.size_in_bytes)
        _send_all(sender, tally, lambda: _missing(dataset, urls), on_taken)
        sender.check_files()
        tally.check()
        before_complete()
        self._routes.complete(urls.uri, len(dataset.items))
        return urls.uri

    def add_block_hashes(self, uri: str, file: BinaryIO) -> None:
        """Have the server keep block hashes of a dataset that is registered.

        `file` has the object, see `base/block_hashes`. That the dataset has them already is
        success. Raises Unsupported, PermissionDenied, NotFound, Unreachable, and ProtocolError
        if they are not those of its manifest.
        """
        if not self._routes.takes_block_hashes():
            raise Unsupported(f"{self._routes.server_url}: keeps no block hashes")
        attempts = Attempts(self._storage, Tally((), on_sent=self._note_sent))
        with contextlib.suppress(Conflict):
            block_hashes.send(attempts, block_hashes.PlaceOfFrozen(self._routes, uri), file)
            self._routes.complete_block_hashes(uri)

    def is_registered(self, dataset: LocalDataset, uri: str) -> bool:
        """Return whether the server has this very dataset.

        Raises Conflict if it has another one of that URI.
        """
        try:
            registered = self._resolver.dataset(uri)
            is_same = has_same_items(self._resolver, dataset, registered)
        except NotFound:
            return False
        if not is_same:
            raise Conflict(
                f"{uri} is registered already, with other items, and a frozen dataset does not"
                " change: rm -r .dtool of what is here makes a new dataset of it",
                uri=uri,
            )
        return True

    def max_item_bytes(self, base_uri: str | None = None) -> int | None:
        """Return the most bytes an item can have on this server; None if it sets no limit.

        Asks the server once what it can do; raises Unreachable if that fails.
        """
        if base_uri is not None and base_uri.startswith("azure:"):
            return MAX_BLOB_BYTES
        return MAX_OBJECT_BYTES if self._routes.takes_parts() else MAX_PUT_BYTES

    def _require_sizes(self, dataset: LocalDataset, base_uri: str) -> None:
        limit = self.max_item_bytes(base_uri)
        for item in dataset.items.values():
            if limit is not None and item.size_in_bytes > limit:
                raise TooLarge(
                    f"{item.relpath}: has {item.size_in_bytes} bytes; {self._routes.server_url}"
                    f" can have items of up to {limit} stored"
                )


def has_same_items(resolver: Resolver, ours: LocalDataset, registered: Dataset) -> bool:
    """Return whether the manifest that the server has is that of these items."""
    stream = ManifestStream()
    count = total = 0

    def are_ours(entries: Mapping[str, Any]) -> bool:
        nonlocal count, total
        for identifier, entry in entries.items():
            item = ours.items.get(Identifier(identifier))
            if item is None or _described(entry) != (item.relpath, item.size_in_bytes, item.hash):
                return False
            count, total = count + 1, total + int(identifier, 16)
        return True

    with contextlib.closing(resolver.manifest_pieces(registered)) as pieces:
        if not all(are_ours(stream.feed(piece)) for piece in pieces):
            return False
    if not are_ours(stream.close()):
        return False
    # Of the same number, one that is there twice would hide one that is not.
    expected = sum(int(identifier, 16) for identifier in ours.items)
    return (count, total) == (len(ours.items), expected)


def _described(entry: object) -> object:
    if not isinstance(entry, dict):
        return None
    return (entry.get("relpath"), entry.get("size_in_bytes"), str(entry.get("hash")).lower())


def _missing(dataset: LocalDataset, urls: UploadUrls) -> Iterator[Item]:
    return (item for item in dataset.items.values() if item.identifier not in urls.stored)


def _send_all(
    sender: Sender,
    tally: Tally,
    items: Callable[[], Iterator[Item]],
    on_taken: Callable[[Item], None],
) -> None:
    """Return when items, README and block hashes are stored; raises the first failure."""
    queue = _Queue(items)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while (item := queue.take()) is not None:
                try:
                    if sender.send(item):
                        on_taken(item)
                finally:
                    queue.done(item)
        except BaseException as error:  # noqa: BLE001 - handed to the caller, which waits
            failures.append(error)
            tally.end()

    count = min(THREADS, len(queue)) - 1
    helpers = threads.several_started(work, name="upload", count=count)
    work()
    for helper in helpers:
        helper.join()
    for failure in sorted(failures, key=lambda error: isinstance(error, Cancelled)):
        raise failure
    sender.send_readme()
    sender.send_block_hashes()


class _Queue:
    """Items in the order of sending: large ones first, never more than a few of them at once."""

    def __init__(self, items: Callable[[], Iterator[Item]]) -> None:
        """`items` yields the same each time; of small ones only the next is in memory."""
        large = (item for item in items() if item.size_in_bytes >= LARGE_BYTES)
        by_size = sorted(large, key=lambda item: item.size_in_bytes, reverse=True)
        self._large = deque(by_size)
        self._small = (item for item in items() if item.size_in_bytes < LARGE_BYTES)
        self._number = sum(1 for _ in items())
        self._sending_large = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._number

    def take(self) -> Item | None:
        """Return what to send next; None if this thread is not needed any more."""
        with self._lock:
            if self._large and self._sending_large < LARGE_THREADS:
                self._sending_large += 1
                return self._large.popleft()
            # With large ones left, those who send them now will take them.
            return next(self._small, None)

    def done(self, item: Item) -> None:
        with self._lock:
            if item.size_in_bytes >= LARGE_BYTES:
                self._sending_large -= 1
