"""How many requests of the kernel there were, how long each took, and what was read and written.

Counted in the event loop: 0.3 us a request. May be read in other threads meanwhile, whose
numbers may then lack the request that is being counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable

from dserverfs.mount.channel.messages import NOTHING, Counts

# A read of a hot block takes 20 us, one from the store some 10 ms; the longest wait is 150 s.
BOUNDS_S = (0.0001, 0.0005, 0.002, 0.01, 0.05, 0.2, 1.0, 5.0, 30.0)


class Durations:
    """Those of one kind of request."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)  # up to each bound, and beyond the last one
        self.sum_s = 0.0


class RequestCounts:
    """Those of one mount."""

    def __init__(self, of_channel: Callable[[], Counts] = lambda: NOTHING) -> None:
        """`of_channel` gives what the channel has answered, which is not among the durations."""
        self.of_channel = of_channel
        self.durations: dict[str, Durations] = {}  # by the request
        self.errors: Counter[tuple[str, int]] = Counter()  # by the request and the errno
        self.read_bytes = self.written_bytes = 0
        self.reads_at_once = self.reads_that_waited = 0  # of items

    def done(self, request: str, duration_s: float) -> None:
        durations = self.durations.get(request)
        if durations is None:
            durations = self.durations[request] = Durations()
        durations.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        durations.sum_s += duration_s
