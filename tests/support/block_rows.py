"""Rows of the cache's table, in tests of the table alone."""

from __future__ import annotations

from typing import Any

from dserverfs.reading.cache.block_files import MIN_FILE_SIZE
from dserverfs.reading.cache.block_table import BlockTable
from dserverfs.reading.cache.blocks import MemoryBlock

SMALL, LARGE = b"small", b"x" * MIN_FILE_SIZE
NO_LIMIT = 1 << 40


def store(
    table: BlockTable, *keys: str, data: bytes = LARGE, pinned: frozenset[str] = frozenset()
) -> dict[str, MemoryBlock]:
    """Store blocks together, those that are large enough in one file."""
    blocks = {key: MemoryBlock(data) for key in keys}
    values = table.disk.prepare([block.data for block in blocks.values()])
    if len(data) < MIN_FILE_SIZE:
        assert table.store([*blocks.items()], [], pinned) == []
    else:
        large = [(*pair, value) for pair, value in zip(blocks.items(), values, strict=True)]
        numbers = table.store([], large, pinned)
        assert numbers == [table.find([key])[key].number if has(table, key) else 0 for key in keys]
    return blocks


def has(table: BlockTable, key: str) -> bool:
    return table.present([key]) == {key}


def sql(table: BlockTable, statement: str, *values: Any) -> list[Any]:
    rows: list[Any] = table._cache._sql(statement, values).fetchall()
    return rows


def used(table: BlockTable) -> dict[str, float]:
    return dict(sql(table, "SELECT key, access_time FROM Cache"))
