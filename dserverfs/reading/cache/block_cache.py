"""The disk cache of item blocks: diskcache, hardened and limited.

One directory per user (mode 0700), shared by all mounts and processes. Used by the block
reader; knows neither server, URL nor network. A cache that fails is a cache that misses:
no method of BlockCache raises for a bad disk.

A block is stored under its item's key. When the whole item was compared with its hash,
its blocks move, without being rewritten, to a key of that hash, where every item with
the same content finds them. Only verified blocks are under such a key.

On disk: `blocks/cache.db` (SQLite), a row for each block with the checksums of
its chunks, and a file for each block that is not small. Files are written before
the transaction with their rows, so a killed process leaves at worst files
without a row, which a sweep once a day removes. Bytes that a power cut or a fault of
the disk damaged do not pass their checksums.

Thread-safe.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from dserverfs.base import disk_space, threads
from dserverfs.base.directories import CannotBeMade, private_directory
from dserverfs.base.disk_troubles import RETRY_AFTER_FAILURE_S, CacheTroubles, means_corrupt
from dserverfs.base.errors import UsageError
from dserverfs.base.local_files import SharedFile, is_full
from dserverfs.base.locks import locked_within
from dserverfs.reading.cache import eviction, layout
from dserverfs.reading.cache.block_files import MIN_FILE_SIZE, Value
from dserverfs.reading.cache.block_keys import BlockKey, range_of
from dserverfs.reading.cache.block_table import (
    BUSY_TIMEOUT_S,
    FAILURES,
    BlockTable,
    Row,
)
from dserverfs.reading.cache.blocks import Block, FileBlock, MemoryBlock
from dserverfs.reading.cache.opening import open_table, throw_away
from dserverfs.reading.cache.pins import Pins
from dserverfs.reading.cache.row_blocks import RowBlocks
from dserverfs.reading.cache.watch import WATCH_S, CacheWatch

logger = logging.getLogger(__name__)

T = TypeVar("T")

OPEN_TIMEOUT_S = 10.0
# For so long other processes may take to close what was evicted.
OTHERS_CLOSE_S = 3 * WATCH_S
_NOTES_PER_BATCH = 256
_ROWS_PER_TRANSACTION = 512


class CacheTuning(NamedTuple):
    """The times and sizes of a cache that tests make smaller."""

    busy_timeout_s: float = BUSY_TIMEOUT_S
    retry_after_failure_s: float = RETRY_AFTER_FAILURE_S
    free_space_check_s: float = 2.0
    make_room_in_bytes: int = 64 * 1024 * 1024  # when a quota or the disk is exhausted


_AS_MEASURED = CacheTuning()
_AS_NAMED: Mapping[BlockKey, BlockKey] = {}


class CacheUsage(NamedTuple):
    """How full a cache is."""

    directory: str
    size_in_bytes: int
    limit_in_bytes: int


class BlockCache:
    """Blocks on disk. `open` first; `close` when done."""

    def __init__(
        self,
        directory: Path,
        *,
        size_limit: int | None = None,
        on_removal: Callable[[Collection[SharedFile] | None], None] = lambda files: None,
        tuning: CacheTuning = _AS_MEASURED,
    ) -> None:
        """`size_limit` is in bytes, or AS_IT_IS; 0 keeps nothing new, None is half of what is free.

        The blocks that others have kept there can be read in any case. `on_removal` is
        called, in any thread, when files were removed, and has to close them: some of those that
        it is given, or with None any.
        """
        self._directory = directory
        self._size_limit = size_limit
        self._tuning = tuning
        self._table: BlockTable | None = None
        self._is_open = False
        self._on_removal = on_removal
        self._troubles = CacheTroubles(directory, tuning.retry_after_failure_s)
        self._watch = CacheWatch(directory, self._look)
        self.pins = Pins(directory)
        self._lock = threading.Lock()
        self._used: dict[int, float] = {}  # row numbers; when each was used last
        self._blocks = RowBlocks()
        self._space_checked_s = 0.0
        self._space_left = True
        self._must_reopen = False
        self._corrupt: Exception | None = None  # what the database said that is still in its place

    @property
    def directory(self) -> Path:
        return self._directory

    @property
    def keeps_nothing(self) -> bool:
        return self._size_limit == 0

    @property
    def table(self) -> BlockTable | None:
        """The table of blocks, for `maintenance`; None if it cannot be used."""
        return self._readable()

    def usage(self) -> CacheUsage | None:
        """Return how full it is; None if the disk cannot be asked."""

        def ask(table: BlockTable) -> CacheUsage | None:
            return CacheUsage(str(self._directory), table.held_in_bytes(), table.size_limit)

        return self._asked(ask, None)

    def open(self) -> None:
        """Open or make the cache; a corrupt one is thrown away, with one line in the log.

        Raises UsageError unless the directory is ours and private, or cannot be made now,
        and if it is a newer version's.
        """
        self._is_open = True
        try:
            private_directory(self._directory)
            layout.clear_lock(self._directory)
            # One process removes a corrupt database.
            with locked_within(self._directory / layout.LOCK, OPEN_TIMEOUT_S):
                layout.prepare(self._directory)
                self._throw_away_corrupt()
                busy_timeout_s = self._tuning.busy_timeout_s
                table = open_table(self._directory, self._size_limit, busy_timeout_s)
                self._table = table
                self._watch.opened()
            due = eviction.sweep_is_due(self._directory)
            # A process without a limit of its own, which only looks, leaves that to others.
            has_limit = self._size_limit is None or self._size_limit > 0
            excess = table.excess_in_bytes() if has_limit else 0
            if due or excess > 0:
                threads.started(lambda: self._tidy(table, excess, due), name="tidy")
        except (CannotBeMade, *FAILURES) as error:
            self._troubles.broke(error)

    def load(self, key: BlockKey, length: int) -> Block | None:
        """Return the block of `length` bytes if it is here, else None.

        A block in a file is compared with its checksums when it is read.
        """
        return self.load_many([(key, length)])[0]

    def load_many(self, wanted: Sequence[tuple[BlockKey, int]]) -> list[Block | None]:
        """As `load`, for several blocks with one question to the database."""
        table = self._readable()
        if table is None or not wanted:
            return [None] * len(wanted)
        keys = [key.as_text() for key, _ in wanted]
        try:
            rows = table.find(keys)
        except FAILURES as error:
            self._fail(error)
            return [None] * len(wanted)
        blocks = [
            self._load_row(table, rows[text], key, length) if text in rows else None
            for text, (key, length) in zip(keys, wanted, strict=True)
        ]
        self._write_notes(at_least=_NOTES_PER_BATCH)
        return blocks

    def _load_row(self, table: BlockTable, row: Row, key: BlockKey, length: int) -> Block | None:
        try:
            block = self._blocks.of_row(table, row, length)
        except FileNotFoundError:  # evicted just now
            return None
        except OSError as error:
            self._fail(error)
            return None
        if block is None:
            self.drop_damaged(key)
            return None
        if isinstance(block, FileBlock):
            self._watch.start()
        self.note_use(block)
        return block

    def store(
        self,
        blocks: Sequence[tuple[BlockKey, MemoryBlock]],
        origins: Mapping[BlockKey, BlockKey] = _AS_NAMED,
    ) -> Mapping[BlockKey, Block]:
        """Keep the blocks; return those that are in files now, the large ones of an item in one.

        `origins` has the item and block that a block was read as, if that is not its key. If
        the disk is full or failing, do nothing, and say so in the log once a while.
        """
        table = self._writable()
        if table is None or not self._has_space(table):
            return {}
        small = [(k.as_text(), block) for k, block in blocks if len(block.data) < MIN_FILE_SIZE]
        distinct = {key: block for key, block in blocks if len(block.data) >= MIN_FILE_SIZE}
        values: list[Value] = []
        removed = table.disk.times_removed
        pinned = self.pins.blocks_among([key for key, _ in blocks], origins)
        try:
            if pinned:
                table.pin([*pinned])  # those that are here already, for others
            kept = self._kept(table, distinct)
            large = [(key, block) for key, block in distinct.items() if key not in kept]
            large.sort(key=lambda block: origins.get(block[0], block[0]))
            for _, group in itertools.groupby(
                large, lambda block: origins.get(block[0], block[0]).item
            ):
                values += table.disk.prepare([block.data for _, block in group])
            rows = table.store(
                small,
                [
                    (key.as_text(), block, value)
                    for (key, block), value in zip(large, values, strict=True)
                ],
                pinned,
            )
        except FAILURES as error:
            for value in values:
                table.disk.discard(value)
            self._fail_writing(table, error)
            return {}
        if table.disk.times_removed != removed:
            self._tell_removed_by(table)
        self._troubles.is_over()
        self._watch.start()
        self._write_notes(at_least=_NOTES_PER_BATCH)
        stored = {
            key: self._blocks.stored(block, value.file, row)
            for (key, block), value, row in zip(large, values, rows, strict=True)
            if value.file is not None
        }
        return {**kept, **stored}

    def _kept(
        self, table: BlockTable, blocks: Mapping[BlockKey, MemoryBlock]
    ) -> dict[BlockKey, Block]:
        """Return the blocks that are here already: those named by their own hashes often are."""
        named = {key: block for key, block in blocks.items() if key.names_content}
        rows = table.find([key.as_text() for key in named]) if named else {}
        kept = {}
        for key, block in named.items():
            row = rows.get(key.as_text())
            if row is not None and row.checksums == block.checksums:
                with contextlib.suppress(OSError):
                    found = self._blocks.of_row(table, row, len(block.data))
                    if found is not None:
                        kept[key] = found
        return kept

    def enter_verified(self, item: str, content: str, serials: Sequence[int]) -> None:
        """Move the blocks of `item` to `content`, where every item like it finds them.

        The item was compared with its hash; `serials` are of the blocks that were.
        Another one in the place of a block stays as it is: it was not compared.
        """
        table = self._writable()
        if table is None:
            return
        moves = [
            (BlockKey(item, index).as_text(), BlockKey(content, index).as_text(), serial)
            for index, serial in enumerate(serials)
            if serial
        ]
        try:
            for start in range(0, len(moves), _ROWS_PER_TRANSACTION):
                table.move(moves[start : start + _ROWS_PER_TRANSACTION])
        except FAILURES as error:
            self._fail_writing(table, error)

    def move(self, old: BlockKey, new: BlockKey, serial: int) -> None:
        """Give a block another key, if it is still the one with that serial."""
        table = self._writable()
        if table is not None and serial:
            try:
                table.move([(old.as_text(), new.as_text(), serial)])
            except FAILURES as error:
                self._fail_writing(table, error)

    def present(self, keys: Sequence[BlockKey]) -> list[bool]:
        """Return of each block whether it is here, as far as the database knows."""
        texts = [key.as_text() for key in keys]
        found = self._asked(lambda table: table.present(texts), set[str]())
        return [text in found for text in texts]

    def count(self, item: str) -> int:
        """Return how many blocks of an item, or of a content, are here."""
        return self._asked(lambda table: table.count(*range_of(item)), 0)

    def drop(self, keys: Sequence[BlockKey]) -> None:
        """Forget these blocks."""
        self._asked(lambda table: table.delete(key.as_text() for key in keys), None)

    def drop_item(self, item: str) -> None:
        """Forget every block of an item, or of a content, that is here; it may have 2**63 bytes."""
        self._asked(lambda table: table.delete_between(*range_of(item)), None)

    def tell_removed(self) -> None:
        """Let every process close files of the cache that were removed past this class."""
        self._watch.removed()
        self._on_removal(None)

    def drop_damaged(self, key: BlockKey) -> None:
        """Forget a block that does not have its checksums."""
        logger.warning("cache %s: a damaged block is fetched again", self._directory)
        self.drop([key])

    def note_use(self, block: Block) -> None:
        """Note that the block was used now. Cheap, never waits."""
        if block.row:
            self._used[block.row] = time.time()

    def close(self) -> None:
        self._write_notes(at_least=1)
        with self._lock:  # after one that is just opened anew
            self._is_open = False
            table, self._table = self._table, None
        self._watch.close()
        if table is not None:
            table.close()
        self.pins.close()

    def evict(self, size_in_bytes: int) -> bool:
        """Give back at least that much of the disk to others; return True if it could.

        Waits shortly for other processes to close the evicted files.
        """
        table = self._readable()
        if table is None:
            return False
        try:
            freed = self._evict(table, size_in_bytes)
            end_s = time.monotonic() + OTHERS_CLOSE_S
            while disk_space.free_in_bytes(self._directory) < size_in_bytes:
                if time.monotonic() >= end_s or not self._watch.is_recent():
                    return False
                time.sleep(0.02)
        except FAILURES as error:
            self._fail_writing(table, error)
            return False
        return freed > 0 or self._watch.is_recent()

    def _asked(self, ask: Callable[[BlockTable], T], otherwise: T) -> T:
        """Return the table's answer; `otherwise` if the cache cannot be read."""
        table = self._readable()
        if table is None:
            return otherwise
        try:
            return ask(table)
        except FAILURES as error:
            self._fail(error)
            return otherwise

    def _readable(self) -> BlockTable | None:
        """Return the table, or None while the cache is closed or fails."""
        if self._troubles.is_broken():
            return None
        if self._is_open and (self._must_reopen or self._table is None):
            self._reopen()
        return self._table

    def _reopen(self) -> None:
        with self._lock:
            if not self._is_open or (self._table is not None and not self._must_reopen):
                return
            self._must_reopen = False
            self._table = None
            try:
                self.open()
            except UsageError as error:
                self._troubles.broke(error)

    def _throw_away_corrupt(self) -> None:
        """Delete the database that was found corrupt in use: it may look sound when it is opened.

        Unless another process has made it anew meanwhile.
        """
        corrupt, self._corrupt = self._corrupt, None
        if corrupt is not None and not self._watch.is_gone():
            throw_away(self._directory, corrupt)

    def _look(self) -> None:
        """Close removed files; make the cache anew if it was taken away."""
        self._on_removal(None)
        if self._table is not None and self._watch.is_gone():
            self._must_reopen = True

    def _writable(self) -> BlockTable | None:
        """Return the table, or None if nothing new is to be kept."""
        if self.keeps_nothing or self._troubles.is_unwritable():
            return None
        if self._watch.is_gone():  # a write would make half of it anew
            self._look()
        return self._readable()

    def _fail(self, error: Exception) -> None:
        """Go without the cache for a while."""
        if self._troubles.broke(error) and means_corrupt(error):
            self._corrupt = error
            self._must_reopen = True

    def _fail_writing(self, table: BlockTable, error: Exception) -> None:
        """Keep nothing new for a while; cached blocks can still be read."""
        if means_corrupt(error):
            self._fail(error)
            return
        if self._watch.is_gone():  # taken away in the middle of this: the next one makes it anew
            self._look()
            return
        if not self._troubles.cannot_be_written(error):
            return
        if isinstance(error, OSError) and is_full(error):
            # The file system does not tell of quotas: give back a part of what we have.
            with contextlib.suppress(*FAILURES):
                self._evict(table, self._tuning.make_room_in_bytes)

    def _has_space(self, table: BlockTable) -> bool:
        """Return True if the floor of free space is kept, by an eviction if need be."""
        now_s = time.monotonic()
        if now_s - self._space_checked_s < self._tuning.free_space_check_s:
            return self._space_left
        self._space_checked_s = now_s
        try:
            lacking = disk_space.lacking_in_bytes(self._directory)
            if lacking > 0:
                self._evict(table, lacking)
                lacking = disk_space.lacking_in_bytes(self._directory)
            self._space_left = lacking <= 0
        except FAILURES as error:
            self._fail_writing(table, error)
            return False
        return self._space_left

    def _evict(self, table: BlockTable, size_in_bytes: int) -> int:
        self._write_notes(at_least=1)
        return eviction.evict(
            table, self._directory, size_in_bytes, lambda: self._tell_removed_by(table)
        )

    def _tell_removed_by(self, table: BlockTable) -> None:
        """Let every process close files that were removed here."""
        self._watch.removed()
        self._on_removal(table.disk.take_removed())

    def _write_notes(self, *, at_least: int) -> None:
        """Write the order of use, if there is that much to write."""
        if len(self._used) < at_least:
            return
        with self._lock:
            used, self._used = self._used, {}
        table = self._table
        if table is None or not used:
            return
        try:
            table.note_uses(list(used.items()))  # a thread may just be adding to it
        except FAILURES as error:
            logger.debug("cache %s: order of use not written: %s", self._directory, error)

    def _tidy(self, table: BlockTable, excess: int, sweep: bool) -> None:
        """Bring the cache down to its limit, which may have been another one."""
        with contextlib.suppress(*FAILURES):
            table.recount()
            if excess > 0:
                self._evict(table, table.excess_in_bytes())
        if sweep:
            eviction.sweep(table, self._directory, eviction.ORPHANED_AFTER_S)
        table.close()  # this thread's connection
