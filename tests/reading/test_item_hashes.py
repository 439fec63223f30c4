"""What is known of items: verified, unverified, and none forgotten on the wrong side."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from dserverfs.base.block_hashes import block_hash, split
from dserverfs.base.hashes import Policy
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.base.model import Identifier
from dserverfs.reading.cache.blocks import MemoryBlock
from dserverfs.reading.item_hashes import ItemHashes, Verdict
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
