"""Many ranges of bytes of many files at once: those that come next are under way meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from dserverfs.base.errors import DserverfsError
from dserverfs.python.item_file import ItemFile

# Fetched ahead of the range that is waited for. They stay in memory until they are read.
AHEAD_BYTES = 48 * 1024 * 1024
AHEAD_RANGES = 256

# A file or why there is none, the beginning, and the end.
Range = tuple[Any, "int | None", "int | None"]


class _Begun(NamedTuple):
    file: Any
    start: int
    size: int
    blocks: object  # held, so that they stay in memory


def read_ranges(ranges: Iterable[Range], *, raises: bool) -> Iterator[bytes | Exception]:
    """Yield the bytes of each range, in their order, or what kept them from being read.

    A beginning or an end of None is the file's; a negative one counts from its end. With
    `raises` the first error is raised.
    """
    begun: deque[_Begun] = deque()
    ahead = 0
    for file, start, end in ranges:
        begun.append(_begin(file, start, end))
        ahead += begun[-1].size
        while ahead > AHEAD_BYTES or len(begun) > AHEAD_RANGES:
            ahead -= begun[0].size
            yield _finish(begun.popleft(), raises)
    while begun:
        yield _finish(begun.popleft(), raises)


def _begin(file: Any, start: int | None, end: int | None) -> _Begun:
    if isinstance(file, Exception):
        return _Begun(file, 0, 0, None)
    length = file.seek(0, 2)
    begin, stop, _ = slice(start, end).indices(length)
    size = max(0, stop - begin)
    blocks = None
    if isinstance(file, ItemFile) and size:
        try:
            blocks = file.item.request_blocks(begin, min(size, AHEAD_BYTES))
        except (OSError, DserverfsError):
            pass  # reading it tells
    return _Begun(file, begin, size, blocks)


def _finish(begun: _Begun, raises: bool) -> bytes | Exception:
    try:
        if isinstance(begun.file, Exception):
            raise begun.file
        begun.file.seek(begun.start)
        content: bytes = begun.file.read(begun.size)
        return content
    except OSError as error:
        if raises:
            raise
        return error
