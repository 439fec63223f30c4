"""The rule of `--verify` by itself: what is compared when, with blocks that are at hand."""

from __future__ import annotations

import hashlib
import random
import threading
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from dserverfs.base.errors import DeadlineExceeded, IntegrityError, Unreachable
from dserverfs.base.hashes import Policy
from dserverfs.base.items import BLOCK_SIZE, ItemContent, Run
from dserverfs.base.model import Identifier
from dserverfs.base.retry import Deadline
from dserverfs.reading import verification
from dserverfs.reading.block_hashing import BlockHashing
from dserverfs.reading.cache.blocks import Block, DamagedBlock, MemoryBlock
from dserverfs.reading.item_hashes import ItemHashes
from dserverfs.reading.verification import Verification
from tests.support.patience import LATE_S
from tests.support.reading_world import DATASET

CONTENT = random.Random(5).randbytes(2 * BLOCK_SIZE + 5)


class Damaged(MemoryBlock):
    def read(self, start: int, size: int) -> memoryview:
        raise DamagedBlock("damaged")


class Bench:
    """A Verification, and what it asks: hot blocks, the store, the cache."""

    def __init__(self, policy: Policy, limit: int = len(CONTENT), max_named: int = 100) -> None:
        self.data = CONTENT
        self.hot: dict[int, Block] = {}
        self.fetched: list[int] = []
        self.dropped: list[str] = []
        self.entered: list[str] = []
        self.is_all_verified = False
        self.has_hashes = False
        self.learned: list[bytes] = []
        self.failure: BaseException | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.hashes = ItemHashes(policy, strict_limit_in_bytes=limit)
        flight: Any = SimpleNamespace(
            find=lambda content, index: self.hot.get(index), is_coming=lambda content, index: False
        )
        writer: Any = SimpleNamespace(
            enter_verified=lambda key, content_key, serials: self.entered.append(key)
        )
        drops: Any = SimpleNamespace(
            drop=lambda content: self.dropped.append(content.key),
            drop_damaged=lambda content, run: self.hot.pop(run.first),
        )
        pages: Any = SimpleNamespace(
            has_some=lambda content: self.has_hashes,
            learn=lambda content, hashes: self.learned.append(bytes(hashes)),
        )
        parts: Any = SimpleNamespace(
            hashes=self.hashes,
            hashing=BlockHashing(self.hashes, pages, flight, writer, drops),
            flight=flight,
            drops=drops,
            cached=SimpleNamespace(has_all_verified=lambda content: self.is_all_verified),
        )
        filler: Any = SimpleNamespace(obtain=self._obtain, request_ahead=self._ahead)
        self.rule = Verification(parts, filler, max_named_large=max_named)

    def _obtain(self, content: ItemContent, index: int, deadline: Deadline) -> Block:
        assert self.may_go_on.wait(LATE_S)
        self.fetched.append(index)
        if self.failure is not None:
            raise self.failure
        return self.block(index, content.size_in_bytes)

    def _ahead(self, content: ItemContent, run: Run) -> None:
        assert run.first >= 0
        assert run.first + run.length <= content.number_of_blocks

    def block(self, index: int, size: int = len(CONTENT)) -> MemoryBlock:
        return MemoryBlock(self.data[:size][index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])

    def compared(self, content: ItemContent) -> BaseException | None:
        """Have an item compared; return what its reader gets."""
        future = self.rule.verification_pending(content, whole=True)
        assert future is not None
        return future.exception(LATE_S)


def item(size: int = len(CONTENT), *, key: str = "key", function: str = "md5sum_hexdigest") -> Any:
    return ItemContent(
        key=key,
        dataset=DATASET,
        identifier=Identifier("i" * 40),
        size_in_bytes=size,
        hash_function=function,
        hash=hashlib.md5(CONTENT[:size]).hexdigest(),
        neighbours=lambda limit: [],
    )


SEVERAL, ONE, EMPTY, UNKNOWN = item(), item(BLOCK_SIZE), item(0), item(function="whirlpool")
NOTHING, COMPARED, REFUSED = "nothing", "compared", "refused"


