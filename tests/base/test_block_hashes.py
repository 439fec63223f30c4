"""The format of the object that holds the hashes of a dataset's blocks."""

from __future__ import annotations

import hashlib
import os
import struct
from itertools import pairwise

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from dserverfs.base import block_hashes
from dserverfs.base.block_hashes import (
    HEAD_BYTES,
    BlockHasher,
    ManifestDigest,
    digest_of,
    require_head,
)
from dserverfs.base.errors import IntegrityError
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.model import Identifier

Entry = tuple[Identifier, str, int]


def entry(number: int, size_in_bytes: int) -> Entry:
    text = f"{number}".encode()
    return (
        Identifier(hashlib.sha1(text).hexdigest()),
        hashlib.md5(text).hexdigest(),
        size_in_bytes,
    )


CONTENT = memoryview(os.urandom(3 * BLOCK_SIZE))
ITEMS = [entry(1, BLOCK_SIZE + 1), entry(2, 7), entry(3, 3 * BLOCK_SIZE), entry(4, BLOCK_SIZE)]


def test_head_is_as_documented() -> None:
    large = sorted(item for item in ITEMS if item[2] > BLOCK_SIZE)
    lines = "".join(f"{identifier} {hash} {size}\n" for identifier, hash, size in large)
    magic = b"dtool block hash"

    assert digest_of(ITEMS).head == (
        magic + struct.pack(">IIQ", 1, 1 << 20, 5) + blake3(lines.encode()).digest()
    )
    assert digest_of(ITEMS).size_in_bytes == 64 + 5 * 32


def test_hash_of_a_block_is_its_blake3() -> None:
    block = os.urandom(BLOCK_SIZE - 1)

    assert block_hashes.block_hash(memoryview(block)) == blake3(block).digest()


sizes = st.one_of(st.integers(0, 2**40), st.sampled_from([0, BLOCK_SIZE, BLOCK_SIZE + 1]))


@given(st.lists(sizes, max_size=8), st.data())
def test_any_change_of_an_item_with_hashes_is_another_head(
    sizes: list[int], data: st.DataObject
) -> None:
    items = [entry(number, size) for number, size in enumerate(sizes)]
    head = digest_of(items).head
    assert digest_of(reversed(items)).head == head
    large = [place for place, item in enumerate(items) if item[2] > BLOCK_SIZE]
    if not large:
        return
    place = data.draw(st.sampled_from(large))
    identifier, hash, size = items[place]
    other = data.draw(
        st.sampled_from(
            [
                (Identifier("f" * 40), hash, size),
                (identifier, "0" * 32, size),
                (identifier, hash, size + 1),
                (identifier, hash, BLOCK_SIZE),
            ]
        )
    )

    assert digest_of([*items[:place], other, *items[place + 1 :]]).head != head


def test_items_of_one_block_leave_no_trace() -> None:
    digest = ManifestDigest()
    for item in sorted(ITEMS):
        digest.add(*item)

    assert digest.head == digest_of(ITEMS).head


def test_items_are_added_in_ascending_order() -> None:
    digest = ManifestDigest()
    first, second = sorted(item for item in ITEMS if item[2] > BLOCK_SIZE)
    digest.add(*second)

    with pytest.raises(AssertionError):
        digest.add(*first)


GOOD = digest_of(ITEMS).head


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"", "are none"),
        (GOOD[:-1], "are none"),
        (b"x" * HEAD_BYTES, "are none"),
        (GOOD[:16] + struct.pack(">I", 2) + GOOD[20:], "format 2"),
        (GOOD[:20] + struct.pack(">I", 4096) + GOOD[24:], "blocks of 4096 bytes"),
        (GOOD[:24] + struct.pack(">Q", 6) + GOOD[32:], "are 6, and it has 5"),
        (digest_of([*ITEMS[1:], entry(5, BLOCK_SIZE + 1)]).head, "another manifest"),
    ],
)
def test_head_that_is_not_the_expected_one_says_why(head: bytes, said: str) -> None:
    with pytest.raises(IntegrityError, match=said):
        require_head(head, GOOD)
    require_head(GOOD, GOOD)


def test_hashes_are_split_one_by_one() -> None:
    assert block_hashes.split(b"a" * 32 + b"b" * 32) == [b"a" * 32, b"b" * 32]
    assert block_hashes.split(b"") == []
    assert block_hashes.place_of(2) == 128


@given(
    size=st.sampled_from([0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE]),
    cuts=st.lists(st.integers(0, 3 * BLOCK_SIZE), max_size=6),
)
def test_hashes_are_those_of_blocks_in_whatever_pieces_bytes_come(
    size: int, cuts: list[int]
) -> None:
    hasher = BlockHasher()
    for start, end in pairwise([0, *sorted(cut for cut in cuts if cut < size), size]):
        hasher.update(CONTENT[start:end])

    assert block_hashes.split(hasher.hashes()) == [
        blake3(CONTENT[start : min(start + BLOCK_SIZE, size)]).digest()
        for start in range(0, size, BLOCK_SIZE)
    ]
