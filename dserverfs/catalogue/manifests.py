"""Manifests in local files, as the server sent them and as indexes; each is fetched once.

Used by the catalogue. Answers at once or raises NotLoaded. A load runs in a thread of
its own until it ends, also if its readers give up: a million items over a slow line
take minutes, and a reader that comes back waits for the same load. Thread-safe.

On disk, below `directory`: `<key>.json`, a manifest as the server sent it, with its seal
in `<key>.json.seal`, and `<key>.index`, made from it, which ends with its own. All are
written under other names and renamed. A seal is compared before a file is used the first
time, and again when it was written to: a damaged index is made anew, a damaged manifest
fetched anew. A manifest that this disk does not take is elsewhere for as long as it is
needed (`manifest_shelter`).
"""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from dserverfs.base import pools
from dserverfs.base.directories import private_directory
from dserverfs.base.disk_space import lacking_in_bytes
from dserverfs.base.disk_troubles import CacheTroubles
from dserverfs.base.durable_files import remove_left_beside, replacing_unsynced, sync_open
from dserverfs.base.errors import (
    Cancelled,
    DserverfsError,
    LocalDiskError,
    NotFound,
    ProtocolError,
    UsageError,
)
from dserverfs.base.local_files import clear_way, remove_if_possible
from dserverfs.base.model import Dataset
from dserverfs.base.sealed_files import Sealing, has_seal_beside, write_seal_beside
from dserverfs.catalogue import manifest_indexing
from dserverfs.catalogue.manifest_index import ManifestIndex
from dserverfs.catalogue.manifest_indexing import Indexing, local_part
from dserverfs.catalogue.manifest_shelter import ManifestShelter
from dserverfs.catalogue.offline import KEPT_FORMAT, KeptAnswers
from dserverfs.catalogue.refreshed import NotLoaded
from dserverfs.remote.manifest_parsing import ManifestStream

logger = logging.getLogger(__name__)

MAX_OPEN_INDEXES = 256  # a file descriptor and about 100 KiB each
LOADS_AT_ONCE = 8  # guess
KEPT_AT_ONCE = 4  # guess
LOOK_S = 1.0  # between looks whether the file of an open index was written to
MAX_CHECKED = 10_000  # manifests whose files have had their seals; 200 bytes each
MAX_IN_MEMORY_BYTES = 64 * 1024 * 1024  # of manifests whose indexes are in memory
# After so much of a manifest the disk is looked at: a small answer can be one of 2 GiB, unpacked.
BYTES_BETWEEN_LOOKS = 16 * 1024 * 1024
DATE_TOLERANCE_S = 0.001  # of a date by way of another form, at the edge of a second
ABANDONED_S = 24 * 3600.0  # a manifest that is being fetched is written to more often

T = TypeVar("T")


class _FileVersion(NamedTuple):
    inode: int
    size_in_bytes: int
    mtime_ns: int


class _OpenIndex:
    """An index, and what its file was when it was opened."""

    def __init__(self, index: ManifestIndex, path: Path) -> None:
        self.index = index
        self._path = path
        self._version = None if index.memory_in_bytes else _version_of(path)
        self._looked_s = time.monotonic()

    def is_as_it_was(self) -> bool:
        """Return False if its file was written to; one that was replaced is still as it was."""
        if self.index.is_damaged:
            return False
        now_s = time.monotonic()
        if now_s < self._looked_s + LOOK_S or self._version is None:
            return True
        self._looked_s = now_s
        version = _version_of(self._path)
        return version is None or version.inode != self._version.inode or version == self._version


