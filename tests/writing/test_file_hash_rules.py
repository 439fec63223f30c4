"""Hashes of files: what is kept of them, what of it counts, and how several are read at once."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dserverfs.base.errors import Cancelled
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.limits import FIRST_SHOWN_NS, LAST_SHOWN_NS
from dserverfs.base.progress import Progress
from dserverfs.writing.staging import file_hashes
from dserverfs.writing.staging.file_hashes import Begun, Hashes, Stamp
from tests.support.patience import LATE_S

SMALL, LARGE = b"small", b"x" * (BLOCK_SIZE + 1)
CONTENTS = {"a": SMALL, "b": LARGE, "c": b""}
TOTAL = sum(map(len, CONTENTS.values()))
SECOND_NS = 1_000_000_000


class Bench:
    """Files, and a database of their hashes that is opened anew."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "items"
        self.root.mkdir()
        for name, content in CONTENTS.items():
            (self.root / name).write_bytes(content)
        self.database = directory / "hashes.db"
        self.files = [self.root / name for name in CONTENTS]

    def opened(self, **options: Any) -> Hashes:
        return Hashes(self.database, self.root, **options)

    def read(self) -> int:
        """Return how many bytes are read to hash all that is there."""
        with self.opened() as hashes:
            assert hashes.all_of(self.files) == {
                file: hashlib.md5(CONTENTS[file.name]).hexdigest() for file in self.files
            }
            return hashes.bytes_read


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# The stamp


@pytest.mark.parametrize(
    ("mtime_ns", "ctime_ns", "shows_after_ns"),
    [
        (5, 7 * SECOND_NS + 1, 7 * SECOND_NS + 1),
        (9 * SECOND_NS, 7 * SECOND_NS + 1, 9 * SECOND_NS),
        (5, 7 * SECOND_NS, 8 * SECOND_NS),  # it counts seconds
    ],
)
def test_change_shows_once_the_clock_has_gone_on(
    monkeypatch: pytest.MonkeyPatch, mtime_ns: int, ctime_ns: int, shows_after_ns: int
) -> None:
    now_ns = [shows_after_ns]
    monkeypatch.setattr(time, "clock_gettime_ns", lambda clock: now_ns[0])

    assert not Stamp(1, mtime_ns, ctime_ns, 1).is_settled()
    now_ns[0] += 1
    assert Stamp(1, mtime_ns, ctime_ns, 1).is_settled()


@pytest.mark.parametrize(
    ("age_ns", "pauses", "is_settled"),
    [(1, 0, True), (0, 1, True), (-5_000_000, 1, True), (-SECOND_NS, 1, False)],
)
def test_next_tick_of_the_clock_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch, age_ns: int, pauses: int, is_settled: bool
) -> None:
    """Else a change in the tick of the last one would leave no trace."""
    now_ns = [9 * SECOND_NS + 5]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now_ns[0] += int(seconds * SECOND_NS)

    stamp = Stamp(1, now_ns[0] - age_ns, now_ns[0] - age_ns, 1)
    monkeypatch.setattr(time, "clock_gettime_ns", lambda clock: now_ns[0])
    monkeypatch.setattr(time, "sleep", sleep)

    assert file_hashes._settle(stamp) is is_settled
    assert len(slept) == pauses


def test_stamp_has_a_date_that_can_be_kept() -> None:
    def stamp(mtime_ns: int) -> Stamp:
        status: Any = SimpleNamespace(st_size=1, st_mtime_ns=mtime_ns, st_ctime_ns=3, st_ino=4)
        return Stamp.of(status)

    assert stamp(2) == (1, 2, 3, 4)
    assert stamp(2**70).mtime_ns == LAST_SHOWN_NS
    assert stamp(-(2**70)).mtime_ns == FIRST_SHOWN_NS


# What is kept


def test_file_that_is_not_settled_is_read_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(file_hashes, "_settle", lambda stamp: False)
        assert [bench.read(), bench.read()] == [TOTAL, TOTAL]

    assert [bench.read(), bench.read()] == [TOTAL, 0]


@pytest.mark.parametrize(
    ("statement", "again"),
    [
        ("UPDATE hash SET md5 = upper(md5) || 'x'", TOTAL),
        ("UPDATE hash SET md5 = x'00'", TOTAL),
        ("UPDATE hash SET size = size + 1", TOTAL),
        ("UPDATE hash SET mtime_ns = mtime_ns + 1", TOTAL),
        ("UPDATE hash SET ctime_ns = ctime_ns + 1", TOTAL),
        ("UPDATE hash SET inode = inode + 1", TOTAL),
        ("UPDATE hash SET md5 = replace(md5, substr(md5, 1, 1), 'e') WHERE size > 9", len(LARGE)),
        ("DELETE FROM block_hash", len(LARGE)),  # as an earlier version hashed it
        ("UPDATE block_hash SET blocks = substr(blocks, 1, 32)", len(LARGE)),
        ("UPDATE block_hash SET blocks = 'text'", len(LARGE)),
        ("UPDATE block_hash SET blocks = printf('%064d', 0)", len(LARGE)),
        ("UPDATE block_hash SET blocks = zeroblob(64)", len(LARGE)),
        ("UPDATE block_hash SET seal = zeroblob(32)", len(LARGE)),
        ("UPDATE block_hash SET inode = inode + 1", len(LARGE)),
        ("DROP TABLE block_hash", len(LARGE)),
    ],
)
def test_what_is_not_what_was_kept_is_hashed_again(
    bench: Bench, statement: str, again: int
) -> None:
    bench.read()
    database = sqlite3.connect(bench.database, isolation_level=None)
    database.execute(statement)
    database.close()

    assert [bench.read(), bench.read()] == [again, 0]


