"""Hashes by the names that manifests use, and when they are compared.

Used by whatever compares content with a manifest. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from dserverfs.base.errors import Unsupported

Buffer = bytes | bytearray | memoryview


class Policy(Enum):
    """When bytes are compared with the manifest's hash."""

    OFF = "off"
    COMPLETE = "complete"  # before the last byte of an item that is read whole
    STRICT = "strict"  # before the first byte of items up to a limit


class Hasher(Protocol):
    """What hashlib makes."""

    def update(self, data: Buffer, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """Return the digest of all of them."""


# dtoolcore.filehasher's names; all end in a hex digest in manifests.
_HASHES: dict[str, Callable[[], Hasher]] = {
    "md5sum_hexdigest": hashlib.md5,
    "sha1sum_hexdigest": hashlib.sha1,
    "shasum": hashlib.sha1,
    "sha256sum_hexdigest": hashlib.sha256,
}


def hasher_of(hash_function: str) -> Hasher | None:
    """Return a fresh hasher; None if the hash function is not known."""
    make = _HASHES.get(hash_function)
    return None if make is None else make()


def known_hasher(hash_function: str) -> Hasher:
    """Return a fresh hasher; raises Unsupported if the hash function is not known."""
    hasher = hasher_of(hash_function)
    if hasher is None:
        raise Unsupported(f"the hash function {hash_function} is not known")
    return hasher


def digest(hash_function: str, content: Buffer) -> str | None:
    """Return the hex digest of `content`; None if the hash function is not known."""
    hasher = hasher_of(hash_function)
    if hasher is None:
        return None
    hasher.update(content)
    return hasher.hexdigest()
