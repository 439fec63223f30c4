"""Whether a server answers: since when it does not, and how long it is worth waiting for.

Told by the transport of every request. A server that has not answered for a while is asked
once by each request, and not for long, so that programs get their error soon; now and then
one request has all its time, because a server may be slow and not away. Thread-safe.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dserverfs.base.errors import Busy, DserverfsError, Unreachable
from dserverfs.base.retry import Deadline

# A restart takes less; until then each request is tried again by the rule of `retry`.
LASTING_AFTER_S = 5.0
SHORT_S = 2.0  # a connection may say nothing for so long then
LONG_EVERY_S = 30.0  # guess


class Away(NamedTuple):
    """A server that does not answer."""

    since_s: float  # since 1970: the first request without an answer
    reason: str  # of the last one


class Contact:
    """The contact with one server."""

    def __init__(
        self,
        clock_s: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._clock_s = clock_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._away: Away | None = None
        self._lasting_from_s = 0.0
        self._long_at_s = 0.0
        self._hurried = threading.local()

    @property
    def away(self) -> Away | None:
        """Since when the server has not answered, if it did not the last time."""
        return self._away

    def answered(self) -> None:
        """Note an answer, whatever it says."""
        self._away = None

    def failed(self, error: DserverfsError) -> None:
        """Note a request without an answer; its error may then be said to be lasting."""
        if not isinstance(error, Unreachable) or isinstance(error, Busy):
            return
        with self._lock:
            now_s = self._clock_s()
            if self._away is None:
                self._lasting_from_s = now_s + LASTING_AFTER_S
                self._long_at_s = now_s + LONG_EVERY_S
                self._away = Away(self._now_s(), str(error))
            else:
                self._away = self._away._replace(reason=str(error))
            error.lasting = now_s >= self._lasting_from_s or self._is_hurried()

    def limit(self, whole: Deadline) -> Deadline:
        """Return the limits of a request: those of its operation, or shorter ones."""
        return whole.of_attempt(min(whole.stall_s, SHORT_S)) if self._is_short() else whole

    @contextlib.contextmanager
    def hurried(self) -> Iterator[None]:
        """Have the requests that this thread makes in the block asked once, and not for long."""
        before, self._hurried.now = self._is_hurried(), True
        try:
            yield
        finally:
            self._hurried.now = before

    def _is_hurried(self) -> bool:
        return getattr(self._hurried, "now", False)

    def _is_short(self) -> bool:
        if self._is_hurried():
            return True
        with self._lock:
            now_s = self._clock_s()
            if self._away is None or now_s < self._lasting_from_s:
                return False
            if now_s >= self._long_at_s:
                self._long_at_s = now_s + LONG_EVERY_S
                return False
            return True
