"""A guess if the next write to the local disk is quick, so that no thread need wait for it.

Used by the changes of staged datasets. With a hop to a thread for each write of 128 KiB,
which is what `cp` makes, 512 MiB take 2.7 s, and without 1.3; but when the kernel makes
writers wait for the disk, 0.2 s at a time, other requests must not wait with them.
Thread-safe: a guess that comes late costs a hop, or one wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from dserverfs.base.local_files import write_all

SLOW_S = 0.02  # 1 MiB takes 0.3 ms, and some more where the processors are busy
# Longer than from one wait of a throttled writer to its next.
WARY_S = 1.0


class WriteLatency:
    """The latency of the last writes."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._wary_until_s = clock_s()

    def is_quick(self) -> bool:
        """Return whether a write will hardly wait: none did for a while."""
        return self._clock_s() >= self._wary_until_s

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of `data`, and note how long that took; blocks, raises OSError."""
        start_s = self._clock_s()
        try:
            write_all(fd, data, offset)
        finally:
            end_s = self._clock_s()
            if end_s - start_s > SLOW_S:
                self._wary_until_s = end_s + WARY_S
