"""The hashes of a dataset's blocks as an overlay, for servers that keep no object of them.

Used by uploads, if the user wants it, and by readers. The overlay has a text for each item of
more than one block: its MD5 of the manifest, a colon, and the hashes of its blocks one behind
the other, in base64. All others have null, for dtool wants a value for every item. Pure.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

from dserverfs.base.block_hashes import HASH_BYTES
from dserverfs.base.disk_tables import ItemTable
from dserverfs.base.errors import ProtocolError
from dserverfs.base.items import BLOCK_SIZE, number_of_blocks
from dserverfs.base.limits import is_text, parse_json
from dserverfs.base.model import Identifier, Item

NAME = "dserverfs_block_hashes"
# It is read whole: more blocks (64 GiB) or items than these have none.
MAX_HASHES = 65_536
MAX_ITEMS = 10_000
# With 80 bytes an item beside the hashes.
MAX_BYTES = MAX_HASHES * HASH_BYTES * 4 // 3 + MAX_ITEMS * 128


def overlay_of(
    items: ItemTable, hashes_of: Callable[[Item], bytes | None]
) -> dict[Identifier, str | None] | None:
    """Return the overlay; None for a dataset without hashes, or with too many.

    `hashes_of` an item may be unknown; it has none in the overlay then.
    """
    if len(items) > MAX_ITEMS:
        return None
    large = list(items.larger_than(BLOCK_SIZE))
    if not 0 < sum(number_of_blocks(item.size_in_bytes) for item in large) <= MAX_HASHES:
        return None
    values = dict.fromkeys(items, None) | {
        item.identifier: f"{item.hash}:{base64.b64encode(hashes).decode()}"
        for item in large
        if (hashes := hashes_of(item)) is not None
    }
    return values if any(values.values()) else None


def parse(content: bytes) -> Mapping[Identifier, str]:
    """Return the texts of an overlay; raises ProtocolError if it is no JSON object, or large."""
    if len(content) > MAX_BYTES:
        raise ProtocolError("the overlay with its block hashes is larger than any can be")
    values: Any = parse_json(content, "the overlay with its block hashes")
    if not isinstance(values, dict):
        raise ProtocolError("the overlay with its block hashes is no JSON object")
    return {Identifier(key): value for key, value in values.items() if is_text(value)}


def hashes_in(text: str | None, hash: str, size_in_bytes: int) -> bytes | None:
    """Return the hashes of an item's blocks; None unless they are of its MD5 and number."""
    of, _, encoded = (text or "").partition(":")
    if of.lower() != hash.lower():
        return None
    try:
        hashes = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    return hashes if len(hashes) == number_of_blocks(size_in_bytes) * HASH_BYTES else None