class Refusing:
    """A connection to a database that is full, or damaged."""

    def execute(self, *arguments: object) -> None:
        raise sqlite3.OperationalError("no")

    def close(self) -> None:
        """Do nothing."""


def test_database_that_refuses_everything_costs_a_second_reading(bench: Bench) -> None:
    with bench.opened() as hashes:
        connection = hashes._connection
        assert connection is not None
        refusing: Any = Refusing()
        hashes._connection = refusing
        for _ in range(2):
            assert hashes.of(bench.files[1]) == hashlib.md5(LARGE).hexdigest()
        assert hashes.bytes_read == 2 * len(LARGE)
        connection.close()


def test_hashes_that_are_closed_meanwhile_keep_nothing(bench: Bench) -> None:
    closing: list[Hashes] = []

    def close(stamp: Stamp) -> None:
        closing[0].close()

    closing.append(bench.opened(begun=close))
    hashes = closing[0].open()

    assert hashes.of(bench.files[0]) == hashlib.md5(SMALL).hexdigest()

    hashes.close()
    assert bench.read() == TOTAL


@pytest.mark.expects_log("files are hashed again|hashes are not kept")
def test_what_is_in_the_way_of_the_database_keeps_nobody_from_hashing(bench: Bench) -> None:
    bench.database.mkdir()

    assert [bench.read(), bench.read()] == [TOTAL, TOTAL]


def test_forgotten_database_is_gone_with_all_its_files(bench: Bench) -> None:
    paths = [Path(f"{bench.database}{suffix}") for suffix in ("", "-wal", "-shm")]
    for path in paths:
        path.touch()

    for _ in range(2):
        file_hashes.forget(bench.database)

    assert not any(path.exists() for path in paths)


# Several at once


def test_largest_comes_first_and_progress_ends_with_all(bench: Bench) -> None:
    for _ in range(2):  # read, and known
        seen: list[Progress] = []
        with bench.opened(threads=1) as hashes:
            digests = hashes.all_of(bench.files, on_progress=seen.append)
        assert [path.name for path in digests] == ["b", "a", "c"]
        assert seen[-1] == (TOTAL, TOTAL, 3, 3)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_as_many_files_are_read_at_once_as_there_are_threads_for(
    bench: Bench, threads: int
) -> None:
    at_once = min(threads, len(CONTENTS))
    barrier = threading.Barrier(at_once)
    names: set[str] = set()

    def begun(stamp: Stamp) -> None:
        if len(names) < at_once:
            names.add(threading.current_thread().name)
            barrier.wait(LATE_S)

    with bench.opened(threads=threads, begun=begun) as hashes:
        hashes.all_of(bench.files)

    assert len(names) == at_once
    assert threading.current_thread().name in names, "the caller reads, too"


def test_stop_reads_nothing(bench: Bench) -> None:
    stop = threading.Event()
    stop.set()

    with bench.opened() as hashes:
        with pytest.raises(Cancelled):
            hashes.all_of(bench.files, stop=stop)
        assert hashes.bytes_read == 0


def test_stop_ends_it_within_a_file(bench: Bench) -> None:
    stop = threading.Event()
    told: list[Path] = []

    def stop_soon(progress: Progress) -> None:
        if progress.bytes_done:
            stop.set()

    with bench.opened() as hashes, pytest.raises(Cancelled):
        hashes.each(
            [bench.root / "b"],
            lambda file, md5: told.append(file),
            totals=(len(LARGE), 1),
            on_progress=stop_soon,
            stop=stop,
        )
    assert told == []


def test_failure_stops_the_others_and_is_what_is_told(bench: Bench) -> None:
    both = threading.Barrier(2)
    has_failed = threading.Event()
    read: list[int] = []

    def begun(stamp: Stamp) -> None:
        read.append(stamp.size)
        if len(read) <= 2:
            both.wait(LATE_S)
        if stamp.size == len(LARGE):
            has_failed.set()
            raise ZeroDivisionError("ours")
        assert has_failed.wait(LATE_S)

    with (
        bench.opened(threads=2, begun=begun) as hashes,
        pytest.raises(ZeroDivisionError),
    ):
        hashes.all_of(bench.files)
    batch = file_hashes._Batch([], lambda *_: None, (0, 0), lambda _: None, threading.Event())
    for error in (Cancelled("stopped"), ZeroDivisionError("ours")):
        batch.fail(error)
    with pytest.raises(ZeroDivisionError):
        batch.require_done()


def test_file_whose_reading_failed_for_another_is_read_by_the_next(bench: Bench) -> None:
    first_reads, may_fail = threading.Event(), threading.Event()

    def begun(stamp: Stamp) -> Begun | None:
        if not first_reads.is_set():
            first_reads.set()
            assert may_fail.wait(LATE_S)
            raise OSError("the disk")
        return None

    with bench.opened(begun=begun) as hashes, ThreadPoolExecutor(2) as pool:
        first = pool.submit(hashes.of, bench.files[0])
        assert first_reads.wait(LATE_S)
        second = pool.submit(hashes.of, bench.files[0])
        may_fail.set()

        assert isinstance(first.exception(LATE_S), OSError)
        assert second.result(LATE_S) == hashlib.md5(SMALL).hexdigest()
        assert hashes._running == {}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _no_file_is_left_open() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() <= before
