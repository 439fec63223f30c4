"""What becomes of each block that arrives, with parts that answer as they are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from dserverfs.base.block_hashes import block_hash
from dserverfs.base.errors import IntegrityError
from dserverfs.base.hashes import Policy
from dserverfs.base.items import BLOCK_SIZE, ItemContent, Run
from dserverfs.base.retry import Deadline
from dserverfs.reading import block_hashing
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import Block
from dserverfs.reading.cache_lookup import BlockMismatch, HashMismatch
from dserverfs.reading.item_hashes import Verdict
from tests.support.comparing import (
    BLOCKS,
    CONTENT,
    ITEM,
    LAST,
    ONE_BLOCK,
    WAIT_S,
    WRONG,
    ComparingBench,
    Damaged,
)


@pytest.fixture
def bench() -> Iterator[ComparingBench]:
    bench = ComparingBench()
    yield bench
    bench.hashing.close()


# Hashes that are fetched beside


@pytest.mark.parametrize("policy", Policy)
def test_hashes_of_a_run_are_fetched_beside_it_unless_nothing_is_compared(policy: Policy) -> None:
    bench = ComparingBench(policy)

    bench.hashing.expect(ITEM, Run(1, 3))

    assert bench.requested == ([] if policy is Policy.OFF else [1, 3])


@pytest.mark.parametrize("has", [True, False])
def test_item_has_hashes_if_some_are_here(bench: ComparingBench, has: bool) -> None:
    bench.known = {0: b"h"} if has else {}

    assert bench.hashing.has_hashes(ITEM) is has


# One block


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_block_with_a_hash_is_compared_at_once(bench: ComparingBench, index: int) -> None:
    expected = bench.known[index] = block_hash(BLOCKS[index].data)

    checked = bench.check(index, BLOCKS[index])

    assert checked == (Verdict.VERIFIED, BlockKey.of_hash(expected))
    with pytest.raises(BlockMismatch, match=f"block {index} does not have its hash"):
        bench.check(index, WRONG[index])
    length = len(BLOCKS[index].data)
    assert counted(bench) == (length, length, 0), "what is wrong is not received"


def counted(bench: ComparingBench) -> tuple[int, int, int]:
    """Return the bytes received, compared by block, and as files."""
    counts = bench.hashing.counting.counts
    return counts.received, counts.by_block, counts.as_files


def test_item_of_one_block_is_compared_by_its_own_hash(bench: ComparingBench) -> None:
    (verdict, stored_as) = bench.check(0, BLOCKS[0], ONE_BLOCK)

    assert (verdict, stored_as) == (Verdict.VERIFIED, BlockKey(ONE_BLOCK.content_key, 0))
    assert counted(bench) == (BLOCK_SIZE, 0, BLOCK_SIZE)
    with pytest.raises(HashMismatch):
        bench.check(0, WRONG[0], ONE_BLOCK)


def test_item_of_one_block_with_an_unknown_hash_function_is_not_known(
    bench: ComparingBench,
) -> None:
    unknown = replace(ONE_BLOCK, hash_function="crc_of_the_moon")

    assert bench.check(0, BLOCKS[0], unknown) == (Verdict.UNKNOWN, BlockKey(unknown.key, 0))
    assert counted(bench) == (BLOCK_SIZE, 0, 0)


def test_nothing_is_compared_if_nobody_wants_it() -> None:
    bench = ComparingBench(Policy.OFF)
    bench.known = {0: b"another"}

    assert bench.check(0, BLOCKS[0]) == (Verdict.UNKNOWN, BlockKey(ITEM.key, 0))
    assert bench.check(0, WRONG[0], ONE_BLOCK) == (Verdict.UNKNOWN, BlockKey(ONE_BLOCK.key, 0))
    assert counted(bench) == (2 * BLOCK_SIZE, 0, 0)
    assert not bench.hashing.mark(ITEM, 0, BLOCKS[0], Verdict.UNKNOWN)
    assert not bench.hashes.is_marked_unverified(ITEM)


# The last block of an item


def test_blocks_before_the_last_are_not_known(bench: ComparingBench) -> None:
    bench.coming = {0}
    for index in range(LAST):
        assert bench.check(index, BLOCKS[index]) == (Verdict.UNKNOWN, BlockKey(ITEM.key, index))

    assert bench.hashes.hashing(ITEM) is None


@pytest.mark.parametrize("coming", [set(), {1, 2}])
def test_last_block_of_an_item_that_is_not_read_whole_is_not_known(
    bench: ComparingBench, coming: set[int]
) -> None:
    bench.coming = coming
    assert bench.check(LAST, BLOCKS[LAST]) == (Verdict.UNKNOWN, BlockKey(ITEM.key, LAST))
    assert bench.hashes.hashing(ITEM) is None


def test_last_block_brings_the_verdict_on_all(bench: ComparingBench) -> None:
    bench.hot = dict(enumerate(BLOCKS[:LAST]))

    checked = bench.check(LAST, BLOCKS[LAST])

    assert checked == (Verdict.VERIFIED, BlockKey(ITEM.content_key, LAST))
    assert bench.hashes.is_verified(ITEM)
    serials = [block.serial for block in BLOCKS]
    assert bench.entered == [(ITEM.key, ITEM.content_key, serials)]
    assert bench.learned == [b"".join(block_hash(block.data) for block in BLOCKS)]
    assert counted(bench) == (5, 0, len(CONTENT))
    assert bench.check(LAST, BLOCKS[LAST]).verdict is Verdict.UNKNOWN, "it is recognised"


@pytest.mark.expects_log("does not have the manifest's hash")
@pytest.mark.parametrize("wrong", range(len(BLOCKS)))
def test_last_block_of_a_wrong_item_is_not_handed_out(bench: ComparingBench, wrong: int) -> None:
    blocks: list[Block] = [*BLOCKS]
    blocks[wrong] = WRONG[wrong]
    bench.hot = dict(enumerate(blocks[:LAST]))

    with pytest.raises(IntegrityError, match="nothing of it is kept"):
        bench.check(LAST, blocks[LAST])

    assert (bench.entered, bench.learned) == ([], [])
    assert not bench.hashes.is_verified(ITEM)


def test_last_block_waits_for_those_that_are_coming(bench: ComparingBench) -> None:
    bench.coming = set(range(LAST))
    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(bench.check, LAST, BLOCKS[LAST])
        for index in (2, 0, 1):
            bench.comes(index)

        assert last.result(WAIT_S).verdict is Verdict.VERIFIED


@pytest.mark.parametrize("end", ["it is over", "a block does not come any more"])
def test_last_block_waits_for_nothing_that_will_not_come(
    bench: ComparingBench, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(block_hashing, "_WAIT_S", 0.02)
    asked: list[int] = []
    waits = threading.Event()

    def is_coming(content: ItemContent, index: int) -> bool:
        asked.append(index)
        if len(asked) > 1:
            waits.set()
        return end == "it is over" or len(asked) < 4

    bench.hashing._flight.is_coming = is_coming  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(bench.check, LAST, BLOCKS[LAST])
        assert waits.wait(WAIT_S)
        if end == "it is over":
            bench.hashing.close()

        assert last.result(WAIT_S / 2).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("end", ["its block will not come", "its time is over", "it is given up"])
def test_last_block_of_what_cannot_be_hashed_is_not_known(bench: ComparingBench, end: str) -> None:
    bench.coming = {0, 2} if "not come" in end else {0, 1, 2}
    bench.hot[0] = BLOCKS[0]
    deadline = Deadline(0.0 if "over" in end else WAIT_S)
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(bench.hashing.check, ITEM, LAST, BLOCKS[LAST], deadline)
        while "given up" in end and not checked.done():
            bench.hashes.give_up(ITEM)

        assert checked.result(WAIT_S) == (Verdict.UNKNOWN, BlockKey(ITEM.key, LAST))


@pytest.mark.parametrize(
    "is_right",
    [True, pytest.param(False, marks=pytest.mark.expects_log("does not have the manifest's hash"))],
)
def test_verdict_of_another_thread_is_told_to_all(bench: ComparingBench, is_right: bool) -> None:
    content = ITEM if is_right else replace(ITEM, hash="0" * 32)
    hashing = bench.hashes.begin_hashing(content)
    assert hashing is not None
    for block in BLOCKS:
        hashing.feed(block, content)

    verdicts = [bench.hashing.conclude(content, hashing) for _ in range(2)]

    assert verdicts == [Verdict.VERIFIED if is_right else Verdict.CORRUPT] * 2
    assert len(bench.entered) == is_right


# Marks


def test_block_that_was_not_compared_makes_its_item_unverified(bench: ComparingBench) -> None:
    assert not bench.hashing.mark(ITEM, 0, BLOCKS[0], Verdict.VERIFIED)
    assert not bench.hashes.is_unverified(ITEM)

    assert bench.hashing.mark(ITEM, 0, BLOCKS[0], Verdict.UNKNOWN)
    assert bench.hashes.is_unverified(ITEM)


def test_block_that_is_recognised_leaves_its_item_verified(bench: ComparingBench) -> None:
    bench.hot = dict(enumerate(BLOCKS[:LAST]))
    bench.check(LAST, BLOCKS[LAST])

    assert not bench.hashing.mark(ITEM, 1, BLOCKS[1], Verdict.UNKNOWN)
    assert bench.hashes.is_verified(ITEM)
    assert bench.hashing.mark(ITEM, 1, WRONG[1], Verdict.UNKNOWN)
    assert not bench.hashes.is_verified(ITEM)


# Hashing while blocks come


def test_first_block_begins_the_hashing_and_no_other(bench: ComparingBench) -> None:
    bench.comes(1)
    assert bench.hashes.hashing(ITEM) is None

    bench.comes(0)

    bench.await_hashed(2)
    bench.comes(2)
    bench.await_hashed(3)
    bench.comes(LAST)
    bench.await_idle()
    assert bench.hashes.is_verified(ITEM)
    assert (bench.dropped, len(bench.entered)) == ([], 1)


def test_block_that_is_hashed_already_begins_no_turn(bench: ComparingBench) -> None:
    bench.comes(0)
    bench.await_hashed(1)
    bench.await_idle()
    bench.hot[1] = BLOCKS[1]

    bench.hashing.on_block(ITEM, 0)

    bench.await_idle()
    hashing = bench.hashes.hashing(ITEM)
    assert hashing is not None
    assert hashing.next == 1


def test_item_without_its_hash_function_is_not_hashed(bench: ComparingBench) -> None:
    unknown = replace(ITEM, hash_function="crc_of_the_moon")
    bench.coming = {0}

    bench.hashing.on_block(unknown, 0)

    assert bench.check(LAST, BLOCKS[LAST], unknown).verdict is Verdict.UNKNOWN
    assert bench.hashing._advancing == {}


@pytest.mark.expects_log("does not have the manifest's hash")
def test_item_that_turns_out_wrong_at_its_end_is_dropped(bench: ComparingBench) -> None:
    bench.hot = {**dict(enumerate(BLOCKS)), 1: WRONG[1]}

    bench.hashing.on_block(ITEM, 0)

    bench.await_dropped("item")
    bench.await_idle()
    assert bench.entered == []


def test_block_that_is_damaged_is_dropped_and_hashing_goes_on_when_it_comes(
    bench: ComparingBench,
) -> None:
    bench.hot = {0: BLOCKS[0], 1: Damaged(b"")}
    bench.hashing.on_block(ITEM, 0)
    bench.await_dropped("block 1")
    bench.await_idle()
    assert bench.await_hashed(1).next == 1

    bench.comes(1)

    bench.await_hashed(2)


@pytest.mark.parametrize("turn", [1, 2, 3, 4, 5])
def test_item_is_hashed_to_its_end_in_turns_of_any_length(
    bench: ComparingBench, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    monkeypatch.setattr(block_hashing, "TURN", turn)
    bench.hot = dict(enumerate(BLOCKS))

    bench.hashing.on_block(ITEM, 0)

    with bench.changed:
        assert bench.changed.wait_for(lambda: bench.entered, WAIT_S)
    bench.await_idle()
    assert len(bench.entered) == 1


def test_block_that_comes_while_it_is_looked_for_is_hashed(bench: ComparingBench) -> None:
    find = bench.hashing._flight.find
    looked_for: list[int] = []

    def look(content: ItemContent, index: int) -> Block | None:
        block = find(content, index)
        looked_for.append(index)
        if looked_for.count(1) == 1 and index == 1:
            bench.comes(1)
        return block

    bench.hashing._flight.find = look  # type: ignore[method-assign]
    bench.comes(0)
    bench.await_hashed(2)

    end_s = time.monotonic() + WAIT_S
    while bench.hashing._advancing:
        assert time.monotonic() < end_s, "it is looked for without end"
    assert looked_for == [0, 1, 1, 2]


def test_nothing_is_hashed_after_the_end(bench: ComparingBench) -> None:
    bench.hashing.close()

    bench.comes(0)

    assert bench.hashing._advancing == {}
    hashing = bench.hashes.hashing(ITEM)
    assert hashing is not None
    assert hashing.next == 0


# Hashes that come late


@pytest.mark.parametrize("wrong", [None, *range(len(BLOCKS))])
def test_blocks_that_were_handed_out_are_compared_when_their_hashes_come(
    bench: ComparingBench, wrong: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    bench.known = {index: block_hash(block.data) for index, block in enumerate(BLOCKS)}
    bench.hot = {index: WRONG[index] if index == wrong else BLOCKS[index] for index in (0, 2, 3)}
    bench.hot[1] = WRONG[1] if wrong == 1 else Damaged(b"")
    bench.pages.on_come(ITEM, range(4))
    assert bench.dropped == [], "nothing of it was handed out uncompared"
    bench.hashes.mark_unverified(ITEM)

    with caplog.at_level("CRITICAL"):
        bench.pages.on_come(ITEM, range(4))

    assert bench.dropped == ([] if wrong is None else ["item"])


def test_item_with_several_wrong_blocks_is_dropped_once(
    bench: ComparingBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.known = {index: block_hash(block.data) for index, block in enumerate(BLOCKS)}
    bench.hot = dict(enumerate(WRONG))
    bench.hashes.mark_unverified(ITEM)

    with caplog.at_level("CRITICAL"):
        bench.pages.on_come(ITEM, range(4))

    assert bench.dropped == ["item"]


def test_only_blocks_whose_hashes_came_are_compared(bench: ComparingBench) -> None:
    bench.known = {index: block_hash(block.data) for index, block in enumerate(BLOCKS)}
    bench.hot = {0: WRONG[0], 1: BLOCKS[1]}
    bench.hashes.mark_unverified(ITEM)

    bench.pages.on_come(ITEM, range(1, 4))

    assert bench.dropped == []


def test_turn_ends_with_a_damaged_block_and_with_the_verdict(bench: ComparingBench) -> None:
    hashing = bench.hashes.begin_hashing(ITEM)
    assert hashing is not None
    bench.hot = {0: Damaged(b"")}
    assert not bench.hashing._advance(ITEM, hashing)

    for block in BLOCKS:
        hashing.feed(block, ITEM)

    assert [bench.hashing._advance(ITEM, hashing) for _ in range(2)] == [False, False]
    assert len(bench.entered) == 1
