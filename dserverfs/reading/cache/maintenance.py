"""Maintenance of the block cache: its content in numbers, emptying it, checking all of it.

Used by the command line. Safe beside processes that use the same cache: a block that is
gone is fetched again. Blocking; raises CacheUnusable where reading does without a cache.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base import disk_space
from dserverfs.base.checksums import checksums
from dserverfs.base.disk_space import AS_IT_IS
from dserverfs.base.disk_troubles import said_of
from dserverfs.base.errors import DserverfsError
from dserverfs.base.items import BLOCK_SIZE, number_of_blocks
from dserverfs.reading.cache import eviction
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_files import StoredFile, size_on_disk
from dserverfs.reading.cache.block_keys import (
    BLAKE3,
    FORMAT_VERSION,
    HASHES,
    prefix_of,
)
from dserverfs.reading.cache.block_table import FAILURES, BlockTable, StoredRow
from dserverfs.reading.cache.kept_hashes import hashes_kept

# A younger file may belong to a process that is about to enter it.
_NEW_S = 60.0
_OTHER_VERSION = re.compile(rf"(?!{FORMAT_VERSION}:)\d+:\d+:")
_CONTENT = re.compile(r"=[^:]*:[^:]*:(\d+)")

# Called with blocks done and blocks in all.
Progress = Callable[[int, int], None]


class _Outdated(Exception):
    """A block of another version."""


class CacheUnusable(DserverfsError):
    """The cache cannot be opened or read; mounts read without it."""


class CacheFacts(NamedTuple):
    """The content of a cache, in numbers."""

    directory: str
    size_in_bytes: int
    limit_in_bytes: int
    blocks: int
    items: int  # of which at least one block is here
    verified_items: int  # all of whose blocks are here, compared with their manifest
    pinned_in_bytes: int  # of items, whether their blocks are here or not


class Room(NamedTuple):
    """The bytes that a cache has and can take."""

    limit: int  # 0: this process keeps nothing
    held: int  # by all blocks
    pinned: int  # of items, whether their blocks are here or not
    free: int  # on the disk, beyond what is left to others


class CheckResult(NamedTuple):
    """The result of reading every block."""

    blocks: int
    size_in_bytes: int
    damaged: int  # dropped, as all of the following
    outdated: int  # of another version
    missing: int  # rows whose file is gone
    orphaned: int  # files that no row names


def facts(cache: BlockCache) -> CacheFacts:
    """Return the numbers of blocks, items and bytes in the cache."""
    with usable(cache) as table:
        held = _Held()
        prefix = prefix_of("")[:-1]
        for key in table.all_keys():
            if isinstance(key, str) and key.startswith(prefix):
                held.add(key.removeprefix(prefix))
        items, whole = held.items(cache)
        return CacheFacts(
            directory=str(cache.directory),
            size_in_bytes=size_on_disk(cache.directory),
            limit_in_bytes=table.size_limit,
            blocks=len(held.named_by_hash) + sum(map(len, held.blocks.values())),
            items=len(items),
            verified_items=len(whole),
            pinned_in_bytes=cache.pins.size_in_bytes(),
        )


class _Held:
    """The keys of a cache, by what they stand for."""

    def __init__(self) -> None:
        self.blocks: dict[str, set[str]] = {}  # their indices, by item or content
        self.named_by_hash: set[str] = set()
        self._pages: Counter[str] = Counter()  # of hashes, by the size and key of their item

    def add(self, key: str) -> None:
        item, _, index = key.rpartition(":")
        if item.startswith(BLAKE3):
            self.named_by_hash.add(item.removeprefix(BLAKE3))
        elif item.startswith(HASHES):
            self._pages[item.removeprefix(HASHES)] += 1
        else:
            self.blocks.setdefault(item, set()).add(index)

    def items(self, cache: BlockCache) -> tuple[set[str], set[str]]:
        """Return the items, or contents, of which a block is here, and those that are whole."""
        items = {*self.blocks}
        whole = {item for item, indices in self.blocks.items() if _is_whole(item, len(indices))}
        for described, pages in self._pages.items():
            size, _, item = described.partition(":")
            hashes = _hashes(cache, item, int(size), pages)
            if not self.named_by_hash.isdisjoint(hashes):
                items.add(item)
            compared = self.blocks.get(item, set()) if item.startswith("=") else set[str]()
            if len(hashes) == number_of_blocks(int(size)) and all(
                hash in self.named_by_hash or f"{index}" in compared
                for index, hash in enumerate(hashes)
            ):
                whole.add(item)
        return items, whole


def _hashes(cache: BlockCache, item: str, size_in_bytes: int, pages: int) -> list[str]:
    """Return the hashes of an item's blocks that are here, in hexadecimal digits."""
    return [
        hash.hex()
        for page in range(pages)
        for hash in hashes_kept(cache, item, size_in_bytes, page)
    ]


