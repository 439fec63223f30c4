"""The items that will probably be read next, by the order in which items were read.

Used by the prefetch, and by a mount's channel, which asks for their contents. `tar`, `cp -r` and
rsync read a directory's items in the order of its listing, which is that of the rows of the
manifest's index; `ls -r` and tools that take a list from its end read backwards; several threads
read in a slightly other order, or at several places. A program that has read a quarter of a
neighbourhood in no order will want the other items, too. Pure policy; for one thread at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

FIRST_WINDOW = 8
MAX_WINDOW = 256  # items; at 100 ms and 32 connections, 0.8 s of work
# A directory's own row, and items read in a slightly other order.
SLACK = 4
MAX_STREAMS = 16  # of one dataset: directories are read within each other, and by threads
MAX_DATASETS = 64
NEIGHBOURHOOD = 64  # places
# Places of a neighbourhood, read in no order; so at most four times as many are fetched.
DENSE = NEIGHBOURHOOD // 4


class Stretch(NamedTuple):
    """Places [first, first+length), the last of them wanted first if `descending`."""

    first: int
    length: int
    descending: bool = False


class _Stream:
    """One reader's way through the items.

    Places are counted in the direction of reading: a reader that goes downwards has
    negative ones.
    """

    def __init__(self, place: int) -> None:
        self.direction = 0  # 1 or -1 when it is known
        self.next = place + 1
        self.asked = place + 1  # places before this one were asked for
        self.window = 0

    def is_near(self, place: int) -> bool:
        """Return True if a reader that went this way may read that place now."""
        if not self.direction:
            return abs(place - (self.next - 1)) <= SLACK
        at = place * self.direction
        return self.next - SLACK <= at < max(self.asked, self.next + SLACK)

    def advance(self, place: int) -> Stretch | None:
        """Return the stretch to fetch ahead now that a near place is read, or None."""
        if not self.direction:
            started = self.next - 1
            if place == started:
                return None
            self.direction = 1 if place > started else -1
            self.next = self.asked = started * self.direction + 1
        at = place * self.direction
        if at < self.next:
            return None
        self.next = at + 1
        start = max(self.asked, self.next)
        # Half a window at a time, so that requests for URLs and the cache's are few.
        if self.window and start - self.next > self.window // 2:
            return None
        self.window = min(MAX_WINDOW, max(FIRST_WINDOW, self.window * 2))
        self.asked = self.next + self.window
        return self._stretch(start, self.asked)

    def limit(self, wanted: Stretch, length: int) -> None:
        """Note that of what was asked for last only `length` places are fetched for now."""
        self.asked = max(self.next, self.asked - wanted.length + length)
        self.window = max(1, self.asked - self.next)

    def asked_last_for(self, wanted: Stretch) -> bool:
        if wanted.descending:
            return self.direction < 0 and self.asked == 1 - wanted.first
        return self.direction > 0 and self.asked == wanted.first + wanted.length

    def _stretch(self, start: int, end: int) -> Stretch | None:
        if self.direction > 0:
            return Stretch(start, end - start)
        # Place 0 is the lowest there is.
        end = self.asked = min(end, 1)
        return Stretch(1 - end, end - start, descending=True) if end > start else None


class _Reading:
    """The places of a dataset that were read."""

    def __init__(self) -> None:
        self.streams: list[_Stream] = []
        self.read: dict[int, int] = {}  # by neighbourhood, a bit for each of its places

    def near(self, place: int) -> _Stream | None:
        """Return the stream that a place is near to, which is the last one used from now on."""
        for stream in reversed(self.streams):
            if stream.is_near(place):
                self.streams.remove(stream)
                self.streams.append(stream)
                return stream
        return None


class ItemOrder:
    """The places of items that were read, by dataset."""

    def __init__(self) -> None:
        self._datasets: OrderedDict[Hashable, _Reading] = OrderedDict()

    def read(self, dataset: Hashable, place: int) -> Stretch | None:
        """Return the stretch to fetch ahead now that the item at `place` is read, or None."""
        reading = self._datasets.setdefault(dataset, _Reading())
        self._datasets.move_to_end(dataset)
        if len(self._datasets) > MAX_DATASETS:
            self._datasets.popitem(last=False)
        stream = reading.near(place)
        if stream is not None:
            return stream.advance(place)
        reading.streams.append(_Stream(place))
        del reading.streams[:-MAX_STREAMS]
        return _dense(reading.read, place)

    def goes_on(self, dataset: Hashable, place: int) -> Stretch | None:
        """As `read`, of an item that may not be read: it begins nothing, nor gives a direction."""
        reading = self._datasets.get(dataset)
        stream = None if reading is None else reading.near(place)
        return stream.advance(place) if stream is not None and stream.direction else None

    def forget(self, dataset: Hashable) -> None:
        """Begin anew with a dataset."""
        self._datasets.pop(dataset, None)

    def limit(self, dataset: Hashable, wanted: Stretch, length: int) -> None:
        """Note that only the first `length` places of a stretch are fetched for now."""
        reading = self._datasets.get(dataset)
        for stream in reading.streams if reading is not None else ():
            if stream.asked_last_for(wanted):
                stream.limit(wanted, length)


def _dense(read: dict[int, int], place: int) -> Stretch | None:
    """Return the neighbourhood of a place when enough of it was read."""
    number, index = divmod(place, NEIGHBOURHOOD)
    before = read.get(number, 0)
    now = read[number] = before | 1 << index
    if now != before and now.bit_count() == DENSE:
        return Stretch(number * NEIGHBOURHOOD, NEIGHBOURHOOD)
    return None
