"""What is known of items: verified, unverified, and none forgotten on the wrong side."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace

import pytest

from dserverfs.base.block_hashes import block_hash, split
from dserverfs.base.hashes import Policy
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.base.model import Identifier
from dserverfs.reading import item_hashes
from dserverfs.reading.cache.blocks import MemoryBlock
from dserverfs.reading.item_hashes import Hashing, ItemHashes, Verdict
from tests.support.patience import LATE_S
from tests.support.reading_world import DATASET

CONTENT = bytes(2 * BLOCK_SIZE)
BLOCKS = [CONTENT[:BLOCK_SIZE], CONTENT[BLOCK_SIZE:]]
ITEM = ItemContent(
    key="item",
    dataset=DATASET,
    identifier=Identifier("i" * 40),
    size_in_bytes=len(CONTENT),
    hash_function="md5sum_hexdigest",
    hash=hashlib.md5(CONTENT).hexdigest(),
    neighbours=lambda limit: [],
)


def verify(hashes: ItemHashes, content: ItemContent) -> Verdict | None:
    hashing = hashes.begin_hashing(content)
    assert hashing is not None
    for data in BLOCKS:
        hashing.feed(MemoryBlock(data), content)
    return hashes.finish(content, hashing)


def test_item_is_unverified_until_all_of_it_was_hashed() -> None:
    hashes = ItemHashes(Policy.COMPLETE)
    hashes.mark_unverified(ITEM)
    assert hashes.is_unverified(ITEM)

    assert verify(hashes, ITEM) is Verdict.VERIFIED

    assert not hashes.is_unverified(ITEM)
    assert hashes.is_verified(ITEM)


@pytest.mark.expects_log("does not have the manifest's hash")
def test_item_with_another_hash_is_corrupt() -> None:
    hashes = ItemHashes(Policy.COMPLETE)

    assert verify(hashes, replace(ITEM, hash="0" * 32)) is Verdict.CORRUPT


def test_unverified_items_are_bounded_and_none_beyond_is_taken_for_verified() -> None:
    hashes = ItemHashes(Policy.COMPLETE, max_unverified=3)
    items = [replace(ITEM, key=f"item {number}") for number in range(5)]
    for item in items[:3]:
        hashes.mark_unverified(item)
    assert not hashes.is_unverified(ITEM), "nothing was handed out of it"

    for item in items[3:]:
        hashes.mark_unverified(item)

    assert all(hashes.is_unverified(item) for item in items)
    assert hashes.is_unverified(ITEM), "it may be one of those that there was no room for"
    for item in items:
        verify(hashes, item)
    assert not any(hashes.is_unverified(item) for item in items)


def test_item_of_one_block_needs_no_place_among_the_unverified() -> None:
    hashes = ItemHashes(Policy.COMPLETE, max_unverified=0)
    hashes.mark_unverified(ITEM)

    assert not hashes.is_unverified(replace(ITEM, key="small", size_in_bytes=5000))


def test_hashing_that_is_given_up_is_begun_anew() -> None:
    hashes = ItemHashes(Policy.COMPLETE)
    hashing = hashes.begin_hashing(ITEM)
    assert hashing is not None
    assert hashes.begin_hashing(ITEM) is hashing

    assert not hashing.is_given_up
    hashes.give_up(ITEM)

    assert hashing.is_given_up
    assert not hashes.is_current(ITEM, hashing)
    assert hashes.begin_hashing(ITEM) is not hashing


def test_hashes_of_the_blocks_come_with_that_of_the_item() -> None:
    hashes = ItemHashes(Policy.COMPLETE)
    hashing = hashes.begin_hashing(ITEM)
    assert hashing is not None
    for data in BLOCKS:
        hashing.feed(MemoryBlock(data), ITEM)

    assert split(hashing.block_hashes) == [block_hash(data) for data in BLOCKS]


def test_blocks_that_were_hashed_are_recognised_and_no_others() -> None:
    hashes = ItemHashes(Policy.COMPLETE)
    hashing = hashes.begin_hashing(ITEM)
    assert hashing is not None
    blocks = [MemoryBlock(data) for data in BLOCKS]
    for block in blocks:
        hashing.feed(block, ITEM)
    assert not hashes.recognises(ITEM, 0, blocks[0])

    hashes.finish(ITEM, hashing)

    assert [hashes.recognises(ITEM, index, block) for index, block in enumerate(blocks)] == [1, 1]
    same_bytes = MemoryBlock(BLOCKS[0])
    assert not hashes.recognises(ITEM, 0, same_bytes), "it arrived another time"


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize(("size", "is_small"), [(99, True), (100, True), (101, False)])
def test_strict_is_with_items_up_to_its_limit(policy: Policy, size: int, is_small: bool) -> None:
    hashes = ItemHashes(policy, strict_limit_in_bytes=100)

    is_strict = hashes.is_strict_with(replace(ITEM, size_in_bytes=size))

    assert is_strict == (is_small and policy is Policy.STRICT)


def test_item_whose_hash_function_nobody_knows_is_not_hashed() -> None:
    hashes = ItemHashes(Policy.COMPLETE)
    unknown = replace(ITEM, hash_function="crc_of_the_moon")

    assert hashes.can_hash(ITEM)
    assert not hashes.can_hash(unknown)
    assert hashes.begin_hashing(unknown) is None
    assert hashes.hashing(unknown) is None


def test_verdict_is_given_once() -> None:
    hashes = ItemHashes(Policy.COMPLETE)
    hashing = hashes.begin_hashing(ITEM)
    assert hashing is not None
    for data in BLOCKS:
        hashing.feed(MemoryBlock(data), ITEM)
    assert hashes.is_current(ITEM, hashing)

    verdicts = [hashes.finish(ITEM, hashing) for _ in range(2)]

    assert verdicts == [Verdict.VERIFIED, None]
    assert not hashes.is_current(ITEM, hashing)
    assert hashes.hashing(ITEM) is None


def test_items_being_hashed_are_bounded_and_the_oldest_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(item_hashes, "MAX_HASHING", 2)
    hashes = ItemHashes(Policy.COMPLETE)
    items = [replace(ITEM, key=f"item {number}") for number in range(3)]

    for item in items:
        hashes.begin_hashing(item)

    assert [hashes.hashing(item) is not None for item in items] == [False, True, True]


def known(hashes: ItemHashes, items: list[ItemContent]) -> list[bool]:
    return [hashes.is_verified(item) for item in items]


@pytest.mark.parametrize("room", [2, 3, 4, 5])
def test_blocks_of_verified_items_are_bounded_and_the_oldest_give_way(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Each item has two; one that is verified again, or turned out wrong, counts once at most."""
    monkeypatch.setattr(item_hashes, "MAX_KNOWN_BLOCKS", room)
    hashes = ItemHashes(Policy.COMPLETE)
    items = [replace(ITEM, key=f"item {number}") for number in range(3)]
    for _ in range(3):
        verify(hashes, items[0])
    hashes.mark_unverified(items[0])
    verify(hashes, items[0])
    hashes.forget(items[0])
    assert known(hashes, items) == [False] * 3

    for item in items[:2]:
        verify(hashes, item)

    assert known(hashes, items) == [room >= 4, True, False]
    verify(hashes, items[2])
    assert known(hashes, items) == [False, room >= 4, True]


