"""An item as an open binary file: seekable, read-only, for whatever reads one.

Each read is answered from memory, the cache or the store, verified as a mount does it, and has
all the bytes that it asked for, but at the end of the item.
"""

from __future__ import annotations

import io
import os
import threading
from typing import Any

from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.model import Dataset
from dserverfs.python.items import content_at
from dserverfs.python.os_errors import os_errors
from dserverfs.python.sessions import Access, session_of
from dserverfs.reading.open_item import OpenItem

# At once: with the read-ahead behind it a long read is as fast as many short ones.
PIECE_BYTES = 4 * BLOCK_SIZE
LINE_BYTES = 8 * 1024  # in which a line is looked for


class _Scratch(threading.local):
    """Room for a block, of each thread."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(BLOCK_SIZE))


_scratch = _Scratch()


class ItemFile(io.RawIOBase):
    """One item. It can be pickled, and used after a fork: both open the item anew.

    Reading raises OSError. Several threads may use `read_at`; the position is for one.
    """

    def __init__(self, access: Access, dataset: Dataset, relpath: str, name: str) -> None:
        """`name` is how messages and programs call it; raises FileNotFoundError."""
        super().__init__()
        self.name = name
        self.mode = "rb"
        self._access = access
        self._dataset = dataset
        self._relpath = relpath
        self._position = 0
        self._opening = threading.Lock()
        self._process: int | None = None  # that the item is open in
        self._item = self._opened()
        self._process = os.getpid()
        self.size = self._item.content.size_in_bytes

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self._access, self._dataset, self._relpath, self.name)
        return _at, (arguments, self._position, self.closed)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, buffer: object, /) -> int:
        raise io.UnsupportedOperation(f"{self.name}: is of a frozen dataset")

    def tell(self) -> int:
        self._require_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._require_open()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}.get(whence)
        if base is None:
            raise ValueError(f"whence {whence}: must be 0, 1 or 2")
        if base + offset < 0:
            raise ValueError(f"{self.name}: there is nothing before its beginning")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        self._require_open()
        end = self.size if size is None or size < 0 else min(self._position + size, self.size)
        pieces = []
        while self._position < end:
            pieces.append(self.read_at(self._position, min(PIECE_BYTES, end - self._position)))
            self._position += len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read1(self, size: int | None = -1) -> bytes:
        return self.read(size)

    def readall(self) -> bytes:
        return self.read()

    def readline(self, size: int | None = -1) -> bytes:
        self._require_open()
        end = self.size if size is None or size < 0 else min(self._position + size, self.size)
        pieces = []
        while self._position < end:
            piece = self.read_at(self._position, min(LINE_BYTES, end - self._position))
            length = piece.find(b"\n") + 1 or len(piece)
            pieces.append(piece[:length])
            self._position += length
            if pieces[-1].endswith(b"\n"):
                break
        return b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        content = self.read(len(view))
        view[: len(content)] = content
        return len(content)

    def read_at(self, offset: int, size: int) -> bytes:
        """Return exactly min(size, end - offset) bytes, without moving the position; blocks."""
        item = self.item
        with os_errors(self.name):
            found = item.read_nowait(offset, size, _scratch.buffer)
            content = item.read(offset, size) if found is None else bytes(found)
        if self._traced is not None:
            trace, noted = self._traced
            trace.read(noted, offset, len(content))
        return content

    @property
    def item(self) -> OpenItem:
        """The open item of this process."""
        if self._process != os.getpid():
            with self._opening:
                if self._process != os.getpid():
                    self._item = self._opened()
                    self._process = os.getpid()  # last: others look at it without the lock
        return self._item

    def close(self) -> None:
        if not self.closed and self._process == os.getpid():
            self._item.close()
            if self._traced is not None:
                trace, noted = self._traced
                trace.closed(noted)
        super().close()

    def _opened(self) -> OpenItem:
        with os_errors(self.name):
            session = session_of(self._access)
            content = content_at(session, self._dataset, self._relpath)
            item = OpenItem(session.client.reader, content)
        trace = session.client.trace
        self._traced = None if trace is None else (trace, trace.opened(content))
        return item

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


def _at(arguments: tuple[Access, Dataset, str, str], position: int, is_closed: bool) -> ItemFile:
    """Return a copy of a file, in another process as a rule."""
    file = ItemFile(*arguments)
    file._position = position
    if is_closed:
        file.close()
    return file
