"""Which blocks of the cache give way, how much that gives back, and what the sweep takes."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dserverfs.reading.cache import eviction
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_files import MIN_FILE_SIZE
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.block_table import BlockTable
from dserverfs.reading.cache.blocks import MemoryBlock
from dserverfs.reading.cache.eviction import ORPHANED_AFTER_S, SWEEP_EVERY_S

pytest_plugins = ["tests.support.cache_fixtures"]

SMALL = b"x" * 1000
LARGE = b"x" * MIN_FILE_SIZE


class Evicting:
    """A cache, of which blocks are stored and evicted."""

    def __init__(self, cache: BlockCache) -> None:
        self.cache = cache
        self.closed = 0  # how often readers were told to close what was removed

    @property
    def table(self) -> BlockTable:
        assert self.cache.table is not None
        return self.cache.table

    def store(self, item: str, *blocks: bytes) -> None:
        """Store blocks of an item, the large ones of it in one file."""
        self.cache.store(
            [(BlockKey(item, number), MemoryBlock(data)) for number, data in enumerate(blocks)]
        )

    def evict(self, size_in_bytes: int) -> int:
        def removed() -> None:
            self.closed += 1

        return eviction.evict(self.table, self.cache.directory, size_in_bytes, removed)

    def held(self, *items: str) -> list[int]:
        """Return how many blocks of each item are there."""
        return [self.cache.count(item) for item in items]

    def files(self) -> list[Path]:
        return sorted(self.cache.directory.glob("?/*.blk"))


@pytest.fixture
def evicting(cache: BlockCache) -> Evicting:
    return Evicting(cache)


@pytest.mark.parametrize("at_a_time", [1, 2, 64])
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["rows", "files"])
def test_oldest_blocks_give_back_what_is_asked_for_and_no_more(
    evicting: Evicting, monkeypatch: pytest.MonkeyPatch, data: bytes, at_a_time: int
) -> None:
    monkeypatch.setattr(eviction, "_ROWS_AT_A_TIME", at_a_time)
    items = [f"item {number}" for number in range(6)]
    for item in items:
        evicting.store(item, data)

    assert evicting.evict(0) == 0
    assert evicting.held(*items) == [1] * 6
    assert evicting.evict(2 * len(data)) == 2 * len(data)
    assert evicting.held(*items) == [0, 0, 1, 1, 1, 1]
    assert evicting.evict(2 * len(data) + 1) == 3 * len(data)
    assert evicting.held(*items) == [0, 0, 0, 0, 0, 1]
    assert evicting.evict(10**9) == len(data)
    assert evicting.evict(10**9) == 0
    assert evicting.files() == []
    assert evicting.closed >= 3, "their space is free when they are closed"


def test_blocks_of_one_file_go_together(evicting: Evicting) -> None:
    """None of them gives back space alone."""
    evicting.store("one", *[LARGE] * 3)
    evicting.store("two", *[LARGE] * 2)

    assert evicting.evict(1) == 3 * len(LARGE)

    assert evicting.held("one", "two") == [0, 2]
    assert len(evicting.files()) == 2
    assert evicting.evict(1) == 2 * len(LARGE)


def test_file_with_another_name_gives_back_nothing(evicting: Evicting, tmp_path: Path) -> None:
    evicting.store("one", LARGE)
    evicting.store("two", LARGE)
    os.link(evicting.files()[0], tmp_path / "one more name")
    os.link(evicting.files()[1], tmp_path / "and another one")

    assert evicting.evict(1) == 0

    assert evicting.held("one", "two") == [0, 0]


def test_lost_file_gives_back_nothing_and_its_row_goes(evicting: Evicting) -> None:
    evicting.store("one", LARGE)
    evicting.files()[0].unlink()
    evicting.store("two", SMALL)

    assert evicting.evict(1) == len(SMALL)

    assert evicting.held("one", "two") == [0, 0]


@pytest.mark.parametrize("refused", [sqlite3.OperationalError("database is locked")])
def test_rows_that_cannot_be_deleted_yet_end_the_eviction(
    evicting: Evicting, monkeypatch: pytest.MonkeyPatch, refused: Exception
) -> None:
    evicting.store("one", LARGE)

    def busy(numbers: object) -> None:
        assert evicting.closed, "there is room for the transaction only then"
        raise refused

    with monkeypatch.context() as patch:
        patch.setattr(evicting.table, "delete_rows", busy)
        assert evicting.evict(10**9) == len(LARGE)

    assert evicting.files() == []
    assert evicting.held("one") == [1], "it is a miss"
    assert evicting.evict(10**9) == 0
    assert evicting.held("one") == [0]


# The sweep


@pytest.mark.parametrize(
    ("swept_ago_s", "is_due"),
    [
        *((None, True), (0.0, False), (SWEEP_EVERY_S - 60, False), (SWEEP_EVERY_S + 1, True)),
        (-3600.0, True),  # the clock was put back
    ],
)
def test_sweep_is_due_once_a_day(tmp_path: Path, swept_ago_s: float | None, is_due: bool) -> None:
    mark = tmp_path / "swept"
    if swept_ago_s is not None:
        mark.touch()
        moment_s = time.time() - swept_ago_s
        os.utime(mark, (moment_s, moment_s))

    assert eviction.sweep_is_due(tmp_path) is is_due

    assert not eviction.sweep_is_due(tmp_path), "one process has been told"
    assert swept_ago_s is not None or mark.stat().st_mode & 0o077 == 0


def orphan(directory: Path, name: str, age_s: float) -> Path:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    moment_s = time.time() - age_s
    os.utime(path, (moment_s, moment_s))
    return path


def test_sweep_takes_files_that_no_row_names_once_they_are_old(evicting: Evicting) -> None:
    evicting.store("item", *[LARGE] * 2)
    kept = evicting.files()
    for path in kept:
        os.utime(path, (0, 0))
    directory = evicting.cache.directory
    old = [orphan(directory, f"0/{'0' * 31}-{number}.blk", 1000.0) for number in range(2)]
    young = orphan(directory, f"1/{'0' * 31}-0.blk", 10.0)
    in_the_way = directory / f"2/{'0' * 31}-0.blk"
    in_the_way.mkdir(parents=True)
    os.utime(in_the_way, (0, 0))

    assert eviction.sweep(evicting.table, directory, ORPHANED_AFTER_S) == 2

    assert [path.exists() for path in (*old, young, *kept)] == [False] * 2 + [True] * 3
    assert eviction.sweep(evicting.table, directory, 0.0) == 1
    assert not young.exists()
    assert evicting.held("item") == [2]


def raise_locked() -> set[str]:
    raise sqlite3.OperationalError("database is locked")


def test_sweep_that_the_database_refuses_takes_nothing(evicting: Evicting) -> None:
    directory = evicting.cache.directory
    old = orphan(directory, f"0/{'0' * 31}-0.blk", 1000.0)
    locked: Any = SimpleNamespace(filenames=raise_locked)

    assert eviction.sweep(locked, directory, 0.0) == 0

    assert old.exists()


def test_file_that_vanishes_meanwhile_is_not_counted(
    evicting: Evicting, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = evicting.cache.directory
    old = orphan(directory, f"0/{'0' * 31}-0.blk", 1000.0)
    names: Callable[[], set[str]] = evicting.table.filenames

    def gone_by_then() -> set[str]:
        old.unlink()
        return names()

    monkeypatch.setattr(evicting.table, "filenames", gone_by_then)

    assert eviction.sweep(evicting.table, directory, 0.0) == 0
