"""A manifest's items out of its JSON as it arrives, some thousand at a time.

Used by the indexing. `json.loads` of a manifest of a million items takes 785 MB
and starts when the last byte is there; here each part is parsed by it alone. A
part ends where an item ends and another begins: what looks like that inside a
text cannot be JSON, and what looks like that deeper down leaves a part that does
not parse, which is then tried again with what follows. Pure; for one thread.
"""

from __future__ import annotations

import json
import re
from typing import Any

from dserverfs import limits
from dserverfs.errors import ProtocolError

PART_BYTES = 1024 * 1024
# In so much of a manifest an item ends, or its identifiers are none. In memory it is 25 times that.
MAX_PART_BYTES = 16 * 1024 * 1024
# An end that is not found so far before the end of a part is not looked for.
_SEARCHED_BYTES = 64 * 1024
_START = re.compile(rb'"items"\s*:\s*\{')
_END_OF_ITEM = re.compile(rb'\}\s*(,)\s*"[0-9a-f]{40}"\s*:\s*\{')

Items = dict[str, Any]


class ManifestStream:
    """One manifest: `feed` what arrives, then `close`."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._wanted_bytes = PART_BYTES
        self._started = False
        self.hash_function = ""

    def feed(self, piece: bytes) -> Items:
        """Return the items that this piece has completed, by identifier; mostly none.

        Raises ProtocolError when so much has come that there should have been one.
        """
        self._rest += piece
        if len(self._rest) < self._wanted_bytes:
            return {}
        items = self._take_items()
        if len(self._rest) > MAX_PART_BYTES:
            raise ProtocolError(
                f"the manifest cannot be read: there is no item in {MAX_PART_BYTES} bytes of it"
            )
        # Twice as much next time if it did not parse: no byte is parsed often.
        self._wanted_bytes = max(PART_BYTES, 2 * len(self._rest))
        return items

    def close(self) -> Items:
        """Return the last items; raises ProtocolError if it was no manifest."""
        try:
            manifest = json.loads(b'{"items":{' + self._rest if self._started else self._rest)
            items = manifest["items"]
            self._learn(manifest)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ProtocolError(f"the manifest cannot be read: {error!r}") from error
        if not isinstance(items, dict):
            raise ProtocolError("the manifest cannot be read: its items are no object")
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
        """Take what comes before the items, if that is all there is before them."""
        start = _START.search(self._rest)
        if start is None:
            return
        try:
            head = json.loads(self._rest[: start.end()] + b"}}")
        except (ValueError, RecursionError):
            return
        if isinstance(head, dict) and head.get("items") == {}:
            self._learn(head)
            del self._rest[: start.end()]
            self._started = True

    def _learn(self, manifest: dict[str, Any]) -> None:
        name = manifest.get("hash_function", self.hash_function)
        if not limits.is_text(name):
            raise ProtocolError(f"the manifest's hash_function is {limits.quoted(name)}")
        self.hash_function = name

    def _end_of_last_item(self) -> int | None:
        start = max(0, len(self._rest) - _SEARCHED_BYTES)
        commas = [found.start(1) for found in _END_OF_ITEM.finditer(self._rest, start)]
        return commas[-1] if commas else None
