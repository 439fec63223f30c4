"""The state of the comparison of items with their manifest's hash. Does no work by itself.

An item is verified (compared here, or all its blocks came verified from the cache),
unverified (an unverified block of it was handed out), or neither. The hashes of the blocks
of an item that is verified are handed on, so that one that is fetched again can be compared.

Used by `block_hashing`, which hashes, and by those who ask or tell what is known.
Thread-safe. Everything here is bounded.
"""

from __future__ import annotations

import logging
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from enum import Enum, auto

from dserverfs.base.block_hashes import HASH_BYTES, block_hash
from dserverfs.base.hashes import Hasher, Policy, hasher_of
from dserverfs.base.items import ItemContent
from dserverfs.reading.cache.blocks import Block, DamagedBlock

logger = logging.getLogger(__name__)

MAX_HASHING = 256  # items being hashed; the one fed longest ago is given up
MAX_KNOWN_BLOCKS = 1024 * 1024  # of verified items; 8 bytes each
# Unverified items, at some 300 bytes: 30 MB. Beyond it every item counts as unverified
# until it is verified, so that none is taken for a good one because it was forgotten;
# each is then hashed once more when it is read whole.
MAX_UNVERIFIED = 100_000
# `strict` waits for the whole of items up to this size: 1-3 s from a server nearby.
STRICT_LIMIT_BYTES = 256 * 1024 * 1024


class Verdict(Enum):
    """The outcome of a comparison."""

    VERIFIED = auto()
    CORRUPT = auto()
    UNKNOWN = auto()


_CAME_VERIFIED: Sequence[int] = ()


class Hashing:
    """An item that is being hashed, block after block."""

    def __init__(self, hasher: Hasher) -> None:
        self.changed = threading.Condition()
        self.lock = threading.Lock()  # held by the thread that hashes
        self.hasher = hasher
        self.next = 0  # Invariant: blocks before this one are in the hash, no other
        self.serials = array("Q")  # of these blocks
        self.block_hashes = bytearray()
        self.is_given_up = False  # a block before the end will not come

    def feed(self, block: Block, content: ItemContent) -> None:
        """Hash the next block; the caller holds `lock`. Raises DamagedBlock."""
        data = block.read(0, content.size_in_bytes)
        self.hasher.update(data)
        self.serials.append(block.serial)
        self.block_hashes += block_hash(data)
        with self.changed:
            self.next += 1
            self.changed.notify_all()

    def agrees(self, index: int, block: Block, content: ItemContent) -> bool:
        """Return False if another block than this one is in the hash in its place.

        Damage on our own disk is no difference: of a damaged block nothing is handed out.
        """
        if index >= self.next:
            return True
        if block.serial and self.serials[index] == block.serial:
            return True
        try:
            found = block_hash(block.read(0, content.size_in_bytes))
        except DamagedBlock:
            return True
        return found == self.block_hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]

    def give_up(self) -> None:
        with self.changed:
            self.is_given_up = True
            self.changed.notify_all()


