"""Manifests that the cache's disk does not take, because it is full, fails, or is gone.

Used by the manifests. Small ones are in memory, which even a limit on the size of files
leaves alone. Larger ones are in files without a name, in the first place that takes
them: nothing is left behind, however the process ends. Thread-safe.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from dserverfs.base.errors import DserverfsError, LocalDiskError
from dserverfs.base.local_files import SharedFile
from dserverfs.catalogue.manifest_index import ManifestIndex
from dserverfs.catalogue.manifest_indexing import (
    IN_PROCESS_DIRECTORIES,
    Indexing,
    build_in_memory,
    local_part,
)

# 20,000 items; what is larger would be felt in a daemon of 150 MiB.
MAX_IN_MEMORY_BYTES = 4 * 1024 * 1024
MAX_FILES = 8  # of manifests as they were sent; rarely looked at


class ManifestShelter:
    """The manifests of this process alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[str, bytes | SharedFile] = OrderedDict()

    def take_index(self, pieces: Iterator[bytes]) -> ManifestIndex:
        """Return an index of the manifest; raises LocalDiskError, and what `pieces` raises."""
        head, is_all = _head(pieces)
        if is_all:
            index = ManifestIndex(Path("a manifest in memory")).adopt(build_in_memory(head))
            index.memory_in_bytes = sum(map(len, head))
            return index
        directory = _directory()
        try:
            path = directory / "index"
            with Indexing(path) as indexing:
                for piece in head:
                    indexing.write(piece)
                head.clear()
                for piece in pieces:
                    indexing.write(piece)
                indexing.finish()
            return _opened(path)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def take_file(self, key: str, pieces: Iterator[bytes]) -> None:
        """Keep the manifest as it was sent; raises as `take_index`."""
        head, is_all = _head(pieces)
        kept: bytes | SharedFile
        if is_all:
            kept = b"".join(head)
        else:
            directory = _directory()
            try:
                kept = _written(directory / "json", head, pieces)
            finally:
                shutil.rmtree(directory, ignore_errors=True)
        with self._lock:
            self._files[key] = kept
            while len(self._files) > MAX_FILES:
                self._files.popitem(last=False)

    def file(self, key: str) -> Path | bytes | None:
        """Return a manifest that was taken, or a path by which this process can open it."""
        with self._lock:
            kept = self._files.get(key)
        return Path(f"/proc/self/fd/{kept.fd}") if isinstance(kept, SharedFile) else kept

    def drop(self, key: str) -> None:
        with self._lock:
            self._files.pop(key, None)

    def close(self) -> None:
        with self._lock:
            self._files.clear()


def _head(pieces: Iterator[bytes]) -> tuple[list[bytes], bool]:
    """Return as many pieces as may be in memory, and whether there are no others."""
    head: list[bytes] = []
    size_in_bytes = directories = 0
    for piece in pieces:
        head.append(piece)
        size_in_bytes += len(piece)
        directories += piece.count(b"/")
        if size_in_bytes > MAX_IN_MEMORY_BYTES or directories > IN_PROCESS_DIRECTORIES:
            return head, False
    return head, True


def _directory() -> Path:
    """Return a new private directory where temporary files go; raises LocalDiskError."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    with local_part():
        try:
            return Path(tempfile.mkdtemp(prefix="dserverfs-"))
        except OSError:
            if not runtime:
                raise
            return Path(tempfile.mkdtemp(prefix="dserverfs-", dir=runtime))


def _opened(path: Path) -> ManifestIndex:
    try:
        return ManifestIndex(path).open()
    except DserverfsError as error:
        raise LocalDiskError(str(error)) from error


def _written(path: Path, head: list[bytes], pieces: Iterator[bytes]) -> SharedFile:
    with local_part():
        file = SharedFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    for piece in head:
        _append(file, piece)
    head.clear()
    for piece in pieces:
        _append(file, piece)
    return file


def _append(file: SharedFile, piece: bytes) -> None:
    view = memoryview(piece)
    with local_part():
        while view:
            view = view[os.write(file.fd, view) :]
