"""Items out of a manifest's JSON, or another answer's, as it arrives, some thousand at a time.

Used by the indexing, by uploads and by the server's pages. `json.loads` of a manifest of a
million items takes 785 MB and starts when the last byte is there; here each part is parsed by
it alone. A part ends where an item ends and another begins. That pattern cannot occur
inside a JSON text; deeper down it leaves a part that does not parse, which is then tried
again with the bytes that follow. Pure; for one thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from dserverfs.base.errors import ProtocolError

PART_BYTES = 1024 * 1024
# In so much of a manifest an item ends, or its identifiers are none. In memory it is 25 times that.
MAX_PART_BYTES = 16 * 1024 * 1024
# An end that is not found so far before the end of a part is not looked for.
_SEARCHED_BYTES = 64 * 1024
_START = re.compile(rb'"items"\s*:\s*\{')
_END_OF_ITEM = re.compile(rb'\}\s*(,)\s*"[0-9a-f]{40}"\s*:\s*\{')

Items = dict[str, Any]


class ItemStream:
    """One JSON object with `items`, by identifier: `feed` what arrives, then `close`."""

    def __init__(
        self, what: str, inside: Sequence[str] = (), *, more_beside_bytes: int = 0
    ) -> None:
        """`what` is for messages; `inside` are the members in which `items` is.

        `more_beside_bytes` is how much more than usual there may be beside the items.
        """
        self._what = what
        self._inside = inside
        self._more_bytes = more_beside_bytes
        opening = "".join(f'"{name}":{{' for name in (*inside, "items"))
        self._opening = f"{{{opening}".encode()
        self._closing = b"}" * (len(inside) + 2)
        self._rest = bytearray()
        self._wanted_bytes = PART_BYTES
        self._started = False
        self.beside: dict[str, Any] = {}  # the other members at the top, as far as they came
        self.beside_items: dict[str, Any] = {}  # and those where `items` is

    def feed(self, piece: bytes) -> Items:
        """Return the items that this piece has completed, by identifier; mostly none.

        Raises ProtocolError when so much has come that there should have been one.
        """
        self._rest += piece
        if len(self._rest) < self._wanted_bytes:
            return {}
        items = self._take_items()
        if len(self._rest) > MAX_PART_BYTES + self._more_bytes:
            raise ProtocolError(
                f"{self._what} cannot be read: there is no item in {MAX_PART_BYTES} bytes of it"
            )
        # Twice as much next time if it did not parse: no byte is parsed often.
        self._wanted_bytes = max(PART_BYTES, 2 * len(self._rest))
        return items

    def close(self) -> Items:
        """Return the last items; raises ProtocolError if it was no such object."""
        try:
            value = json.loads(self._opening + self._rest if self._started else self._rest)
            items = self._learn(value)["items"]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ProtocolError(f"{self._what} cannot be read: {error!r}") from error
        if not isinstance(items, dict):
            raise ProtocolError(f"{self._what} cannot be read: its items are no object")
        return items

    def _take_items(self) -> Items:
        if not self._started:
            self._start()
        end = self._end_of_last_item()
        if not self._started or end is None:
            return {}
        try:
            items: Items = json.loads(b"{" + self._rest[:end] + b"}")
        except (ValueError, RecursionError):
            return {}
        del self._rest[: end + 1]  # with its comma
        return items

    def _start(self) -> None:
        """Take the members before the items once all of them have come."""
        start = _START.search(self._rest)
        if start is None:
            return
        try:
            head = json.loads(self._rest[: start.end()] + self._closing)
            if self._innermost(head).get("items") != {}:
                return
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return
        self._learn(head)
        del self._rest[: start.end()]
        self._started = True

    def _learn(self, value: dict[str, Any]) -> dict[str, Any]:
        """Note the members beside the items; return the object that the items are in."""
        inner = self._innermost(value)
        self.beside |= {name: each for name, each in value.items() if each is not inner}
        self.beside_items |= {name: each for name, each in inner.items() if name != "items"}
        return inner

    def _innermost(self, value: dict[str, Any]) -> dict[str, Any]:
        for name in self._inside:
            value = value[name]
        return value

    def _end_of_last_item(self) -> int | None:
        start = max(0, len(self._rest) - _SEARCHED_BYTES)
        commas = [found.start(1) for found in _END_OF_ITEM.finditer(self._rest, start)]
        return commas[-1] if commas else None
