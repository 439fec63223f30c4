"""What is to be stored as the block hashes of a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from blake3 import blake3

from dserverfs.base.block_hashes import digest_of
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.model import Identifier, identifier_of


def object_of(contents: Mapping[str, bytes]) -> bytes:
    """Return the object of a dataset with these items."""
    entries, hashes = [], {}
    for relpath, content in contents.items():
        identifier = Identifier(identifier_of(relpath))
        entries.append((identifier, hashlib.md5(content).hexdigest(), len(content)))
        if len(content) > BLOCK_SIZE:
            blocks = range(0, len(content), BLOCK_SIZE)
            hashes[identifier] = b"".join(
                blake3(content[start : start + BLOCK_SIZE]).digest() for start in blocks
            )
    return digest_of(entries).head + b"".join(hashes[each] for each in sorted(hashes))