def room(cache: BlockCache) -> Room:
    """Return what there is room for, in this process."""
    with usable(cache) as table:
        return Room(
            limit=0 if cache.keeps_nothing else table.size_limit,
            held=table.held_in_bytes(),
            pinned=cache.pins.size_in_bytes(),
            free=-disk_space.lacking_in_bytes(cache.directory),
        )


def clear(cache: BlockCache) -> CacheFacts:
    """Forget every block that is not pinned; return the numbers of before."""
    before = facts(cache)
    with usable(cache) as table:
        if before.pinned_in_bytes:
            table.clear_unpinned()
        else:
            table.clear()
        eviction.sweep(table, cache.directory, _NEW_S)
        table.give_back()
    cache.tell_removed()
    return before


def check(cache: BlockCache, progress: Progress) -> CheckResult:
    """Read every block and drop those that do not have their checksums.

    Blocks of an earlier version, which nobody reads any more, go as well; those of a newer
    version, which shares the directory, stay.
    """
    damaged = outdated = missing = read_bytes = done = pages = 0
    with usable(cache) as table:
        total = len(table)
        for row in table.rows():
            if _is_of_a_newer_version(row.key):
                continue
            try:
                size = _sound_size(table, row)
            except _Outdated:
                size = None
                outdated += 1
            except FileNotFoundError:
                size = None
                missing += 1
            except OSError:
                size = None
                damaged += 1
            if size is None:
                table.delete_unless_replaced(row)
            read_bytes += size or 0
            done += 1
            pages += isinstance(row.key, str) and row.key.startswith(prefix_of(HASHES)[:-1])
            progress(done, total)
        orphaned = eviction.sweep(table, cache.directory, eviction.ORPHANED_AFTER_S)
    return CheckResult(done - pages, read_bytes, damaged, outdated, missing, orphaned)


@contextlib.contextmanager
def usable(cache: BlockCache) -> Iterator[BlockTable]:
    """Yield the cache's table; its errors become CacheUnusable."""
    table = cache.table
    if table is None:
        raise CacheUnusable(f"cache {cache.directory}: cannot be used")
    try:
        yield table
    except FAILURES as error:
        raise CacheUnusable(f"cache {cache.directory}: {said_of(error)}") from error


def _is_whole(item: str, count: int) -> bool:
    match = _CONTENT.fullmatch(item)
    return match is not None and count == number_of_blocks(int(match[1]))


def _is_of_a_newer_version(key: Any) -> bool:
    version = key.partition(":")[0] if isinstance(key, str) else ""
    return version.isdecimal() and int(version) > FORMAT_VERSION


def _sound_size(table: BlockTable, row: StoredRow) -> int:
    """Return the length of a block that has its checksums; raises OSError if it does not."""
    sums = row.checksums
    if sums is None:
        if isinstance(row.key, str) and _OTHER_VERSION.match(row.key):
            raise _Outdated
        raise OSError("a row does not have its seal")
    if not row.key.startswith(prefix_of("")[:-1]):
        raise _Outdated
    stored = table.disk.fetch(row.mode, row.filename, row.value, False)
    if isinstance(stored, StoredFile):
        length = row.size if isinstance(row.size, int) else 0
        stored = os.pread(stored.file.fd, max(0, min(length, BLOCK_SIZE)), stored.start)
    if checksums(stored) != sums:
        raise OSError("does not have its checksums")
    return len(stored)


def at(directory: Path) -> BlockCache:
    """Return the block cache below a cache directory."""
    return BlockCache(directory / "blocks", size_limit=AS_IT_IS)
