"""Which items will be read next, judged by the order in which items were read.

Used by the prefetch. `tar`, `cp -r` and rsync read a directory's items in the
order in which it lists them, which is that of the rows of the manifest's index.
Pure policy; for one thread at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

FIRST_WINDOW = 16
MAX_WINDOW = 256  # items; at 100 ms and 32 connections, 0.8 s of work
# A directory's own row, and items read in a slightly other order.
SLACK = 4
MAX_STREAMS = 8  # of one dataset: directories are read within each other
MAX_DATASETS = 64


class Stretch(NamedTuple):
    """Places [first, first+length)."""

    first: int
    length: int


class _Stream:
    """One reader's way through the items."""

    def __init__(self, place: int) -> None:
        self.next = place + 1
        self.asked = place + 1  # places before this one were asked for
        self.window = 0


class ItemOrder:
    """The places of items that were read, by dataset."""

    def __init__(self) -> None:
        self._streams: OrderedDict[Hashable, list[_Stream]] = OrderedDict()

    def read(self, dataset: Hashable, place: int) -> Stretch | None:
        """Return what to fetch ahead now that the item at `place` is read, if anything."""
        streams = self._streams.setdefault(dataset, [])
        self._streams.move_to_end(dataset)
        if len(self._streams) > MAX_DATASETS:
            self._streams.popitem(last=False)
        for stream in streams:
            if stream.next - SLACK <= place < max(stream.asked, stream.next + SLACK):
                return _advance(stream, place)
        streams.append(_Stream(place))
        del streams[:-MAX_STREAMS]
        return None

    def limit(self, dataset: Hashable, wanted: Stretch, length: int) -> None:
        """Note that only the first `length` places of a stretch are fetched for now."""
        end = wanted.first + wanted.length
        for stream in self._streams.get(dataset, ()):
            if stream.asked == end:
                stream.asked = max(stream.next, wanted.first + length)
                stream.window = max(1, stream.asked - stream.next)


def _advance(stream: _Stream, place: int) -> Stretch | None:
    if place < stream.next:
        return None
    stream.next = place + 1
    start = max(stream.asked, stream.next)
    # Half a window at a time, so that requests for URLs and the cache's are few.
    if stream.window and start - stream.next > stream.window // 2:
        return None
    stream.window = min(MAX_WINDOW, max(FIRST_WINDOW, stream.window * 2))
    stream.asked = stream.next + stream.window
    return Stretch(start, stream.asked - start)
