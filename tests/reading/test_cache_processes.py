"""One cache directory and several real processes, and disks that are not as they should be."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dserverfs.base.disk_space import AS_IT_IS
from dserverfs.reading.cache import database_log, maintenance
from dserverfs.reading.cache.block_cache import BlockCache, CacheTuning
from dserverfs.reading.cache.block_files import files_in, size_on_disk
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import MemoryBlock
from dserverfs.reading.cache.database_log import MAX_LOG_BYTES
from dserverfs.reading.hot_blocks import HotBlocks
from tests.support.accounts import Account
from tests.support.cache_worker import BLOCKS, ITEMS, check
from tests.support.child_processes import spawn
from tests.support.patience import LATE_S
from tests.support.servers import SOURCES
from tests.support.small_disk import MIB, fill, free_bytes, small_disk

LIMIT = 8 * MIB


@contextlib.contextmanager
def worker(
    directory: Path, seed: int, seconds: float, limit: int = LIMIT
) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        *(sys.executable, "-m", "tests.support.cache_worker"),
        *(str(directory), str(limit), str(seed), str(seconds)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    with spawn(
        command, env=environment, cwd=SOURCES, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process


def result_of(process: subprocess.Popen[bytes]) -> dict[str, int]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    seen: dict[str, int] = json.loads(out)
    return seen


def seen_by_all(directory: Path) -> dict[str, int]:
    """Return what one who comes afterwards finds of everything that may be there."""
    seen = dict.fromkeys(("right", "wrong", "missed", "damaged"), 0)
    cache = BlockCache(directory, size_limit=LIMIT)
    cache.open()
    for item in range(ITEMS):
        for block in range(BLOCKS):
            check(cache, item, block, seen)
    cache.close()
    return seen


def size_of_files(directory: Path) -> int:
    found = []
    for name in files_in(directory):
        with contextlib.suppress(FileNotFoundError):  # another thread evicts
            found.append((directory / name).stat())
    return sum({status.st_ino: status.st_size for status in found}.values())


def test_four_processes_write_read_verify_and_evict_on_one_cache(tmp_path: Path) -> None:
    directory = tmp_path / "blocks"
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(worker(directory, seed, 3)) for seed in range(4)]
        samples = []
        while any(process.poll() is None for process in workers):
            samples.append(size_on_disk(directory))
            time.sleep(0.02)  # between samples
        results = [result_of(process) for process in workers]

    assert all(result["wrong"] == 0 for result in results)
    assert all(result["damaged"] == 0 for result in results)
    assert sum(result["right"] for result in results) > 100
    assert seen_by_all(directory)["wrong"] == 0
    assert size_of_files(directory) < LIMIT + 4 * 16 * MIB / 10  # each may be a batch above it
    # As the disk counts, at any time, and with SQLite's log if no disk was slow.
    assert len(samples) > 10
    assert max(samples) < LIMIT + 4 * 16 * MIB / 10 + 2 * MAX_LOG_BYTES + MIB


def test_log_that_others_kept_from_being_begun_anew_is_shortened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_log, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(database_log, "RETRY_S", 0.5)
    directory = tmp_path / "blocks"
    cache = BlockCache(directory)
    cache.open()
    log = directory / "cache.db-wal"

    def store_until(is_reached: Callable[[], bool]) -> None:
        for number in range(1000):
            blocks = [(BlockKey(f"item{number}", n), MemoryBlock(bytes(4000))) for n in range(100)]
            cache.store(blocks)
            if is_reached():
                return
        pytest.fail("not reached in 1000 transactions")

    with contextlib.closing(sqlite3.connect(directory / "cache.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM Cache").fetchall()
        store_until(lambda: log.stat().st_size > 2 * MAX_LOG_BYTES)
    store_until(lambda: log.stat().st_size < MAX_LOG_BYTES)

    assert cache.load(BlockKey("item0", 0), 4000) is not None
    cache.close()


def test_processes_killed_while_they_write_leave_no_wrong_block(tmp_path: Path) -> None:
    directory = tmp_path / "blocks"
    for seed in range(6):
        with worker(directory, seed, 60) as process, worker(directory, 100 + seed, 0.5) as other:
            time.sleep(0.1 + 0.07 * seed)  # any moment will do
            process.send_signal(signal.SIGKILL)
            assert result_of(other)["wrong"] == 0

    seen = seen_by_all(directory)

    assert seen["wrong"] == 0
    assert seen["right"] > 0


def test_what_a_killed_process_left_is_swept_away_and_nothing_else(tmp_path: Path) -> None:
    directory = tmp_path / "blocks"
    cache = BlockCache(directory)
    cache.open()
    cache.store([(BlockKey("item", 0), MemoryBlock(bytes(100_000)))])
    cache.close()
    (kept,) = files_in(directory)
    for age_s, name in ((0.0, "0" * 31), (3600.0, "1" * 31)):
        left = directory / "0" / f"{name}.blk"
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"left")
        os.utime(left, (time.time() - age_s, time.time() - age_s))
    os.utime(directory / "swept", (0, 0))

    cache.open()

    end = time.monotonic() + LATE_S
    while files_in(directory) != {kept, f"0/{'0' * 31}.blk"}:
        assert time.monotonic() < end
        time.sleep(0.01)
    cache.close()


@pytest.mark.expects_log("cannot be written, keeping nothing new")
def test_database_that_another_holds_stops_writing_for_a_while_and_no_reading(
    tmp_path: Path,
) -> None:
    tuning = CacheTuning(busy_timeout_s=0.2, retry_after_failure_s=0.5)
    cache = BlockCache(tmp_path / "blocks", tuning=tuning)
    cache.open()
    cache.store([(BlockKey("item", 0), MemoryBlock(b"before"))])
    other = sqlite3.connect(tmp_path / "blocks" / "cache.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    cache.store([(BlockKey("item", 1), MemoryBlock(bytes(100_000)))])

    assert cache.load(BlockKey("item", 0), 6) is not None
    assert files_in(tmp_path / "blocks") == set(), "what was not entered is taken back"
    other.execute("ROLLBACK")
    other.close()
    end = time.monotonic() + LATE_S
    while cache.load(BlockKey("item", 1), 5) is None:
        cache.store([(BlockKey("item", 1), MemoryBlock(b"after"))])
        assert time.monotonic() < end
        time.sleep(0.05)
    cache.close()


@pytest.mark.expects_log("fails, reading without a cache", "corrupt and is made anew")
def test_database_that_is_damaged_while_it_is_used_is_made_anew(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "blocks"
    cache = BlockCache(directory, tuning=CacheTuning(retry_after_failure_s=0.1))
    cache.open()
    cache.store([(BlockKey("item", i), MemoryBlock(bytes(20_000))) for i in range(50)])
    database = sqlite3.connect(directory / "cache.db")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    with (directory / "cache.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"garbage" * 100_000)

    end = time.monotonic() + LATE_S
    while cache.load(BlockKey("new", 0), 3) is None:
        for index in range(50):
            cache.load(BlockKey("item", index), 20_000)
        cache.store([(BlockKey("new", 0), MemoryBlock(b"new"))])
        assert time.monotonic() < end
        time.sleep(0.05)
    cache.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    with small_disk(tmp_path / "disk", 24 * MIB) as path:
        yield path


class Holder:
    """A process that shares a cache and has a block of each item open, as a reader does."""

    def __init__(self, directory: Path) -> None:
        self.loaded = HotBlocks(max_blocks=100)
        self.cache = BlockCache(
            directory, size_limit=1024 * MIB, on_removal=self.loaded.close_removed
        )
        self.cache.open()

    def load(self, numbers: range) -> None:
        for number in numbers:
            block = self.cache.load(BlockKey("item", number), MIB)
            assert block is not None
            with self.loaded.lock:
                self.loaded.add(("item", number), block)


def test_what_one_process_evicts_every_process_closes(disk: Path) -> None:
    here, other = Holder(disk / "blocks"), Holder(disk / "blocks")
    for number in range(12):
        here.cache.store([(BlockKey("item", number), MemoryBlock(os.urandom(MIB)))])
    here.load(range(12))
    other.load(range(12))
    fill(disk / "others")
    assert free_bytes(disk) < MIB

    assert here.cache.evict(6 * MIB)

    assert free_bytes(disk) >= 6 * MIB, "nothing of it is deleted and still open"
    assert ("item", 11) in here.loaded, "what was not evicted stays at hand"
    assert ("item", 11) in other.loaded
    for holder in (here, other):
        holder.loaded.clear()
        holder.cache.close()


def test_what_is_cleared_every_process_closes(tmp_path: Path) -> None:
    holder = Holder(tmp_path / "blocks")
    for number in range(3):
        holder.cache.store([(BlockKey("item", number), MemoryBlock(os.urandom(MIB)))])
    holder.load(range(3))
    cleaner = maintenance.at(tmp_path)
    cleaner.open()

    maintenance.clear(cleaner)

    end = time.monotonic() + LATE_S
    while any(("item", number) in holder.loaded for number in range(3)):
        assert time.monotonic() < end
        time.sleep(0.01)
    cleaner.close()
    holder.cache.close()


def test_what_small_blocks_took_is_given_back_when_they_are_cleared(tmp_path: Path) -> None:
    """They are rows of the database, which a mount has open as well."""
    holder = Holder(tmp_path / "blocks")
    for number in range(100):
        holder.cache.store([(BlockKey("item", number), MemoryBlock(os.urandom(30_000)))])
    cleaner = maintenance.at(tmp_path)
    cleaner.open()

    before = maintenance.clear(cleaner)

    left = maintenance.facts(cleaner)
    assert before.size_in_bytes - left.size_in_bytes > 100 * 30_000 * 0.9
    cleaner.close()
    holder.cache.close()


def test_blocks_that_share_a_file_give_way_together(disk: Path) -> None:
    """A file of which one block stays gives nothing back."""
    cache = BlockCache(disk / "blocks", size_limit=1024 * MIB)
    cache.open()
    blocks = [(BlockKey("item", number), MemoryBlock(os.urandom(MIB))) for number in range(8)]
    cache.store(blocks)
    fill(disk / "others")

    assert cache.evict(MIB)

    assert free_bytes(disk) > 7 * MIB
    assert files_in(disk / "blocks") == set()
    cache.close()


def test_cache_larger_than_its_new_limit_shrinks_when_it_is_opened(tmp_path: Path) -> None:
    directory = tmp_path / "blocks"
    cache = BlockCache(directory, size_limit=64 * MIB)
    cache.open()
    for number in range(10):
        cache.store([(BlockKey("item", number), MemoryBlock(os.urandom(MIB)))])
    cache.close()
    BlockCache(directory, size_limit=AS_IT_IS).open()
    assert size_of_files(directory) == 10 * MIB, "who only looks at it changes nothing"

    cache = BlockCache(directory, size_limit=4 * MIB)
    cache.open()

    end = time.monotonic() + LATE_S
    while size_of_files(directory) > 4 * MIB:
        assert time.monotonic() < end
        time.sleep(0.01)
    cache.close()


def test_cache_leaves_the_floor_of_free_space_to_others(
    disk: Path,
) -> None:
    tuning = CacheTuning(free_space_check_s=0.0)
    cache = BlockCache(disk / "blocks", size_limit=1024 * MIB, tuning=tuning)
    cache.open()

    for index in range(80):
        cache.store([(BlockKey("item", index), MemoryBlock(bytes(MIB)))])
        # One block may be written between two looks.
        assert free_bytes(disk) > 24 * MIB * 0.05 - MIB * 1.5

    assert cache.load(BlockKey("item", 79), MIB) is not None, "the last one is kept"
    assert cache.load(BlockKey("item", 0), MIB) is None, "the first one gave way"
    cache.close()


@pytest.mark.expects_log("cannot be written, keeping nothing new.*No space left")
def test_disk_that_others_filled_keeps_what_there_is_readable(
    disk: Path,
) -> None:
    tuning = CacheTuning(free_space_check_s=3600.0, make_room_in_bytes=2 * MIB)
    cache = BlockCache(disk / "blocks", tuning=tuning)
    cache.open()
    content = os.urandom(MIB)
    for index in range(6):
        cache.store([(BlockKey("item", index), MemoryBlock(content))])
    fill(disk / "others")

    for index in range(6, 12):
        cache.store([(BlockKey("item", index), MemoryBlock(content))])

    left = [cache.load(BlockKey("item", index), MIB) for index in range(6)]
    assert left[0] is None, "the least recently used gave way"
    assert left[5] is not None
    assert bytes(left[5].read(0, MIB)) == content
    cache.close()


READ_ONLY = """
import logging, sys
from pathlib import Path
from dserverfs.reading.cache.blocks import MemoryBlock
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_keys import BlockKey
logging.basicConfig()
cache = BlockCache(Path(sys.argv[1]))
cache.open()
cache.store([(BlockKey("item", 0), MemoryBlock(b"x"))])
assert cache.load(BlockKey("item", 0), 1) is None
cache.close()
"""


def test_read_only_cache_is_done_without(ordinary_user: Account) -> None:
    directory = ordinary_user.home / "read-only" / "blocks"
    ordinary_user.run("mkdir", "-p", "-m", "0700", directory, check=True)
    ordinary_user.run("chmod", "0500", directory, check=True)

    done = ordinary_user.run(ordinary_user.python, "-c", READ_ONLY, directory)

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("reading without a cache") == 1
    ordinary_user.run("chmod", "0700", directory, check=True)