class ItemHashes:
    """The items that are being hashed, and those that are verified or unverified."""

    def __init__(
        self,
        policy: Policy,
        *,
        strict_limit_in_bytes: int = STRICT_LIMIT_BYTES,
        max_unverified: int = MAX_UNVERIFIED,
        make_hasher: Callable[[str], Hasher | None] = hasher_of,
    ) -> None:
        self.policy = policy
        self.strict_limit_in_bytes = strict_limit_in_bytes
        self._make_hasher = make_hasher
        self._max_unverified = max_unverified
        self._lock = threading.Lock()
        self._hashing: OrderedDict[str, Hashing] = OrderedDict()
        # The serials of their blocks, by which these are recognised.
        self._verified: OrderedDict[str, Sequence[int]] = OrderedDict()
        self._verified_blocks = 0
        self._unverified: set[str] = set()
        self._has_forgotten = False  # some unverified item, for want of room

    def is_strict_with(self, content: ItemContent) -> bool:
        """Return True if the whole item is compared before any byte of it is handed out."""
        return self.policy is Policy.STRICT and content.size_in_bytes <= self.strict_limit_in_bytes

    def can_hash(self, content: ItemContent) -> bool:
        """Return True if the item's hash function is known."""
        return self._make_hasher(content.hash_function) is not None

    def is_verified(self, content: ItemContent) -> bool:
        """Return True if every byte of it that was handed out, or is hot, is the manifest's."""
        return content.key in self._verified

    def is_unverified(self, content: ItemContent) -> bool:
        """Return True if a byte of it was handed out that was not compared yet."""
        if content.key in self._unverified:
            return True
        # An item of one block was compared when it came.
        is_forgotten = self._has_forgotten and content.number_of_blocks > 1
        return is_forgotten and content.key not in self._verified

    def is_marked_unverified(self, content: ItemContent) -> bool:
        """Return True if a byte of it is known to have been handed out that was not compared."""
        return content.key in self._unverified

    def recognises(self, content: ItemContent, index: int, block: Block) -> bool:
        """Return True if the block was part of the item when it was verified here."""
        serials = self._verified.get(content.key)
        return bool(serials and block.serial and serials[index] == block.serial)

    def mark_unverified(self, content: ItemContent) -> None:
        """Note that an unverified block is about to be handed out."""
        with self._lock:
            self._unmark_locked(content)
            self._unverified.add(content.key)
            if len(self._unverified) > self._max_unverified:
                self._unverified.discard(content.key)
                self._has_forgotten = True

    def mark_verified(self, content: ItemContent) -> None:
        """Note that every block of the item came verified from the cache."""
        self._note_verified(content, _CAME_VERIFIED)

    def hashing(self, content: ItemContent) -> Hashing | None:
        """Return the item's hashing if it was begun."""
        with self._lock:
            return self._hashing.get(content.key)

    def begin_hashing(self, content: ItemContent) -> Hashing | None:
        """Return the item's hashing, begun now if need be; None without its hash function."""
        with self._lock:
            hashing = self._hashing.get(content.key)
            if hashing is None:
                hasher = self._make_hasher(content.hash_function)
                if hasher is None:
                    return None
                hashing = Hashing(hasher)
                self._hashing[content.key] = hashing
                if len(self._hashing) > MAX_HASHING:
                    self._hashing.popitem(last=False)
            return hashing

    def is_current(self, content: ItemContent, hashing: Hashing) -> bool:
        """Return False if the item's hashing has come to its end or was given up."""
        with self._lock:
            return self._hashing.get(content.key) is hashing

    def finish(self, content: ItemContent, hashing: Hashing) -> Verdict | None:
        """Return the verdict on an item that is hashed to its end; None if it was given before."""
        with self._lock:
            if self._hashing.get(content.key) is not hashing:
                return None
            del self._hashing[content.key]
        if hashing.hasher.hexdigest() != content.hash:
            logger.warning("%s was read whole and does not have the manifest's hash", content.label)
            return Verdict.CORRUPT
        self._note_verified(content, hashing.serials)
        return Verdict.VERIFIED

    def give_up(self, content: ItemContent) -> None:
        """Let no thread wait for an item of which a block could not be fetched."""
        with self._lock:
            hashing = self._hashing.pop(content.key, None)
        if hashing is not None:
            hashing.give_up()

    def forget(self, content: ItemContent) -> None:
        """Begin anew with an item that was dropped."""
        self.give_up(content)
        with self._lock:
            self._unverified.discard(content.key)
            self._unmark_locked(content)

    def close(self) -> None:
        with self._lock:
            given_up = list(self._hashing.values())
            self._hashing.clear()
        for hashing in given_up:
            hashing.give_up()

    def _note_verified(self, content: ItemContent, serials: Sequence[int]) -> None:
        with self._lock:
            self._unverified.discard(content.key)
            self._unmark_locked(content)
            self._verified[content.key] = serials
            self._verified_blocks += len(serials)
            while (
                self._verified_blocks > MAX_KNOWN_BLOCKS or len(self._verified) > MAX_KNOWN_BLOCKS
            ):
                _, dropped = self._verified.popitem(last=False)
                self._verified_blocks -= len(dropped)

    def _unmark_locked(self, content: ItemContent) -> None:
        self._verified_blocks -= len(self._verified.pop(content.key, _CAME_VERIFIED))
