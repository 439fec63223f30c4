"""Manifests in local files, as the server sent them and as indexes; fetched once, by whoever asks.

Used by the catalogue. Answers at once or raises NotLoaded. A load runs in a
thread of its own until it has ended, however long those wait who want it: a
million items over a slow line take minutes, and whoever asks again meanwhile
waits for the same load. Thread-safe.

On disk, below `directory`: `<key>.json`, a manifest as the server sent it, and
`<key>.index`, made from it. Both are written under other names, synced and
renamed; a damaged index is made anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from dserverfs import manifest_indexing
from dserverfs.cells import NotLoaded
from dserverfs.errors import Cancelled, DserverfsError, LocalDiskError, NotFound
from dserverfs.kept_answers import KEPT_FORMAT, KeptAnswers
from dserverfs.manifest_index import ManifestIndex
from dserverfs.manifest_indexing import Indexing
from dserverfs.model import BackendURI, Dataset

logger = logging.getLogger(__name__)

MAX_OPEN_INDEXES = 256  # a file descriptor and about 100 KiB each
LOADS_AT_ONCE = 8  # guess


class ManifestLoad:
    """One manifest on its way."""

    def __init__(self) -> None:
        self.future: Future[None] = Future()
        self._received_bytes: int | None = None

    def progress(self) -> float:
        """Return what differs from the last time if the load has got on since.

        While others are loaded before it, or it is being indexed, it always has.
        """
        received = self._received_bytes
        return time.monotonic() if received is None else received

    def downloading(self, received_bytes: int) -> None:
        self._received_bytes = received_bytes

    def downloaded(self) -> None:
        self._received_bytes = None


class Manifests:
    """The manifests of one server's datasets."""

    def __init__(
        self,
        answers: KeptAnswers,
        server: str,
        directory: Path,
        *,
        explain: Callable[[Dataset, NotFound], DserverfsError],
    ) -> None:
        """`explain` says what it means that the server has no manifest of a dataset; it may block.

        Of nothing else NotFound is raised: that a file of ours is missing says nothing
        about a dataset.
        """
        self._answers = answers
        self._server = server
        self._directory = directory
        self._explain = explain
        self._threads = ThreadPoolExecutor(LOADS_AT_ONCE, thread_name_prefix="manifest")
        self._lock = threading.Lock()
        self._indexes: OrderedDict[BackendURI, ManifestIndex] = OrderedDict()
        self._loads: dict[BackendURI, ManifestLoad] = {}
        self._indexings: set[Indexing] = set()
        self._closed = False

    def close(self) -> None:
        """End loads that are under way; what they have is dropped."""
        with self._lock:
            self._closed = True
            for indexing in self._indexings:
                indexing.abandon()
            for index in self._indexes.values():
                index.close()
            self._indexes.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def index(self, dataset: Dataset) -> ManifestIndex:
        """Return the manifest as a tree; keep it no longer than one operation."""
        with self._lock:
            index = self._indexes.get(dataset.uri)
            if index is not None:
                self._indexes.move_to_end(dataset.uri)
                return index
        raise NotLoaded(begin=lambda: self._begin(dataset, self._load_index))

    def file(self, dataset: Dataset) -> Path:
        """Return the file with the manifest as the server sent it."""
        path = self._path(dataset, "json")
        if not path.exists():
            raise NotLoaded(begin=lambda: self._begin(dataset, self._load_file))
        return path

    def _begin(
        self, dataset: Dataset, load: Callable[[Dataset, ManifestLoad], None]
    ) -> ManifestLoad:
        """Return the load of this dataset that is under way; begin one if there is none."""
        with self._lock:
            if self._closed:
                raise Cancelled("the daemon is ending")
            under_way = self._loads.get(dataset.uri)
            if under_way is None:
                under_way = self._loads[dataset.uri] = ManifestLoad()
                self._threads.submit(self._run, dataset, load, under_way)
            return under_way

    def _run(
        self,
        dataset: Dataset,
        load: Callable[[Dataset, ManifestLoad], None],
        under_way: ManifestLoad,
    ) -> None:
        fault: BaseException | None = None
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody cleared it
            load(dataset, under_way)
        except (OSError, sqlite3.Error) as error:
            fault = LocalDiskError(f"{dataset.uri}: its manifest cannot be kept: {error}")
        except BaseException as error:  # noqa: BLE001 - top of a thread: whoever waits is told
            fault = error
        with self._lock:
            del self._loads[dataset.uri]
        if fault is None:
            under_way.future.set_result(None)
        else:
            under_way.future.set_exception(fault)

    def _load_index(self, dataset: Dataset, load: ManifestLoad) -> None:
        path = self._path(dataset, "index")
        try:
            index = ManifestIndex(path).open()
        except DserverfsError as error:
            if not isinstance(error, NotFound):
                logger.warning("made anew: %s", error)
            self._make_index(dataset, load, path)
            index = _reopened(path)
        with self._lock:
            self._indexes[dataset.uri] = index
            while len(self._indexes) > MAX_OPEN_INDEXES:
                self._indexes.popitem(last=False)  # closed when its last user lets it go

    def _make_index(self, dataset: Dataset, load: ManifestLoad, index_path: Path) -> None:
        """Index the manifest, while it is fetched if it is not here."""
        path = self._path(dataset, "json")
        with Indexing(index_path) as indexing:
            with self._lock:
                if self._closed:
                    raise Cancelled("the daemon is ending")
                self._indexings.add(indexing)
            try:
                if path.exists():
                    for piece in manifest_indexing.pieces_of(path):
                        indexing.write(piece)
                else:
                    self._fetch(dataset, load, path, indexing.write)
                indexing.finish()
            finally:
                with self._lock:
                    self._indexings.discard(indexing)

    def _load_file(self, dataset: Dataset, load: ManifestLoad) -> None:
        path = self._path(dataset, "json")
        if not path.exists():
            self._fetch(dataset, load, path, lambda piece: None)

    def _fetch(
        self, dataset: Dataset, load: ManifestLoad, path: Path, use: Callable[[bytes], None]
    ) -> None:
        """Write the manifest to `path`, and hand each piece to `use` as it comes."""
        scratch = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
        received_bytes = 0
        load.downloading(received_bytes)
        try:
            with scratch.open("xb") as file:
                for piece in self._pieces(dataset):
                    file.write(piece)
                    use(piece)
                    received_bytes += len(piece)
                    load.downloading(received_bytes)
                    if self._closed:
                        raise Cancelled("the daemon is ending")
                load.downloaded()
                file.flush()
                os.fsync(file.fileno())
            scratch.rename(path)
        finally:
            scratch.unlink(missing_ok=True)

    def _pieces(self, dataset: Dataset) -> Iterator[bytes]:
        try:
            yield from self._answers.manifest_pieces(dataset)
        except NotFound as error:
            explained = self._explain(dataset, error)
            if explained is error:
                raise
            raise explained from error

    def _path(self, dataset: Dataset, suffix: str) -> Path:
        key = hashlib.sha256(f"{KEPT_FORMAT} {self._server} {dataset.uri}".encode()).hexdigest()
        return self._directory / f"{key[:40]}.{suffix}"


def _reopened(path: Path) -> ManifestIndex:
    """Return an index that was made just now."""
    try:
        return ManifestIndex(path).open()
    except NotFound as error:
        raise LocalDiskError(f"{path}: is gone again: {error}") from error
