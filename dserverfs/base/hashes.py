"""Hashes by the names that manifests use, of local files, and when they are compared.

Used wherever content is compared with a manifest. No state; `hash_file` and `file_digest`
block on the disk.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Protocol

from dserverfs.base.errors import Unsupported

Buffer = bytes | bytearray | memoryview

MD5 = "md5sum_hexdigest"  # of each dataset that is frozen here: S3 can check it
# hashlib lets other threads run while it works on a piece; MD5 takes a core 0.9 GB/s. Smaller
# pieces, or a buffer that is used again, make no difference for large files (0.75 s for 512 MiB).
# For one of 4 KiB, 11 us, a buffer of 1 MiB costs 19 us more.
PIECE_BYTES = 1024 * 1024


class Policy(Enum):
    """The moment at which bytes are compared with the manifest's hash."""

    OFF = "off"
    COMPLETE = "complete"  # before the last byte of an item that is read whole
    STRICT = "strict"  # before the first byte of items up to a limit


class Taker(Protocol):
    """What is made of bytes as they come."""

    def update(self, data: Buffer, /) -> None:
        """Take in more bytes."""


class Hasher(Taker, Protocol):
    """An object of hashlib."""

    def hexdigest(self) -> str:
        """Return the digest of all of them."""


def new_md5() -> Hasher:
    """Return a fresh MD5, also where MD5 is forbidden for security (FIPS)."""
    return hashlib.md5(usedforsecurity=False)


# dtoolcore.filehasher's names; all end in a hex digest in manifests.
_HASHES: dict[str, Callable[[], Hasher]] = {
    MD5: new_md5,
    "sha1sum_hexdigest": functools.partial(hashlib.sha1, usedforsecurity=False),
    "shasum": functools.partial(hashlib.sha1, usedforsecurity=False),
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


def _nothing(count: int) -> None:
    """Be told of a piece."""


def hash_file(
    fd: int,
    *hashers: Taker,
    offset: int = 0,
    length: int | None = None,
    on_piece: Callable[[int], None] = _nothing,
) -> int:
    """Feed bytes [offset, offset+length) of an open file to each hasher; return how many came.

    Fewer than `length` only at the file's end, which is the default. `on_piece` is called
    with the length of each piece that was hashed; what it raises ends the reading.
    """
    done = 0
    while length is None or done < length:
        wanted = PIECE_BYTES if length is None else min(PIECE_BYTES, length - done)
        piece = os.pread(fd, wanted, offset + done)
        if not piece:
            break
        for hasher in hashers:
            hasher.update(piece)
        done += len(piece)
        on_piece(len(piece))
    return done


def file_digest(path: Path, hash_function: str) -> str:
    """Return the hex digest of a file; raises Unsupported and OSError."""
    hasher = known_hasher(hash_function)
    with path.open("rb", buffering=0) as file:
        hash_file(file.fileno(), hasher)
    return hasher.hexdigest()
