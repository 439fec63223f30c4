"""The cache's table as a whole: read, cleared, counted, and kept apart from others."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import diskcache
import pytest

from dserverfs.reading.cache import block_table
from dserverfs.reading.cache.block_files import files_in
from dserverfs.reading.cache.block_table import BlockTable
from dserverfs.reading.cache.blocks import MemoryBlock
from tests.support.block_rows import LARGE, NO_LIMIT, SMALL, sql, store, used
from tests.support.patience import LATE_S

pytest_plugins = ["tests.support.cache_fixtures"]

# All of it


def test_every_row_is_read_though_others_come_and_go(
    table: BlockTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_table, "_ROWS_AT_A_TIME", 2)
    store(table, *(f"{number}" for number in range(5)), data=SMALL)
    rows = table.rows()

    seen = [next(rows).key, next(rows).key]
    table.delete(["0", "3"])
    store(table, "5", data=SMALL)
    seen += [row.key for row in rows]

    assert seen == ["0", "1", "2", "4", "5"]
    assert [*table.all_keys()] == ["1", "2", "4", "5"]
    store(table, "f")
    assert table.filenames() == {table.find(["f"])["f"].filename}
    table.clear()
    assert [*table.rows()] == []


def test_size_is_counted_anew_from_the_rows(table: BlockTable) -> None:
    store(table, "a", "b")
    right = table.held_in_bytes()
    for wrong in (1000, -1000, 0):
        sql(table, "UPDATE Settings SET value = value + ? WHERE key = 'size'", wrong)
        assert table.held_in_bytes() == right + wrong
        table.recount()
        assert table.held_in_bytes() == right
    assert table.excess_in_bytes() == right - NO_LIMIT


def test_clearing_leaves_pinned_rows_and_no_files_of_others(
    table: BlockTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_table, "_ROWS_AT_A_TIME", 2)
    for key in "abcde":
        store(table, key, pinned=frozenset("c"))

    table.clear_unpinned()
    assert used(table).keys() == {"c"}
    assert len(files_in(tmp_path)) == 1
    table.clear()

    assert used(table) == {}
    assert files_in(tmp_path) == set()


CHANGES: dict[str, Callable[[BlockTable], None]] = {
    "clear": lambda table: table.clear(),
    "clear unpinned": lambda table: table.clear_unpinned(),
    "delete": lambda table: table.delete_unless_replaced(next(table.rows())),
}
changes = pytest.mark.parametrize("name", CHANGES)


def change_and_close(change: Callable[[BlockTable], None], table: BlockTable) -> None:
    change(table)
    table.close()


@changes
def test_maintenance_waits_while_another_process_writes(
    table: BlockTable, tmp_path: Path, name: str
) -> None:
    store(table, "a")
    with sqlite3.connect(tmp_path / "cache.db") as other:
        other.execute("BEGIN IMMEDIATE")
        # Only this thread's connection is closed at its end.
        changing = threading.Thread(target=change_and_close, args=(CHANGES[name], table))
        changing.start()
        changing.join(0.2)
        assert changing.is_alive()
        other.rollback()
    other.close()
    changing.join(LATE_S)

    assert used(table) == {}


@changes
def test_maintenance_waits_for_others_only_so_long(
    table: BlockTable, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_table, "PATIENCE_S", 0.1)
    store(table, "a")
    with sqlite3.connect(tmp_path / "cache.db") as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(diskcache.Timeout):
            CHANGES[name](table)
    other.close()

    assert used(table).keys() == {"a"}


@changes
def test_maintenance_of_what_cannot_be_written_says_so(table: BlockTable, name: str) -> None:
    """diskcache would try for ever: as on a disk that became one to be read only."""
    store(table, "a")
    sql(table, "PRAGMA query_only = ON")

    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        CHANGES[name](table)

    sql(table, "PRAGMA query_only = OFF")
    assert used(table).keys() == {"a"}


def test_change_that_others_keep_away_is_told_at_once(table: BlockTable, tmp_path: Path) -> None:
    """A reader's block waits for nobody."""
    block = store(table, "a", data=SMALL)["a"]
    value = table.disk.prepare([MemoryBlock(LARGE).data])[0]
    with sqlite3.connect(tmp_path / "cache.db") as other:
        other.execute("BEGIN IMMEDIATE")
        for change in (
            lambda: table.store([("b", block)], []),
            lambda: table.store([], [("b", MemoryBlock(LARGE), value)]),
            lambda: table.move([("a", "=a", block.serial)]),
            lambda: table.note_uses([(1, 1.0)]),
        ):
            with pytest.raises(diskcache.Timeout):
                change()
    other.close()
