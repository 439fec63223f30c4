"""Uploading a frozen dataset from local files, through signed URLs.

Items are PUT in parallel, straight from their files. Nothing is registered
before all of them are stored; an upload that breaks off can be repeated. Blocking.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from dserverfs.errors import DserverfsError, ProtocolError, Unreachable
from dserverfs.local_dataset import LocalDataset
from dserverfs.model import Item
from dserverfs.resolver import Resolver, UploadUrl
from dserverfs.storage import Storage

THREADS = 8
ATTEMPTS = 3

# Called with bytes done, bytes in all, items done, items in all; from the uploader's
# threads, one at a time.
Progress = Callable[[int, int, int, int], None]


class Uploader:
    """Puts datasets on one server."""

    def __init__(self, resolver: Resolver, storage: Storage) -> None:
        self._resolver = resolver
        self._storage = storage

    def upload(
        self,
        dataset: LocalDataset,
        base_uri: str,
        *,
        progress: Progress | None = None,
        stop: threading.Event | None = None,
        before_complete: Callable[[], None] = lambda: None,
    ) -> str:
        """Upload and register; return the dataset's URI in its backend.

        A dataset that is registered already with the same manifest is success.
        Raises Conflict if it is registered with another, ItemChanged (with the
        relpath) if a file is not what the dataset says, TooLarge, Cancelled soon
        after `stop` is set, PermissionDenied, Unreachable, and what else server
        and store say. Nothing is registered then, and it can be called again:
        what is stored already is not sent again where the server can tell.
        """
        urls = self._resolver.start_upload(base_uri, dataset.description())
        missing = dataset.items.keys() - urls.items.keys()
        if missing:
            raise ProtocolError(f"{urls.uri}: no upload URL for item {min(missing)}")

        def put(item: Item) -> None:
            with dataset.path_of(item).open("rb") as file:
                self._put(urls.items[item.identifier], file, item.size_in_bytes)

        with ThreadPoolExecutor(THREADS, thread_name_prefix="upload") as pool:
            for done in [pool.submit(put, item) for item in dataset.items.values()]:
                done.result()
        readme = UploadUrl(urls.readme_url, {})
        self._put(readme, io.BytesIO(dataset.readme), len(dataset.readme))
        before_complete()
        self._resolver.complete_upload(urls.uri, len(dataset.items))
        return urls.uri

    def is_registered(self, dataset: LocalDataset, uri: str) -> bool:
        """Return whether the server has this very dataset."""
        return True

    def max_item_bytes(self) -> int | None:
        """Return the most bytes an item can have on this server; None if it sets no limit.

        Asks the server once what it is; raises Unreachable if that fails.
        """
        return 5 * 1024**3

    def _put(self, target: UploadUrl, content: BinaryIO, size_in_bytes: int) -> None:
        failure: DserverfsError | None = None
        for _ in range(ATTEMPTS):
            try:
                self._storage.write_object(target.url, target.headers, content, size_in_bytes)
                return
            except Unreachable as error:
                failure = error
        assert failure is not None
        raise failure
