"""Items as whole local files, for programs that want a path.

Below dtool's cache directory, `dserver/<server, base URI and uuid>/<identifier>-<hash><extension>`,
with whole and verified files only: content goes into a file of another name, is
compared with the manifest, and renamed. The file has the item's time and no write
permission, so that a changed file is noticed and fetched anew. Neither another dataset
of that uuid nor another content of the item has its path. Thread-safe, also between
processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import IO

from dserverfs.base.durable_files import remove_left_beside, written_beside
from dserverfs.base.errors import IntegrityError, UsageError
from dserverfs.base.hashes import file_digest, known_hasher
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.base.limits import MAX_COMPONENT_BYTES, component_is_usable
from dserverfs.base.model import DserverURI, Item
from dserverfs.reading.block_reader import BlockReader
from dserverfs.reading.open_item import OpenItem
from dserverfs.reading.ranges import RangeFetcher
from dserverfs.reading.traced_items import TraceFile
from dserverfs.reading.whole_item import download

logger = logging.getLogger(__name__)

# A larger item would be written twice: into the file and, in blocks, into the cache.
MAX_THROUGH_CACHE = 8 * BLOCK_SIZE
_PARTIAL = ".partial"  # no program that lists the directory takes it for an item
_ABANDONED_S = 24 * 3600.0  # no fetch takes longer, guess
_NAME = re.compile(r"[0-9a-f]{40}-[0-9a-f]{1,128}")


class ItemFiles:
    """Files of one dataset's items."""

    def __init__(
        self,
        reader: BlockReader,
        ranges: RangeFetcher,
        directory: Path,
        prepare: Callable[[], None],
        trace: TraceFile | None = None,
    ) -> None:
        """`prepare` is called before something is fetched from the store.

        `trace` is told of each file that is asked for.
        """
        self._reader = reader
        self._ranges = ranges
        self._prepare = prepare
        self._trace = trace
        self._directory = directory
        self._made = False

    def fetch(self, content: ItemContent, item: Item) -> Path:
        """Return the path of the item's file, and fetch it if it is not there; blocks.

        Raises IntegrityError, and UsageError if the directory cannot be used.
        """
        path = self._directory / _file_name(item)
        try:
            self._make_directory()
            if not self._is_good(path, content, item):
                if not self._reader.has_all(content):
                    self._prepare()
                self._write(path, content, item)
        except OSError as error:
            raise UsageError(
                f"{path}: cannot be used: {error.strerror};"
                " DTOOL_CACHE_DIRECTORY names another place"
            ) from error
        if self._trace is not None:
            self._trace.read_whole(content)
        return path

    def _make_directory(self) -> None:
        if self._made:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        remove_left_beside(self._directory / _PARTIAL, older_than_s=_ABANDONED_S)
        self._made = True

    def _is_good(self, path: Path, content: ItemContent, item: Item) -> bool:
        try:
            status = path.lstat()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(status.st_mode) or status.st_size != item.size_in_bytes:
            return False
        if status.st_uid == os.geteuid() and status.st_mtime_ns == item.mtime_ns:
            return True
        if file_digest(path, content.hash_function) != content.hash:
            return False
        with contextlib.suppress(PermissionError):  # the file is another user's
            os.utime(path, ns=(item.mtime_ns, item.mtime_ns))  # it was touched
        return True

    def _write(self, path: Path, content: ItemContent, item: Item) -> None:
        with written_beside(self._directory / _PARTIAL) as (file, partial):
            found = self._copy(file, content)
            if found != content.hash:
                # Blocks that were cached without having been compared as a whole.
                logger.warning("%s; fetched once more", _mismatch(content, found))
                self._reader.drop(content)
                found = self._copy(file, content)
            if found != content.hash:
                self._reader.drop(content)
                raise IntegrityError(_mismatch(content, found), uri=content.dataset.uri)
            os.utime(partial, ns=(item.mtime_ns, item.mtime_ns))
            partial.chmod(0o444)
            os.replace(partial, path)

    def _copy(self, file: IO[bytes], content: ItemContent) -> str:
        """Write the item to an open file; return the hash of what was written."""
        file.seek(0)
        file.truncate()
        if content.size_in_bytes > MAX_THROUGH_CACHE and not self._reader.is_at_hand(content):
            return download(self._ranges, content, file.fileno())
        return self._copy_blocks(file, content)

    def _copy_blocks(self, file: IO[bytes], content: ItemContent) -> str:
        """As `_copy`, through the cache, which the mount shares."""
        hasher = known_hasher(content.hash_function)
        reader = OpenItem(self._reader, content)
        for offset in range(0, content.size_in_bytes, BLOCK_SIZE):
            block = memoryview(reader.read(offset, BLOCK_SIZE))
            hasher.update(block)
            file.write(block)
        file.flush()
        return hasher.hexdigest()


def directory_of(cache_directory: Path, dataset: DserverURI) -> Path:
    """Return the directory for the items of one dataset and of no other."""
    # Never a uuid alone: earlier versions had one directory for all datasets of a uuid.
    scheme, _, rest = str(dataset).partition("://")
    return cache_directory / scheme / _component(urllib.parse.quote(rest, safe=""))


def _file_name(item: Item) -> str:
    """Return identifier and hash with the relpath's extension, by which programs tell formats."""
    stem = f"{item.identifier}-{item.hash}"
    if not _NAME.fullmatch(stem):  # a hostile manifest: the name stays one component
        stem = hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()
    name = stem + os.path.splitext(item.relpath)[1]
    return name if component_is_usable(name) else stem


def _component(text: str) -> str:
    """Return `text`, or its hash if it is too long for a name."""
    if len(text) <= MAX_COMPONENT_BYTES:
        return text
    return hashlib.sha256(text.encode()).hexdigest()


def _mismatch(content: ItemContent, found: str) -> str:
    return f"{content.label} has hash {found}, the manifest says {content.hash}"
