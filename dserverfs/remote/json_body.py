"""The body of a request that is one JSON object with many items, made while it is sent.

Used by the routes. As text a million items are 150 MB; here they are made some at a
time, twice: to know the length before, and to be sent. Not thread-safe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sized
from itertools import islice
from typing import Any, Protocol

from dserverfs.base.errors import UsageError

_TOGETHER = 500  # items that are made at once


class Items(Sized, Protocol):
    """Items that can be iterated several times, each time the same."""

    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...


class JsonBody:
    """An object with `items` as its last member; of a length that is known, as requests asks."""

    def __init__(self, head: Mapping[str, Any], items: Items) -> None:
        """`head` is the rest of it. Raises UsageError for a number that JSON cannot hold."""
        self._head = _text(head)[:-1]
        self._items = items
        self._length = sum(map(len, self._pieces()))
        self.rewind()

    def rewind(self) -> None:
        """Begin from the start, for another request."""
        self._left = self._pieces()
        self._held = b""

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces()

    def read(self, count: int = -1) -> bytes:
        """Return the next bytes, at most `count`; none at the end."""
        while count < 0 or len(self._held) < count:
            piece = next(self._left, b"")
            if not piece:
                break
            self._held += piece
        count = len(self._held) if count < 0 else count
        piece, self._held = self._held[:count], self._held[count:]
        return piece

    def _pieces(self) -> Iterator[bytes]:
        yield f'{self._head}{", " if len(self._head) > 1 else ""}"items": ['.encode()
        items = iter(self._items)
        separator = ""
        while some := list(islice(items, _TOGETHER)):
            yield f"{separator}{_text(some)[1:-1]}".encode()
            separator = ", "
        yield b"]}"


def _text(value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise UsageError(
            f"what is to be sent has a number that JSON cannot hold: {error}"
        ) from error
