"""An item as it is read: its place, size and hash, and its division into blocks."""

from __future__ import annotations

import copy
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dserverfs.base.errors import DserverfsError
from dserverfs.base.model import Dataset, DserverURI, Identifier

# 1 MiB: waiters need not be woken within a block, and a random reader fetches no
# more than that; larger ranges are fetched as runs of blocks.
BLOCK_SIZE = 1024 * 1024
# Of the name under which an item is shown that its manifest describes as none can be.
REFUSED_PREFIX = ".refused-"


class Run(NamedTuple):
    """Blocks [first, first+length) of an item."""

    first: int
    length: int


def number_of_blocks(size_in_bytes: int) -> int:
    return -(-size_in_bytes // BLOCK_SIZE)


def block_length(size_in_bytes: int, index: int) -> int:
    """Return how many bytes block `index` of an item of that size has."""
    return min(BLOCK_SIZE, size_in_bytes - index * BLOCK_SIZE)


def leading_run(indices: Sequence[int]) -> Run:
    """Return the run that ascending block indices begin with."""
    length = 1
    while length < len(indices) and indices[length] == indices[0] + length:
        length += 1
    return Run(indices[0], length)


class HashesPlace(NamedTuple):
    """The place of an item's block hashes in the object that has those of its dataset."""

    head: bytes  # of the object that belongs to the dataset's manifest
    object_size: int  # in bytes
    first: int  # the number of the hash of its first block


def _none(place: int, limit: int) -> Sequence[ItemContent]:
    return ()


def _no_hashes() -> HashesPlace | None:
    return None


def _unknown() -> str:
    return "an item"


@dataclass(frozen=True)
class ItemContent:
    """An item's place, size and hash."""

    key: str  # see `item_key`
    dataset: Dataset
    identifier: Identifier
    size_in_bytes: int
    hash_function: str  # dtool's name of it
    hash: str  # hex digits, lower case
    # The n items nearest to it where directories list them, or all there are; itself first.
    neighbours: Callable[[int], Sequence[Identifier]]
    # Its place in the order in which directories list the dataset's items, and how to
    # get up to n items from a place on; blocks, and raises DserverfsError.
    place: int = 0
    items_from: Callable[[int, int], Sequence[ItemContent]] = field(default=_none, compare=False)
    is_refused: bool = False  # its entry in the manifest is not one that may be used
    # Where its block hashes are, if there are any; None of an item of one block. Blocks, and
    # may raise DserverfsError.
    hashes_place: Callable[[], HashesPlace | None] = field(default=_no_hashes, compare=False)
    # Its path below `data`, for messages; asked for when there is one. May raise DserverfsError.
    relpath_of: Callable[[], str] = field(default=_unknown, compare=False)

    @property
    def label(self) -> str:
        """Return its name in messages: the user's, a dataset and relpath, and the store's."""
        try:
            relpath = self.relpath_of()
        except DserverfsError:  # the index is closed
            relpath = "an item"
        return f"{self.dataset.uri} ({self.dataset.name}): {relpath} (item {self.identifier})"

    def named_in(self, error: DserverfsError) -> DserverfsError:
        """Return the error with this item in its message; others may have the same error."""
        if self.dataset.uri in str(error):
            return error
        named = copy.copy(error)
        named.args = (f"{self.label}: {error}",)
        named.__cause__ = error
        return named

    @property
    def content_key(self) -> str:
        """Return a key that all items with this content share; it is no `key` of an item."""
        return content_key(self.hash_function, self.hash, self.size_in_bytes)

    @property
    def number_of_blocks(self) -> int:
        return number_of_blocks(self.size_in_bytes)


def item_key(dataset: DserverURI, identifier: Identifier, hash: str) -> str:
    """Return a key that no item of another dataset, base URI or server has.

    Nor another content of this one: a dataset can be deleted and made again with its uuid.
    """
    return f"{dataset}/{_plain(identifier)}={_plain(hash)}"


def _plain(text: str) -> str:
    """Return `text`, which is as the manifest says, without what has a meaning in a key."""
    if text.isalnum() and text.isascii():
        return text
    return urllib.parse.quote(text, safe="", errors="surrogatepass")


def content_key(hash_function: str, hash: str, size_in_bytes: int) -> str:
    """Return a key of content, by its hash; it is no `key` of an item."""
    return f"={hash_function}:{hash}:{size_in_bytes}"
