"""How long a read may take, and how much memory all of them."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dserverfs.base.errors import DeadlineExceeded, Unreachable
from dserverfs.base.hashes import Policy
from dserverfs.base.items import BLOCK_SIZE, ItemContent, Run
from dserverfs.reading.block_filling import DEMAND_THREADS
from dserverfs.reading.open_item import OpenItem
from tests.support.faulty_store import FaultyStore, cut_after, faulty_store, stall
from tests.support.patience import LATE_S
from tests.support.reading_world import CONTENT, LoneItem, World
from tests.support.servers import SOURCES

TIMEOUT_S = 1.0
MARGIN_S = 4.0  # for a machine on which much else runs


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    with faulty_store(CONTENT) as store:
        yield store


@pytest.fixture
def world(store: FaultyStore, tmp_path: Path) -> Iterator[World]:
    world = World(store, tmp_path / "blocks", read_timeout_s=TIMEOUT_S)
    yield world
    store.released.set()
    world.close()


def seconds_until_refused(world: World, content: ItemContent) -> float:
    start_s = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        OpenItem(world.reader, content).read(0, 10)
    return time.monotonic() - start_s


def test_no_reader_waits_longer_though_there_are_more_than_threads(
    world: World, store: FaultyStore
) -> None:
    readers = 4 * DEMAND_THREADS
    store.faults = [*[stall] * 4 * readers]
    contents = [world.content(key=f"key{number}") for number in range(readers)]

    with ThreadPoolExecutor(readers) as pool:
        took_s = list(pool.map(lambda content: seconds_until_refused(world, content), contents))

    assert max(took_s) < TIMEOUT_S + MARGIN_S


def test_who_asks_again_at_once_as_the_kernel_does_does_not_wait_again(
    world: World, store: FaultyStore
) -> None:
    store.faults = [stall] * 8
    item = OpenItem(world.reader, world.content())
    with pytest.raises(DeadlineExceeded):
        item.read(0, 10)

    start_s = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        item.request_blocks(0, 10)

    assert time.monotonic() - start_s < TIMEOUT_S


def test_who_gives_up_waiting_for_what_is_still_under_way_does_not_wait_again(
    world: World, store: FaultyStore
) -> None:
    store.faults = [stall] * 8
    item = OpenItem(world.reader, world.content())
    item.request_blocks(0, 10)

    item.give_up(0, 10)

    with pytest.raises(DeadlineExceeded):
        item.request_blocks(0, 10)


def test_refusal_is_forgotten_after_a_moment(world: World, store: FaultyStore) -> None:
    world.reader.close()
    world.reader = world.new_reader(read_timeout_s=TIMEOUT_S, failure_kept_s=0.05)
    store.faults = [stall] * 8
    item = OpenItem(world.reader, world.content())
    with pytest.raises(DeadlineExceeded):
        item.read(0, 10)
    store.faults.clear()

    end_s = time.monotonic() + LATE_S
    while True:
        try:
            assert item.read(0, 10) == CONTENT[:10]
            break
        except DeadlineExceeded:
            assert time.monotonic() < end_s


def test_slow_store_is_waited_for_as_long_as_blocks_come(store: FaultyStore, world: World) -> None:
    """A run of blocks may take longer than one read may."""

    store.faults = [cut_after(BLOCK_SIZE)] * 5
    item = OpenItem(world.reader, world.content())

    for start in range(0, len(CONTENT), BLOCK_SIZE):
        assert item.read(start, BLOCK_SIZE) == CONTENT[start : start + BLOCK_SIZE]


def test_after_the_end_nobody_waits(world: World) -> None:
    item = OpenItem(world.reader, world.content())
    world.reader.close()

    with pytest.raises(Unreachable):
        item.read(0, 10)


READ_ALL = """
import resource, sys, threading
from pathlib import Path
from tests.reading.test_read_limits import peak_of_readers
print(peak_of_readers(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
"""
ITEM_BYTES = 32 * BLOCK_SIZE
READERS = 16


def peak_of_readers(url: str, directory: Path, size: int) -> int:
    """Return by how many MiB memory grew while 16 readers each read an item in order."""
    store = FaultyStore(random.Random(9).randbytes(size))
    store.url = url
    world = World(store, directory)
    template = world.content(size)
    del store.content

    def read(number: int) -> None:
        content = replace(template, key=f"key{number}")
        item = OpenItem(world.reader, LoneItem(**vars(content)))
        for start in range(0, size, 128 * 1024):
            item.read(start, 128 * 1024)

    before = memory_in_mib("VmRSS")
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, range(READERS)))
    world.close()
    return memory_in_mib("VmHWM") - before


def memory_in_mib(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) // 1024
    raise AssertionError(name)


def test_sixteen_readers_of_half_a_gibibyte_stay_within_256_mib(tmp_path: Path) -> None:
    with faulty_store(random.Random(9).randbytes(ITEM_BYTES)) as store:
        done = subprocess.run(
            [sys.executable, "-c", READ_ALL, store.url, tmp_path / "blocks", str(ITEM_BYTES)],
            cwd=SOURCES,
            capture_output=True,
            text=True,
            timeout=300,
        )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 256


@pytest.mark.parametrize("policy", [Policy.COMPLETE, Policy.STRICT])
def test_end_is_told_to_every_reader_also_to_those_whose_turn_did_not_come(
    store: FaultyStore, tmp_path: Path, policy: Policy
) -> None:
    """Without that each of them would wait until its time is over."""
    world = World(store, tmp_path / "blocks", policy, read_timeout_s=2 * LATE_S)
    readers = DEMAND_THREADS + 2
    store.faults = [*[stall] * 4 * readers]
    contents = [world.content(key=f"key{number}") for number in range(readers)]
    pending: list[object] = []
    for content in contents:
        if policy is Policy.STRICT:
            pending.append(world.reader.verification.verification_pending(content, whole=False))
        else:
            pending += world.reader.filler.request_blocks(content, Run(0, 1))

    world.reader.filler.close()
    world.reader.verification.close()

    last = pending[-1]
    assert isinstance(last, Future)
    with pytest.raises(Unreachable, match="has come to its end"):
        last.result(LATE_S)
    store.released.set()
    world.close()
