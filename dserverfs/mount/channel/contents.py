"""Contents of small items that the daemon has told: whole, compared, for the kernel's page cache.

A pack has those of near rows of one dataset, one after the other in the order of the rows, as
the daemon read them; a table says where each lies. Each is given out once: afterwards the kernel
has it, or asks for it. Bounded: those that were told first go first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from struct import Struct

from dserverfs.base.hashes import Buffer

# Told, and not given out yet; each of 16 readers has at most 8 MiB ahead of it.
MAX_BYTES = 32 * 1024 * 1024
# Looked through at each OPEN. A reader in order has two.
MAX_PACKS = 64
# Larger packs are cut, and what is left of them told when it is asked for.
MAX_PACK_BYTES = 4 * 1024 * 1024

_HEAD = Struct("=Q")  # how many contents
_PLACE = Struct("=QQQ")  # a row, where its content begins behind the table, its length


def packed(contents: Sequence[tuple[int, Buffer]]) -> bytes:
    """Return a pack of contents, each with its row."""
    table, start = [_HEAD.pack(len(contents))], 0
    for row, data in contents:
        table.append(_PLACE.pack(row, start, len(data)))
        start += len(data)
    return b"".join((*table, *(data for _, data in contents)))


class _Pack:
    """A pack that was told."""

    __slots__ = ("_view", "places", "size_in_bytes")

    def __init__(self, data: bytes) -> None:
        """Raises struct.error, or ValueError, for what is no pack."""
        self.size_in_bytes = len(data)
        (number,) = _HEAD.unpack_from(data)
        behind = _HEAD.size + number * _PLACE.size
        if behind > len(data):
            raise ValueError("a pack is not whole")
        self._view = memoryview(data)[behind:]
        self.places = {
            row: (start, length)
            for row, start, length in _PLACE.iter_unpack(data[_HEAD.size : behind])
        }
        if any(start + length > len(self._view) for start, length in self.places.values()):
            raise ValueError("a pack is not whole")

    def take(self, row: int) -> memoryview | None:
        place = self.places.pop(row, None)
        return None if place is None else self._view[place[0] : place[0] + place[1]]


class Contents:
    """What was told and not given out."""

    def __init__(self) -> None:
        self._packs: OrderedDict[tuple[int, int], _Pack] = OrderedDict()  # by base and number
        self._told = 0
        self._bytes = 0

    def tell(self, base: int, data: bytes) -> None:
        """Take a pack of a dataset; raises struct.error, or ValueError, for what is none."""
        pack = _Pack(data)
        self._told += 1
        self._packs[base, self._told] = pack
        self._bytes += pack.size_in_bytes
        while len(self._packs) > MAX_PACKS or (self._bytes > MAX_BYTES and len(self._packs) > 1):
            self._drop(next(iter(self._packs)))

    def take(self, base: int, row: int) -> memoryview | None:
        """Return what a row holds, once; the newest if it was told several times."""
        found = None
        for key in [key for key in self._packs if key[0] == base]:
            pack = self._packs[key]
            found = pack.take(row) or found
            if not pack.places:
                self._drop(key)
        return found

    def take_back(self, base: int) -> None:
        """Give out nothing of a dataset that was told before."""
        for key in [key for key in self._packs if key[0] == base]:
            self._drop(key)

    def _drop(self, key: tuple[int, int]) -> None:
        self._bytes -= self._packs.pop(key).size_in_bytes
