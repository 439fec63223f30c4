"""Caches whose disk fails, in tests of what is then said and kept."""

from __future__ import annotations

import errno
import sqlite3

import pytest

from dserverfs.reading.cache.block_cache import BlockCache, CacheTuning
from dserverfs.reading.cache.block_files import MIN_FILE_SIZE
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.block_table import BlockTable
from dserverfs.reading.cache.blocks import MemoryBlock

SMALL, LARGE = b"small block", b"x" * MIN_FILE_SIZE
KEYS = [BlockKey("item", number) for number in range(6)]
BLOCK = MemoryBlock(LARGE)
AT_ONCE = CacheTuning(free_space_check_s=60.0, retry_after_failure_s=0.0, make_room_in_bytes=1)
FOR_LONG = AT_ONCE._replace(retry_after_failure_s=3600.0)

BUSY = sqlite3.OperationalError("database is locked")
BROKEN = OSError(errno.EIO, "Input/output error")
FULL = OSError(errno.ENOSPC, "No space left on device")
CORRUPT = sqlite3.DatabaseError("database disk image is malformed")


class Failing:
    """Has a method of every table fail, and counts how often it was asked."""

    def __init__(self, patch: pytest.MonkeyPatch, method: str, error: Exception) -> None:
        self.asked = 0

        def fail(table: BlockTable, *arguments: object) -> object:
            self.asked += 1
            raise error

        patch.setattr(BlockTable, method, fail)


def has(cache: BlockCache, *keys: BlockKey) -> list[bool]:
    """Return of each large block whether it is there."""
    return [cache.load(key, len(LARGE)) is not None for key in keys]
