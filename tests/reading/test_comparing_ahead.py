"""What is fetched ahead keeps near to what is hashed, with parts that answer as they are told."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from dserverfs.base.items import ItemContent
from dserverfs.reading import block_hashing
from dserverfs.reading.cache.blocks import Block
from tests.support.comparing import BLOCKS, ITEM, WAIT_S, ComparingBench


@pytest.fixture
def bench() -> Iterator[ComparingBench]:
    bench = ComparingBench()
    yield bench
    bench.hashing.close()


class Held:
    """A hasher that waits before its first update."""

    def __init__(self) -> None:
        self.may_begin = threading.Event()
        self.has_begun = threading.Event()
        self._md5 = hashlib.md5()

    def update(self, data: Any) -> None:
        self.has_begun.set()
        assert self.may_begin.wait(WAIT_S)
        self._md5.update(data)

    def hexdigest(self) -> str:
        return self._md5.hexdigest()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ComparingBench, Held]]:
    """A bench whose item's first block is being hashed, until `may_begin` is set."""
    monkeypatch.setattr(block_hashing, "MAX_LAG", 1)
    monkeypatch.setattr(block_hashing, "FAR", 3)
    bench, hasher = ComparingBench(), Held()
    bench.hashes._make_hasher = lambda name: hasher
    bench.hot = {0: BLOCKS[0]}
    bench.hashing.on_block(ITEM, 0)
    assert hasher.has_begun.wait(WAIT_S)
    yield bench, hasher
    hasher.may_begin.set()
    bench.hashing.close()


def asker(bench: ComparingBench, fetched: list[int]) -> Callable[[int], None]:
    def ask(first: int) -> None:
        bench.hashing.when_near(ITEM, first, lambda: fetched.append(first))

    return ask


def test_run_is_fetched_at_once_if_nothing_is_hashed(
    bench: ComparingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_hashing, "MAX_LAG", 1)
    fetched: list[int] = []

    asker(bench, fetched)(2)
    bench.hashes.begin_hashing(ITEM)
    asker(bench, fetched)(3)

    assert fetched == [2, 3]


def test_run_near_or_far_is_fetched_at_once_and_one_between_when_hashing_comes_near(
    held: tuple[ComparingBench, Held],
) -> None:
    bench, hasher = held
    fetched: list[int] = []
    ask = asker(bench, fetched)

    ask(1)
    ask(4)
    assert fetched == [1, 4]
    ask(2)
    ask(1)  # in order: behind one that was put off
    ask(3)
    assert fetched == [1, 4]

    bench.hot[1] = BLOCKS[1]
    hasher.may_begin.set()
    bench.await_hashed(2)
    bench.await_idle()
    assert fetched == [1, 4, 2, 1, 3]


def test_near_and_far_are_counted_from_what_is_hashed(
    held: tuple[ComparingBench, Held],
) -> None:
    bench, _ = held
    hashing = bench.hashes.hashing(ITEM)
    assert hashing is not None
    hashing.next = 5
    fetched: list[int] = []
    ask = asker(bench, fetched)

    for first in (6, 9, 8):
        ask(first)

    assert fetched == [6, 9]
    hashing.next = 0


def test_items_whose_turn_has_not_come_are_not_hashed_after_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(block_hashing, "THREADS", 1)
    bench, hasher = ComparingBench(), Held()
    bench.hashes._make_hasher = lambda name: hasher
    bench.hot = {0: BLOCKS[0]}
    other = replace(ITEM, key="other")
    for content in (ITEM, other):
        bench.hashing.on_block(content, 0)
    waiting = bench.hashes.hashing(other)
    assert waiting is not None
    assert hasher.has_begun.wait(WAIT_S)

    bench.hashing.close()
    hasher.may_begin.set()
    bench.await_idle()

    assert waiting.next == 0


def test_run_that_is_put_off_stays_so_until_hashing_is_near(
    held: tuple[ComparingBench, Held],
) -> None:
    bench, hasher = held
    fetched: list[int] = []
    ask = asker(bench, fetched)
    ask(2)
    ask(3)
    near: list[list[int]] = []
    find = bench.hashing._flight.find

    def look(content: ItemContent, index: int) -> Block | None:
        near.append([*fetched])
        return find(content, index)

    bench.hashing._flight.find = look  # type: ignore[method-assign]
    hasher.may_begin.set()
    bench.await_idle()

    assert near == [[2]], "the other is fetched when the turn is over"
    assert fetched == [2, 3]


def test_what_was_put_off_is_fetched_after_a_fault_of_ours(
    held: tuple[ComparingBench, Held],
) -> None:
    bench, hasher = held
    fetched: list[int] = []
    asker(bench, fetched)(3)

    def fail(content: ItemContent, index: int) -> Block | None:
        raise ZeroDivisionError("ours")

    bench.hashing._flight.find = fail  # type: ignore[method-assign]
    hasher.may_begin.set()
    bench.await_idle()

    assert fetched == [3]


def test_what_was_put_off_is_fetched_at_the_end(held: tuple[ComparingBench, Held]) -> None:
    """So that those who wait for it are told."""
    bench, _ = held
    fetched: list[int] = []
    asker(bench, fetched)(2)

    bench.hashing.close()

    assert fetched == [2]
    assert bench.hashing._put_off == {}
