"""Files of a cache that show whether they are what was written: content, and its seal.

Used by whoever keeps what can be fetched or made again. A seal is the content's length
and CRC-32, bound to the file's name: a bit that flipped, a page of zeros, a cut, or the
file of another item does not pass it. It is no defence against who can write there: that is
its owner alone. No state.

    write_sealed, sealed_content      small files; the seal follows the content
    append_seal, has_seal             a file that a library reads which takes no offence at that
    write_seal_beside, has_seal_beside
                                      a file that is shown as it is: its seal is in `<name>.seal`

A power cut or a kill at any step leaves a file that passes its seal or one that does not.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import IO

from zlib_ng import zlib_ng

from dserverfs.base.durable_files import write_unsynced
from dserverfs.base.local_files import clear_way, open_regular

_FORM = b"\nsealed 1 %020d %08x\n"
SEAL_BYTES = len(_FORM % (0, 0))
_PIECE_BYTES = 1024 * 1024


class Sealing:
    """The seal of a content that is `add`ed piece by piece."""

    def __init__(self, path: Path) -> None:
        self._crc = zlib.crc32(os.fsencode(path.name))
        self._size_in_bytes = 0

    def add(self, piece: bytes | memoryview) -> None:
        self._crc = zlib_ng.crc32(piece, self._crc)
        self._size_in_bytes += len(piece)

    def seal(self) -> bytes:
        return _FORM % (self._size_in_bytes, self._crc)


def write_sealed(path: Path, content: bytes) -> None:
    """Replace a file, or make it, with its seal; raises OSError."""
    clear_way(path)
    write_unsynced(path, content + _seal_of(path, content))


def sealed_content(path: Path) -> bytes | None:
    """Return what `write_sealed` was given; None if the file is damaged. Raises OSError."""
    with open_regular(path) as file:
        whole = file.read()
    content, seal = whole[:-SEAL_BYTES], whole[-SEAL_BYTES:]
    return content if seal == _seal_of(path, content) else None


def append_seal(scratch: Path, path: Path) -> None:
    """Seal a file that is complete and about to be renamed to `path`; raises OSError."""
    with scratch.open("r+b") as file:
        seal = _sealing_of(file, path, os.fstat(file.fileno()).st_size).seal()
        file.seek(0, os.SEEK_END)
        file.write(seal)


def has_seal(path: Path) -> bool:
    """Return whether a file is as `append_seal` left it; reads all of it. Raises OSError."""
    with open_regular(path) as file:
        size_in_bytes = os.fstat(file.fileno()).st_size - SEAL_BYTES
        if size_in_bytes < 0:
            return False
        sealing = _sealing_of(file, path, size_in_bytes)
        return file.read() == sealing.seal()


def write_seal_beside(path: Path, sealing: Sealing) -> None:
    """Keep the seal of a content that is about to be under its name; raises OSError."""
    clear_way(_beside(path))
    write_unsynced(_beside(path), sealing.seal())


def has_seal_beside(path: Path) -> bool:
    """Return whether a file is the content that was sealed; reads all of it. Raises OSError."""
    with open_regular(path) as file, open_regular(_beside(path)) as beside:
        size_in_bytes = os.fstat(file.fileno()).st_size
        return beside.read() == _sealing_of(file, path, size_in_bytes).seal()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.seal")


def _seal_of(path: Path, content: bytes) -> bytes:
    sealing = Sealing(path)
    sealing.add(content)
    return sealing.seal()


def _sealing_of(file: IO[bytes], path: Path, size_in_bytes: int) -> Sealing:
    """Return the sealing of so many bytes of a file from its beginning on."""
    sealing = Sealing(path)
    left = size_in_bytes
    while left and (piece := file.read(min(left, _PIECE_BYTES))):
        sealing.add(piece)
        left -= len(piece)
    return sealing
