"""The log of the cache's database: how large it gets, and when it is cut."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from dserverfs.reading.cache import database_log
from dserverfs.reading.cache.block_table import BlockTable
from tests.support.block_rows import SMALL, sql, store

pytest_plugins = ["tests.support.cache_fixtures"]


class Log:
    """A table whose log is as large as a test says, and a count of how often it was cut."""

    def __init__(self, table: BlockTable, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.table = table
        self.now_s = 1e6
        self.cuts = 0
        shorten = table._log._shorten

        def cut(size: int) -> None:
            self.cuts += 1
            shorten(size)

        monkeypatch.setattr(table._log, "_shorten", cut)
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)

    def limit(self, size_in_bytes: int) -> None:
        self._patch.setattr(database_log, "MAX_LOG_BYTES", size_in_bytes)
        self.table._log._limit = size_in_bytes

    def size(self) -> int:
        return self.table._log._file.stat().st_size

    def grow(self) -> int:
        """Write; return how often the log was cut after that."""
        before = self.cuts
        store(self.table, f"{self.now_s}-{self.size()}", data=SMALL)
        return self.cuts - before


@pytest.fixture
def log(table: BlockTable, monkeypatch: pytest.MonkeyPatch) -> Log:
    store(table, "first", data=SMALL)
    return Log(table, monkeypatch)


def test_log_is_cut_when_it_is_larger_than_it_may_be(log: Log) -> None:
    log.limit(1 << 30)
    assert log.grow() == 0
    log.limit(1)
    assert log.grow() == 1
    assert log.size() == 0
    assert log.grow() == 1, "each time"
    timeout = sql(log.table, "PRAGMA busy_timeout")
    assert timeout == [(50,)], "as it was"


def test_log_that_a_reader_holds_is_cut_later(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_log, "TIMEOUT_S", 0.01)
    while log.size() < 1 << 19:
        log.grow()
    limit = log.size()
    log.limit(limit)
    reading = sqlite3.connect(tmp_path / "cache.db")
    reading.execute("BEGIN")
    reading.execute("SELECT * FROM Cache").fetchone()

    assert log.grow() == 1
    assert log.size() > limit, "in vain"
    waits = 0
    while log.grow() == 0:
        waits += 1
        assert log.size() < 3 * limit
    assert waits, "not before it has grown by half as much again"
    assert log.size() > 1.5 * limit
    assert log.grow() == 0
    log.now_s += database_log.RETRY_S
    assert log.grow() == 0
    log.now_s += 1
    assert log.grow() == 1, "or some time has passed"

    reading.close()
    log.now_s += database_log.RETRY_S + 1
    assert log.grow() == 1
    assert log.size() == 0
    log.now_s += database_log.RETRY_S + 1
    assert log.grow() == 0, "small again"
    while not log.grow():
        assert log.size() <= limit
    assert log.size() == 0, "as large as before at most"