class ManifestLoad:
    """A manifest that is being fetched or indexed."""

    def __init__(self) -> None:
        self.future: Future[None] = Future()
        self._received_bytes: int | None = None

    def progress(self) -> float:
        """Return a number that changes as long as the load gets on.

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
        """`explain` returns what the server's "not found" of a manifest means; it may block.

        Of nothing else NotFound is raised: that a file of ours is missing says nothing
        about a dataset.
        """
        self._answers = answers
        self._server = server
        self._directory = directory
        self._explain = explain
        self._shelter = ManifestShelter()
        self._troubles = CacheTroubles(directory)
        self._threads = ThreadPoolExecutor(LOADS_AT_ONCE, thread_name_prefix="manifest")
        # What is on the disk does not wait for those of a server that does not answer.
        self._kept_threads = ThreadPoolExecutor(KEPT_AT_ONCE, thread_name_prefix="kept")
        self._lock = threading.Lock()
        # By `_freeze_of`, as the files are.
        self._indexes: OrderedDict[str, _OpenIndex] = OrderedDict()
        self._loads: dict[str, ManifestLoad] = {}
        self._indexings: set[Indexing] = set()
        self._checked: dict[str, _FileVersion] = {}  # by the names of the files
        self._is_tidy = False
        self._closed = False

    def close(self) -> None:
        """End the loads that are under way, and drop what they have."""
        with self._lock:
            self._closed = True
            for indexing in self._indexings:
                indexing.abandon()
            for opened in self._indexes.values():
                opened.index.close()
            self._indexes.clear()
        self._shelter.close()
        for threads in (self._threads, self._kept_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    def index(self, dataset: Dataset) -> ManifestIndex:
        """Return the manifest as a tree; keep it no longer than one operation."""
        with self._lock:
            opened = self._indexes.get(_freeze_of(dataset))
            if opened is not None:
                if opened.is_as_it_was():
                    self._indexes.move_to_end(_freeze_of(dataset))
                    return opened.index
                del self._indexes[_freeze_of(dataset)]
        raise NotLoaded(begin=lambda: self._begin(dataset, self._load_index))

    def file(self, dataset: Dataset) -> Path | bytes:
        """Return the manifest as the server sent it: a file, or its content.

        A file that did not have its seal yet, or was changed since, has to be loaded first.
        """
        path = self._path(dataset, "json")
        if self._was_checked(path):
            return path
        sheltered = self._shelter.file(_freeze_of(dataset))
        if sheltered is None:
            raise NotLoaded(begin=lambda: self._begin(dataset, self._load_file))
        return sheltered

    def is_kept(self, dataset: Dataset) -> bool:
        """Return whether the disk has it; not if the disk fails, which loading it finds out."""
        try:
            return any(self._path(dataset, kind).exists() for kind in ("index", "json"))
        except OSError:
            return False

    def drop_file(self, dataset: Dataset) -> None:
        """Drop a file that is no manifest; it is fetched anew."""
        path = self._path(dataset, "json")
        remove_if_possible(path)
        with self._lock:
            self._checked.pop(path.name, None)
        self._shelter.drop(_freeze_of(dataset))

    def _was_checked(self, path: Path) -> bool:
        """Return whether a file is there and has been as it is when it had its seal."""
        version = _version_of(path)
        return version is not None and self._checked.get(path.name) == version

    def _is_sound(self, path: Path) -> bool:
        """Return whether a file is there and has its seal; reads all of it the first time."""
        version = _version_of(path)
        if version is None:
            return False
        if self._was_checked(path):
            return True
        try:
            is_sound = has_seal_beside(path)
        except OSError:
            is_sound = False
        if not is_sound:
            logger.info("%s: a kept manifest is damaged: it is fetched anew", path)
            return False
        self._note_checked(path, version)
        return True

    def _note_checked(self, path: Path, version: _FileVersion) -> None:
        with self._lock:
            self._checked[path.name] = version
            if len(self._checked) > MAX_CHECKED:
                del self._checked[next(iter(self._checked))]

    def _begin(
        self, dataset: Dataset, load: Callable[[Dataset, ManifestLoad], None]
    ) -> ManifestLoad:
        """Return the load of this dataset that is under way; begin one if there is none."""
        is_kept = self.is_kept(dataset)  # a disk that hangs does not hold up the lock
        with self._lock:
            if self._closed:
                raise _ending()
            under_way = self._loads.get(_freeze_of(dataset))
            if under_way is not None:
                return under_way
            begun = self._loads[_freeze_of(dataset)] = ManifestLoad()
        pools.submit(  # without the lock: where there is no thread, it is settled at once
            self._kept_threads if is_kept else self._threads,
            lambda: self._run(dataset, load, begun),
            dropped=lambda: self._settle(
                dataset, begun, _ending() if self._closed else pools.without_threads(dataset.uri)
            ),
        )
        self._tidy_once()
        return begun

    def _tidy_once(self) -> None:
        """Begin to delete parts of manifests that killed processes left; they may be large."""
        with self._lock:
            is_tidy, self._is_tidy = self._is_tidy, True
        if not is_tidy:
            pools.submit(
                self._threads,
                lambda: remove_left_beside(self._directory / "*", older_than_s=ABANDONED_S),
                dropped=lambda: None,  # the next process does it
            )

    def _run(
        self,
        dataset: Dataset,
        load: Callable[[Dataset, ManifestLoad], None],
        under_way: ManifestLoad,
    ) -> None:
        fault: BaseException | None = None
        try:
            self._load_once_more_if_wrong(dataset, load, under_way)
        except (OSError, sqlite3.Error) as error:
            fault = LocalDiskError(f"{dataset.uri}: its manifest cannot be kept: {error}")
        except BaseException as error:  # noqa: BLE001 - top of a thread: its readers are told
            fault = error
        self._settle(dataset, under_way, fault)

    def _settle(
        self, dataset: Dataset, under_way: ManifestLoad, fault: BaseException | None
    ) -> None:
        with self._lock:
            del self._loads[_freeze_of(dataset)]
        if fault is None:
            under_way.future.set_result(None)
        else:
            under_way.future.set_exception(fault)

    def _load_once_more_if_wrong(
        self,
        dataset: Dataset,
        load: Callable[[Dataset, ManifestLoad], None],
        under_way: ManifestLoad,
    ) -> None:
        """Load it; a file or an answer that is no manifest is dropped, and fetched anew once."""
        try:
            load(dataset, under_way)
        except ProtocolError as error:
            self.drop_file(dataset)
            logger.info("%s: its manifest is fetched anew: %s", dataset.uri, error)
        else:
            return
        try:
            load(dataset, under_way)
        except ProtocolError:
            self.drop_file(dataset)  # or it would be what is indexed next time
            raise

    def _load_index(self, dataset: Dataset, load: ManifestLoad) -> None:
        path = self._path(dataset, "index")
        try:
            with local_part():
                index = ManifestIndex(path).open()
            _require_all_items(dataset, index.number_of_items)
        except DserverfsError as error:
            if not isinstance(error, (NotFound, LocalDiskError)):
                logger.warning("made anew: %s", error)
            index = self._kept_or_sheltered(
                lambda: self._make_index(dataset, load, path),
                lambda: self._shelter.take_index(self._pieces(dataset, load)),
            )
            try:
                _require_all_items(dataset, index.number_of_items)
            except ProtocolError:
                remove_if_possible(path)
                raise
        with self._lock:
            self._indexes[_freeze_of(dataset)] = _OpenIndex(index, path)
            in_memory = sum(held.index.memory_in_bytes for held in self._indexes.values())
            while len(self._indexes) > MAX_OPEN_INDEXES or in_memory > MAX_IN_MEMORY_BYTES:
                _, dropped = self._indexes.popitem(last=False)
                in_memory -= dropped.index.memory_in_bytes  # closed by its last user

    def _kept_or_sheltered(self, keep: Callable[[], T], shelter: Callable[[], T]) -> T:
        """Call `keep`, or `shelter` while the disk fails, which is logged once."""
        if not self._troubles.is_unwritable():
            try:
                private_directory(self._directory)  # the user may have emptied the cache
                kept = keep()
                self._troubles.is_over()
                return kept
            except (LocalDiskError, UsageError) as error:
                self._troubles.cannot_be_written(error)
        return shelter()

    def _make_index(self, dataset: Dataset, load: ManifestLoad, index_path: Path) -> ManifestIndex:
        """Index the manifest, while it is fetched if it is not here."""
        path = self._path(dataset, "json")
        with local_part():
            clear_way(index_path)
        with Indexing(index_path) as indexing:
            with self._lock:
                if self._closed:
                    raise _ending()
                self._indexings.add(indexing)
            try:
                if self._is_sound(path):
                    for piece in manifest_indexing.pieces_of(path):
                        indexing.write(piece)
                    indexing.finish()
                else:
                    pieces = self._pieces(dataset, load)
                    self._fetch(pieces, path, indexing.write, indexing.finish)
            finally:
                with self._lock:
                    self._indexings.discard(indexing)
        return _reopened(index_path)

    def _load_file(self, dataset: Dataset, load: ManifestLoad) -> None:
        path = self._path(dataset, "json")
        if not self._is_sound(path):
            self._kept_or_sheltered(
                lambda: self._fetch(self._parsed(dataset, load), path, _nothing, _nothing),
                lambda: self._shelter.take_file(_freeze_of(dataset), self._parsed(dataset, load)),
            )

    def _fetch(
        self,
        pieces: Iterator[bytes],
        path: Path,
        use: Callable[[bytes], object],
        end: Callable[[], object],
    ) -> None:
        """Write a manifest to `path`, and hand each piece to `use` as it comes.

        `end` is called after the last piece; if it raises, the file is not kept.
        """
        with local_part():
            clear_way(path)
        sealing = Sealing(path)
        with local_part(), replacing_unsynced(path) as file:
            unlooked_bytes = 0
            for piece in pieces:
                unlooked_bytes += len(piece)
                if unlooked_bytes >= BYTES_BETWEEN_LOOKS:
                    unlooked_bytes = 0
                    self._require_space()
                file.write(piece)
                sealing.add(piece)
                use(piece)
            end()
            write_seal_beside(path, sealing)
            sync_open(file)
            version = _version_in(os.fstat(file.fileno()))
        self._note_checked(path, version)

    def _parsed(self, dataset: Dataset, load: ManifestLoad) -> Iterator[bytes]:
        """Yield what `_pieces` does; raises ProtocolError at its end if it is not the manifest."""
        stream = ManifestStream()
        number = 0
        for piece in self._pieces(dataset, load):
            number += len(stream.feed(piece))
            yield piece
        _require_all_items(dataset, number + len(stream.close()))

    def _require_space(self) -> None:
        """Raise OSError if the disk has only the space left that the cache leaves free."""
        if lacking_in_bytes(self._directory) > 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._directory))

    def _pieces(self, dataset: Dataset, load: ManifestLoad) -> Iterator[bytes]:
        """Yield the manifest as it comes."""
        received_bytes = 0
        load.downloading(received_bytes)
        for piece in self._sent(dataset):
            yield piece
            received_bytes += len(piece)
            load.downloading(received_bytes)
            if self._closed:
                raise _ending()
        load.downloaded()

    def _sent(self, dataset: Dataset) -> Iterator[bytes]:
        try:
            yield from self._answers.manifest_pieces(dataset)
        except NotFound as error:
            explained = self._explain(dataset, error)
            if explained is error:
                raise
            raise explained from error

    def _path(self, dataset: Dataset, suffix: str) -> Path:
        about = f"{KEPT_FORMAT} {self._server} {_freeze_of(dataset)}"
        key = hashlib.sha256(about.encode()).hexdigest()
        return self._directory / f"{key[:40]}.{suffix}"


def _freeze_of(dataset: Dataset) -> str:
    """Return what a manifest is of: a dataset can be deleted and made again with its uuid.

    A date that another route of a server tells differs by less than a second.
    """
    return f"{dataset.uri} {math.floor(dataset.frozen_at + DATE_TOLERANCE_S)}"


def _version_of(path: Path) -> _FileVersion | None:
    """Return what changes with the content of a file; None if there is no file."""
    try:
        return _version_in(path.lstat())
    except OSError:
        return None


def _version_in(status: os.stat_result) -> _FileVersion:
    return _FileVersion(status.st_ino, status.st_size, status.st_mtime_ns)


def _require_all_items(dataset: Dataset, number: int) -> None:
    """Raise ProtocolError if a manifest has fewer items than the dataset is listed with.

    What is not shown is deleted elsewhere by `rsync --delete`. A listing that has fewer, or no
    number, comes from whoever registered the dataset, and hides nothing.
    """
    if dataset.number_of_items is not None and number < dataset.number_of_items:
        raise ProtocolError(
            f"{dataset.uri}: the server lists it with {dataset.number_of_items} items, and sent a"
            f" manifest of {number}; tried again later, ask who runs the server if it stays so"
        )


def _reopened(path: Path) -> ManifestIndex:
    """Return the index that was made just now."""
    try:
        return ManifestIndex(path).open()
    except DserverfsError as error:
        raise LocalDiskError(f"{path}: is gone again: {error}") from error


def _ending() -> Cancelled:
    return Cancelled("the daemon is ending")


def _nothing(*what: object) -> None:
    """Do nothing."""
