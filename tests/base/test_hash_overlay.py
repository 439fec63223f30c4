"""Block hashes as an overlay: what is written is read, and nothing else is taken."""

from __future__ import annotations

import base64
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dserverfs.base import hash_overlay
from dserverfs.base.block_hashes import HASH_BYTES
from dserverfs.base.disk_tables import ItemTable
from dserverfs.base.errors import ProtocolError
from dserverfs.base.items import BLOCK_SIZE, number_of_blocks
from dserverfs.base.model import Item, identifier_of
from tests.support.mutations import mutated

MD5 = "0123456789abcdef" * 2


def table(sizes: list[int]) -> ItemTable:
    items = ItemTable()
    for number, size in enumerate(sizes):
        items.add(f"item {number}", size, f"{number:032x}", 0, 0.0)
    return items


def hashes_of(item: Item) -> bytes:
    return bytes([item.size_in_bytes % 251]) * (number_of_blocks(item.size_in_bytes) * HASH_BYTES)


@given(st.lists(st.integers(0, 5 * BLOCK_SIZE), max_size=8), st.sets(st.integers(0, 7)))
def test_what_is_written_is_read(sizes: list[int], unknown: set[int]) -> None:
    items = table(sizes)
    missing = {identifier_of(f"item {number}") for number in unknown}

    overlay = hash_overlay.overlay_of(
        items, lambda item: None if item.identifier in missing else hashes_of(item)
    )

    expected = {
        item.identifier: hashes_of(item)
        for item in items.values()
        if item.size_in_bytes > BLOCK_SIZE and item.identifier not in missing
    }
    if overlay is None:
        assert not expected
        return
    content = json.dumps(overlay).encode()
    assert len(content) <= hash_overlay.MAX_BYTES
    assert overlay.keys() == {*items}, "dtool wants a value for every item"
    texts = hash_overlay.parse(content)
    for item in items.values():
        text = texts.get(item.identifier)
        found = hash_overlay.hashes_in(text, item.hash.upper(), item.size_in_bytes)
        assert found == expected.get(item.identifier)
        assert hash_overlay.hashes_in(text, MD5, item.size_in_bytes) is None
        assert hash_overlay.hashes_in(text, item.hash, item.size_in_bytes + BLOCK_SIZE) is None


@pytest.mark.parametrize("limit", ["MAX_HASHES", "MAX_ITEMS"])
def test_large_dataset_has_none(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    sizes = [3 * BLOCK_SIZE, BLOCK_SIZE] if limit == "MAX_HASHES" else [2 * BLOCK_SIZE] * 3
    monkeypatch.setattr(hash_overlay, limit, 3)
    assert hash_overlay.overlay_of(table(sizes), hashes_of) is not None
    monkeypatch.setattr(hash_overlay, limit, 2)

    assert hash_overlay.overlay_of(table(sizes), hashes_of) is None


def test_the_largest_overlay_is_not_larger_than_is_read() -> None:
    value = f'"{"0" * 40}": "{MD5}:", '
    text = math.ceil(hash_overlay.MAX_HASHES * HASH_BYTES / 3) * 4
    padding = 2 * hash_overlay.MAX_ITEMS  # of base64, an item

    assert hash_overlay.MAX_ITEMS * len(value) + text + padding <= hash_overlay.MAX_BYTES


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        MD5,
        f"{MD5}:",
        f"{MD5}:{base64.b64encode(bytes(HASH_BYTES)).decode()}",
        f"{MD5}:{base64.b64encode(bytes(3 * HASH_BYTES)).decode()}",
        f"{MD5}:{'!' * 88}",
        f"{MD5}:\N{SNOWMAN}",
        base64.b64encode(bytes(2 * HASH_BYTES)).decode(),
        f"{'f' * 32}:{base64.b64encode(bytes(2 * HASH_BYTES)).decode()}",
    ],
)
def test_text_of_another_form_has_no_hashes(text: str | None) -> None:
    assert hash_overlay.hashes_in(text, MD5, 2 * BLOCK_SIZE) is None


RIGHT = {"a" * 40: f"{MD5}:{'A' * 88}", "b" * 40: None}


@given(mutated(RIGHT))
def test_any_bytes_are_an_overlay_or_a_protocol_error(content: bytes) -> None:
    try:
        texts = hash_overlay.parse(content)
    except ProtocolError:
        return
    for text in texts.values():
        found = hash_overlay.hashes_in(text, MD5, 2 * BLOCK_SIZE)
        assert found is None or len(found) == 2 * HASH_BYTES
