"""The channel's answers about what is in `data` of frozen datasets: names, attributes, listings.

The rule for each answer: the daemon has told the piece that has the row, out of the dataset's
index, and has not taken the dataset back. Such a row never changes, for no name below `data`
can be made, removed or changed; all else of a dataset (README.yml, `.dtool`, what is staged,
the same items by their path without `data/`) has numbers that are no rows, and is the daemon's.
So an answer is for as long as the kernel likes, and a listing may stay in its page cache.

Nobody counts look-ups of rows: their numbers are arithmetic, and good as long as the mount. So
a FORGET of one may go to libfuse, as all do, or come before the reply that it is about.

Bounded: of the pieces that were told, those used last are kept. Pure.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from errno import EINVAL, EIO

from dserverfs.mount.channel import rows, wire
from dserverfs.mount.channel.rows import ROW_MASK, ROWS, Extent, Piece
from dserverfs.mount.channel.wire import CACHE_DIR, KEEP_CACHE, Opcode

# Handles from here on are of what the channel has opened.
FIRST_HANDLE = 1 << 62
MAX_BYTES = 64 * 1024 * 1024  # of pieces: 370,000 items with names of 20 bytes
PIECE_BYTES = 100 * 1024  # as much as one usually has
MISSES = 4
MAX_MISSED = 10_000  # pieces of which it is known
BELIEVED_S = 365 * 24 * 3600  # that there is no such name

# Requests about what is open: who opened it was asked for then.
OF_OPEN = frozenset(
    {
        Opcode.FSYNC,
        Opcode.FSYNCDIR,
        Opcode.READDIRPLUS,
        Opcode.RELEASE,
        Opcode.RELEASEDIR,
    }
)

# What is to be answered: the parts of the answer, or the errno.
Answer = Sequence[bytes | memoryview] | int
Key = tuple[int, int]  # what the rows of a dataset count from, and the number of a piece

_NO_ENTRY = wire.ENTRY_OUT.pack(0, 0, BELIEVED_S, 0, 0, 0) + bytes(wire.ATTR.size)
_FOR_READING = ~(os.O_ACCMODE | os.O_APPEND | os.O_CREAT | os.O_TRUNC)


class Missing(Exception):
    """An answer needs a piece that is not here."""

    def __init__(self, key: Key) -> None:
        super().__init__()
        self.key = key


class Frozen:
    """What was told of frozen datasets."""

    def __init__(self) -> None:
        self._told: set[int] = set()
        self._pieces: OrderedDict[Key, Piece] = OrderedDict()
        self._bytes = 0
        self._missed: Counter[Key] = Counter()  # how often a piece was not here
        self._last_handle = FIRST_HANDLE
        # Whom it answers: beside root the owner, or everybody if the kernel compares modes.
        self.owner: int | None = None
        self.opens = True  # not while a program's reads are noted from its open(2) on
        self.ahead: Key | None = None  # a piece that will be needed soon
        self.handlers: Mapping[int, Callable[[int, memoryview], Answer | None]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.OPEN: self._open,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.FSYNC: self._succeeds,
            Opcode.FSYNCDIR: self._succeeds,
            Opcode.RELEASE: self._succeeds,
            Opcode.RELEASEDIR: self._succeeds,
        }

    def admits(self, uid: int) -> bool:
        """Return whether requests of a user are answered here."""
        return self.owner is None or uid in (self.owner, 0)

    def is_told(self, base: int) -> bool:
        """Return whether rows of a dataset are answered."""
        return base in self._told

    def size(self, inode: int) -> int | None:
        """Return the size of a row that was told; None of another one."""
        row = inode & ROW_MASK
        piece = self._pieces.get((inode - row, row // ROWS))
        return None if piece is None or row not in piece else wire.size_of(piece.entry_out(row))

    def missed(self, key: Key) -> bool:
        """Note that a piece was missed; return whether it is to be asked for.

        It may be so when it was missed MISSES times, as long as no other one has to go for it:
        who opens items all over a large dataset would have a piece packed for each.
        """
        if self._bytes >= MAX_BYTES - PIECE_BYTES:
            return False
        if len(self._missed) >= MAX_MISSED:
            self._missed.clear()
        self._missed[key] += 1
        if self._missed[key] < MISSES:
            return False
        del self._missed[key]
        return True

    # What the daemon tells

    def tell(self, base: int) -> None:
        """Have rows of a dataset answered, of which pieces are to be asked for."""
        self._told.add(base)

    def take(self, base: int, piece: Piece) -> Key:
        """Take a piece of a dataset; return its key.

        Of one that was taken back it is for listings that are open: their handles are good.
        """
        key = (base, piece.first // ROWS)
        self._drop(key)
        self._pieces[key] = piece
        self._bytes += piece.size_in_bytes
        while self._bytes > MAX_BYTES and len(self._pieces) > 1:
            self._drop(next(iter(self._pieces)))
        return key

    def take_back(self, base: int) -> None:
        """Answer nothing about a dataset any more."""
        self._told.discard(base)
        for key in [key for key in self._pieces if key[0] == base]:
            self._drop(key)

    def clear(self) -> None:
        """Answer nothing any more but about handles that are open, of pieces that are to be told.

        Handles go on to be given behind the last.
        """
        self._told.clear()
        self._pieces.clear()
        self._missed.clear()
        self._bytes, self.ahead, self.opens = 0, None, True

    def _drop(self, key: Key) -> None:
        piece = self._pieces.pop(key, None)
        if piece is not None:
            self._bytes -= piece.size_in_bytes

    # What the kernel asks: None is for the daemon to answer.

    def _lookup(self, inode: int, body: memoryview) -> Answer | None:
        if self._is_unknown(inode):
            return None
        base, extent = self._extent(inode)
        name = bytes(body).partition(b"\0")[0]
        if extent is None or name in (b"", b".", b".."):
            return None
        low, end = extent.first, extent.first + extent.number
        high = end
        while low < high:
            middle = (low + high) // 2
            piece = self._piece(base, middle)
            if middle not in piece:
                return None
            if piece.name(middle) < name:
                low = middle + 1
            else:
                high = middle
        if low < end:
            piece = self._piece(base, low)
            if low not in piece:
                return None
            if piece.name(low) == name:
                return (piece.entry_out(low),)
        return (_NO_ENTRY,)

    def _getattr(self, inode: int, body: memoryview) -> Answer | None:
        if self._is_unknown(inode):
            return None
        row = inode & ROW_MASK
        piece = self._piece(inode - row, row)
        return (piece.attr_out(row),) if row in piece else None

    def _open(self, inode: int, body: memoryview) -> Answer | None:
        if self._is_unknown(inode) or not self.opens:
            return None
        row = inode & ROW_MASK
        flags, _ = wire.OPEN.unpack_from(body)
        piece = self._piece(inode - row, row)
        if flags & ~_FOR_READING or row not in piece or not piece.can_be_opened(row):
            return None
        self._last_handle += 1
        return (wire.OPENED.pack(self._last_handle, KEEP_CACHE, 0),)

    def _opendir(self, inode: int, body: memoryview) -> Answer | None:
        if self._is_unknown(inode):
            return None
        base, extent = self._extent(inode)
        if extent is None:
            return None
        # Many a program takes an error while it lists for the end of the directory.
        if extent.number and extent.first not in self._piece(base, extent.first):
            return None
        return (wire.OPENED.pack(FIRST_HANDLE, CACHE_DIR | KEEP_CACHE, 0),)

    def _readdirplus(self, inode: int, body: memoryview) -> Answer | None:
        handle, offset, size, *_ = wire.READ.unpack_from(body)
        if handle < FIRST_HANDLE:
            return None
        base, extent = self._extent(inode)
        if extent is None:
            return EIO
        answer: list[bytes | memoryview] = []
        row, end = max(offset + 1, extent.first), extent.first + extent.number
        if offset in (0, wire.DOT, wire.DOT_DOT):
            row = extent.first
            for entry in rows.dots(inode, offset):
                if len(entry) > size:  # an answer without an entry is the end of the directory
                    return answer or EINVAL
                answer.append(entry)
                size -= len(entry)
        if row >= end:
            return answer
        piece = self._piece(base, row)
        if row not in piece:
            return EIO
        entries = piece.cut(row, end, size)
        following = piece.first + piece.number
        if following < end and (base, following // ROWS) not in self._pieces:
            self.ahead = (base, following // ROWS)
        if entries:
            answer.append(entries)
        return answer or EINVAL

    def _succeeds(self, inode: int, body: memoryview) -> Answer | None:
        (handle,) = wire.RELEASE.unpack_from(body)
        return () if handle >= FIRST_HANDLE else None

    # Helpers

    def _is_unknown(self, inode: int) -> bool:
        return inode & ~ROW_MASK not in self._told

    def _extent(self, inode: int) -> tuple[int, Extent | None]:
        """Return what the rows of its dataset count from, and a directory's children."""
        row = inode & ROW_MASK
        return inode - row, self._piece(inode - row, row).extent(row)

    def _piece(self, base: int, row: int) -> Piece:
        key = (base, row // ROWS)
        piece = self._pieces.get(key)
        if piece is None:
            raise Missing(key)
        self._pieces.move_to_end(key)
        return piece