def test_items_that_came_verified_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_hashes, "MAX_KNOWN_BLOCKS", 2)
    hashes = ItemHashes(Policy.COMPLETE)
    items = [replace(ITEM, key=f"item {number}") for number in range(3)]

    for item in items[:2]:
        hashes.mark_verified(item)
    assert known(hashes, items) == [True, True, False]
    hashes.mark_verified(items[2])

    assert known(hashes, items) == [False, True, True]
    assert not hashes.recognises(items[2], 0, MemoryBlock(BLOCKS[0])), "nothing is known of it"


def test_item_that_is_unverified_again_is_not_verified() -> None:
    hashes = ItemHashes(Policy.COMPLETE)
    verify(hashes, ITEM)

    hashes.mark_unverified(ITEM)

    assert not hashes.is_verified(ITEM)
    assert hashes.is_marked_unverified(ITEM)
    hashes.forget(ITEM)
    assert not hashes.is_marked_unverified(ITEM)
    assert not hashes.is_unverified(ITEM)


def test_what_is_forgotten_is_not_among_the_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = ItemHashes(Policy.COMPLETE, max_unverified=1)
    items = [replace(ITEM, key=f"item {number}") for number in range(2)]
    for item in items:
        hashes.mark_unverified(item)

    assert [hashes.is_marked_unverified(item) for item in items] == [True, False]


def test_end_and_a_lost_block_let_go_of_all_who_wait() -> None:
    hashes = ItemHashes(Policy.COMPLETE)
    items = [replace(ITEM, key=f"item {number}") for number in range(3)]
    begun = [hashes.begin_hashing(item) for item in items]
    woken = []

    def wait(hashing: Hashing) -> None:
        with hashing.changed:
            woken.append(hashing.changed.wait_for(lambda: hashing.is_given_up, LATE_S))

    waiting = [threading.Thread(target=wait, args=(hashing,)) for hashing in begun]
    for thread in waiting:
        thread.start()
    hashes.give_up(items[0])
    hashes.forget(items[1])
    hashes.give_up(replace(ITEM, key="that nobody hashes"))
    assert [hashes.hashing(item) is None for item in items] == [True, True, False]
    hashes.close()
    for thread in waiting:
        thread.join(LATE_S)

    assert woken == [True] * 3
    assert [hashes.hashing(item) for item in items] == [None] * 3


def test_who_waits_for_a_block_is_told_when_it_is_hashed() -> None:
    hashing = ItemHashes(Policy.COMPLETE).begin_hashing(ITEM)
    assert hashing is not None
    told = []

    def wait() -> None:
        with hashing.changed:
            told.append(hashing.changed.wait_for(lambda: hashing.next == 1, LATE_S))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert hashing.next == 0
    hashing.feed(MemoryBlock(BLOCKS[0]), ITEM)
    waiting.join(LATE_S)

    assert told == [True]
    assert len(hashing.serials) == 1


def test_block_of_which_the_arrival_is_not_known_is_not_recognised() -> None:
    hashes = ItemHashes(Policy.COMPLETE)
    hashing = hashes.begin_hashing(ITEM)
    assert hashing is not None
    unknown = [MemoryBlock(data, serial=0) for data in BLOCKS]
    for block in unknown:
        hashing.feed(block, ITEM)

    hashes.finish(ITEM, hashing)

    assert not hashes.recognises(ITEM, 0, unknown[0])


def test_limits_are_those_of_large_data() -> None:
    hashes = ItemHashes(Policy.STRICT)
    items = [replace(ITEM, key=f"item {number}") for number in range(100)]
    for item in items:
        hashes.mark_verified(item)

    assert all(known(hashes, items))
    for size, is_strict in [(256 * 2**20, True), (256 * 2**20 + 1, False)]:
        assert hashes.is_strict_with(replace(ITEM, size_in_bytes=size)) is is_strict
