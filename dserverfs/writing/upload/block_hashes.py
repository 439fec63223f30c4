"""The object with the hashes of a dataset's blocks, made of its files.

Used by the sender, once all items are stored. The hashes are those that were made with the
items' MD5, in the same reading; where they are not known, because an earlier version hashed
the files or nobody did, the files are read again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from dserverfs.base.block_hashes import ManifestDigest
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import Item


def write(dataset: LocalDataset, file: BinaryIO, read: Callable[[Item], bytes]) -> None:
    """Write the object; `read` returns the hashes of an item's blocks, by reading it."""
    digest = ManifestDigest()
    for item in dataset.items.larger_than(BLOCK_SIZE):
        digest.add(item.identifier, item.hash, item.size_in_bytes)
    file.write(digest.head)
    with dataset.known_blocks() as known:
        for item in dataset.items.larger_than(BLOCK_SIZE):
            blocks = known(dataset.path_of(item), item.hash)
            file.write(read(item) if blocks is None else blocks)