@pytest.mark.parametrize(
    ("content", "state", "complete", "strict"),
    [
        (SEVERAL, "untouched", NOTHING, COMPARED),
        (SEVERAL, "unverified", COMPARED, COMPARED),
        (SEVERAL, "verified", NOTHING, NOTHING),
        (item(BLOCK_SIZE + 1), "untouched", NOTHING, COMPARED),
        (ONE, "untouched", NOTHING, NOTHING),
        (EMPTY, "untouched", NOTHING, NOTHING),
        (UNKNOWN, "untouched", NOTHING, REFUSED),
        (UNKNOWN, "unverified", NOTHING, REFUSED),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("policy", ["off", "complete", "strict", "strict, and it is too large"])
def test_what_has_to_be_compared_before_bytes_are_handed_out(
    content: ItemContent, state: str, complete: str, strict: str, whole: bool, policy: str
) -> None:
    kinds = {"off": Policy.OFF, "complete": Policy.COMPLETE}
    limit = content.size_in_bytes - 1 if "large" in policy else content.size_in_bytes
    bench = Bench(kinds.get(policy, Policy.STRICT), limit)
    if state == "unverified":
        bench.hashes.mark_unverified(content)
    elif state == "verified":
        bench.hashes.mark_verified(content)
    as_complete = complete if whole else NOTHING
    wanted = {"off": NOTHING, "complete": as_complete, "strict": strict}.get(policy, as_complete)

    is_certain = bench.rule.needs_no_verification(content, whole=whole)
    try:
        future = bench.rule.verification_pending(content, whole=whole)
        came = NOTHING if future is None else COMPARED
        assert future is None or future.exception(LATE_S) is None
    except IntegrityError:
        came = REFUSED

    assert came == wanted
    assert not is_certain or came == NOTHING
    if policy in ("off", "complete"):
        assert is_certain == (policy == "off" or not whole or state != "unverified")
    bench.rule.close()


# The comparison


@pytest.mark.parametrize("hot", [set(), {0}, {1}, {2}, {0, 1, 2}])
def test_right_item_is_compared_once_by_blocks_that_are_hot_or_fetched(hot: set[int]) -> None:
    bench = Bench(Policy.STRICT)
    bench.hot = {index: bench.block(index) for index in hot}

    assert bench.compared(SEVERAL) is None

    assert bench.fetched == sorted({0, 1, 2} - hot)
    assert bench.hashes.is_verified(SEVERAL)
    assert bench.entered == [SEVERAL.key]
    assert bench.rule.verification_pending(SEVERAL, whole=True) is None
    assert bench.rule._compared(SEVERAL).result(0) is None
    assert (bench.fetched, bench.dropped) == (sorted({0, 1, 2} - hot), [])


@pytest.mark.expects_log("does not have the manifest's hash")
@pytest.mark.parametrize("place", [0, BLOCK_SIZE, len(CONTENT) - 1])
def test_wrong_item_is_dropped_and_its_readers_fail(place: int) -> None:
    bench = Bench(Policy.STRICT)
    wrong = bytearray(CONTENT)
    wrong[place] ^= 1
    bench.data = bytes(wrong)

    assert isinstance(bench.compared(SEVERAL), IntegrityError)

    assert bench.dropped == [SEVERAL.key]
    assert not bench.hashes.is_verified(SEVERAL)
    bench.data = CONTENT
    assert bench.compared(SEVERAL) is None


@pytest.mark.parametrize("is_unverified", [False, True])
def test_item_that_came_verified_is_compared_only_if_other_bytes_were_handed_out(
    is_unverified: bool,
) -> None:
    bench = Bench(Policy.STRICT)
    bench.is_all_verified = True
    if is_unverified:
        bench.hashes.mark_unverified(SEVERAL)

    assert bench.compared(SEVERAL) is None

    assert bool(bench.fetched) == is_unverified
    assert bench.hashes.is_verified(SEVERAL)


def test_block_that_is_damaged_in_the_cache_is_fetched() -> None:
    bench = Bench(Policy.STRICT)
    bench.hot = {index: bench.block(index) for index in range(3)}
    bench.hot[1] = Damaged(bytes(BLOCK_SIZE))

    assert bench.compared(SEVERAL) is None
    assert bench.fetched == [1]
    assert 1 not in bench.hot  # else who waits for it would find it again


def test_item_that_cannot_be_had_fails_and_is_compared_by_the_next_reader() -> None:
    bench = Bench(Policy.STRICT)
    bench.failure = Unreachable("the store is away")
    assert bench.compared(SEVERAL) is bench.failure

    bench.failure = None

    assert bench.compared(SEVERAL) is None
    assert bench.dropped == []


@pytest.mark.expects_log("a fault of ours while comparing")
def test_fault_of_ours_is_told_to_the_reader_and_the_log() -> None:
    bench = Bench(Policy.STRICT)
    bench.failure = ZeroDivisionError("ours")

    assert bench.compared(SEVERAL) is bench.failure
    assert not bench.hashes.is_verified(SEVERAL)


def test_comparison_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "COMPARE_TIMEOUT_S", -1.0)
    bench = Bench(Policy.STRICT)
    bench.hot = {index: bench.block(index) for index in range(3)}

    assert isinstance(bench.compared(SEVERAL), DeadlineExceeded)


def test_one_comparison_serves_all_who_ask_and_the_end_is_told_to_the_next() -> None:
    bench = Bench(Policy.STRICT)
    bench.may_go_on.clear()
    first = bench.rule.verification_pending(SEVERAL, whole=False)
    second = bench.rule.verification_pending(SEVERAL, whole=True)
    other = bench.rule.verification_pending(replace(SEVERAL, key="other"), whole=True)
    assert isinstance(first, Future)
    assert first is second
    assert first is not other

    bench.rule.close()
    late = bench.rule.verification_pending(replace(SEVERAL, key="late"), whole=True)
    assert late is not None
    assert isinstance(late.exception(0), Unreachable)
    bench.may_go_on.set()
    assert first.exception(LATE_S) is None


def test_end_lets_go_of_those_who_wait_for_a_verdict() -> None:
    bench = Bench(Policy.COMPLETE)
    hashing = bench.hashes.begin_hashing(SEVERAL)
    assert hashing is not None

    bench.rule.close()

    assert hashing.is_given_up


# What is too large for `strict`


def test_large_items_are_named_once_each_as_long_as_they_are_remembered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(Policy.STRICT, limit=5, max_named=3)

    def named(*keys: str) -> int:
        caplog.clear()
        for key in keys:
            bench.rule.verification_pending(replace(SEVERAL, key=key), whole=False)
        return sum("handed out uncompared" in record.message for record in caplog.records)

    with caplog.at_level("INFO"):
        assert named("a", "a", "b", "c", "a", "b", "c") == 3
        assert named("d") == 1  # the others are forgotten
        assert named("a", "d") == 1
