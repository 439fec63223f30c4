"""Progress of a task over many items: the one form in which hashing and uploads report it.

Its fields are those of a mount's answers as well. Bytes go back when an item has to be
sent again. Reports come from the threads of the task, one at a time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

# The rate is that of so long: shorter, it jumps with each item; longer, it tells of the past.
WINDOW_S = 15.0
_STEP_S = 0.5  # between two samples
_FIRST_S = 1.0  # after which there is a rate


class Progress(NamedTuple):
    bytes_done: int
    bytes_total: int
    items_done: int
    items_total: int


OnProgress: TypeAlias = Callable[[Progress], None]


def unwatched(progress: Progress) -> None:
    """Ignore the progress; for tasks that are not watched."""


class Meter:
    """The rate at which a number grows, of bytes or of anything. Noted by one thread at a time."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._samples: deque[tuple[float, int]] = deque()
        self._number = 0
        self._noted_s = 0.0

    def note(self, number: int) -> None:
        """Take the number as of now; it may be less than before."""
        now_s = self._clock_s()
        self._number, self._noted_s = number, now_s
        if not self._samples or now_s - self._samples[-1][0] >= _STEP_S:
            self._samples.append((now_s, number))
        while now_s - self._samples[0][0] > WINDOW_S and len(self._samples) > 1:
            self._samples.popleft()

    def per_s(self) -> float | None:
        """Return the rate of the last seconds; None until it is known."""
        if not self._samples:
            return None
        now_s = self._clock_s()
        if now_s - self._noted_s > WINDOW_S:  # it stands still, or is over
            return 0.0
        begun_s, begun = self._samples[0]
        length_s = now_s - begun_s
        if length_s < _FIRST_S:
            return None
        return max((self._number - begun) / length_s, 0.0)

    def left_s(self, number: int) -> float | None:
        """Return how long so much more will take; None if nothing says so."""
        per_s = self.per_s()
        return number / per_s if per_s else None


class Doing(NamedTuple):
    """What a task does just now."""

    phase: str  # hashing, uploading or registering
    progress: Progress
    bytes_per_s: float | None
    left_s: float | None  # until the end of the phase


class Phases:
    """Follows a task from phase to phase; told by one thread at a time, asked by any."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._now: tuple[str, Progress, Meter] | None = None

    def note(self, phase: str, progress: Progress) -> None:
        """Take what there is to say of a phase, which may be the next one."""
        now = self._now
        meter = now[2] if now is not None and now[0] == phase else Meter(self._clock_s)
        meter.note(progress.bytes_done)
        self._now = (phase, progress, meter)

    def doing(self) -> Doing | None:
        """Return what goes on; None before the first phase."""
        if self._now is None:
            return None
        phase, progress, meter = self._now
        left_bytes = max(progress.bytes_total - progress.bytes_done, 0)
        return Doing(phase, progress, meter.per_s(), meter.left_s(left_bytes))
