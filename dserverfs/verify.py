"""Hashes by the names that manifests use.

Used by whatever compares content with a manifest. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

Buffer = bytes | bytearray | memoryview

# dtoolcore.filehasher's names; all end in a hex digest in manifests.
_HASHES: dict[str, Callable[[], Any]] = {
    "md5sum_hexdigest": hashlib.md5,
    "sha1sum_hexdigest": hashlib.sha1,
    "shasum": hashlib.sha1,
    "sha256sum_hexdigest": hashlib.sha256,
}


def digest(hash_function: str, pieces: Iterable[Buffer]) -> str | None:
    """Return the hex digest of the joined pieces; None if the hash function is not known."""
    make = _HASHES.get(hash_function)
    if make is None:
        return None
    hasher = make()
    for piece in pieces:
        hasher.update(piece)
    return str(hasher.hexdigest())
