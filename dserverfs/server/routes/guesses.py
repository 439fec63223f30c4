"""Limits of guessing passwords: wrong ones are counted, right ones are not.

    (user, address)  10 in 10 minutes
    address          100, for it can try one password with many names
    user             100, for there can be many addresses

Beyond a limit a guess is refused without a look at the password. Counted in this process and
forgotten when it ends; of at most 10,000 names and addresses, the last ones seen.
Safe to share between threads.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable

WINDOW_S = 600.0
MAX_OF_PAIR = 10
MAX_OF_ONE = 100
_MAX_KEPT = 10_000


class Guesses:
    """The wrong passwords of the last ten minutes."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        # When each was wrong, the last ones; by whom, the last one seen at the end.
        self._wrong: OrderedDict[Hashable, deque[float]] = OrderedDict()

    def begin(self, username: str, address: str) -> float:
        """Return how long to refuse the guess; 0 if it is made, which counts as wrong for now."""
        now = self._clock_s()
        keys = _keys(username, address)
        with self._lock:
            wait_s = max(self._wait_s_locked(key, limit, now) for key, limit in keys)
            if wait_s == 0:
                for key, limit in keys:
                    self._wrong.setdefault(key, deque(maxlen=limit)).append(now)
                    self._wrong.move_to_end(key)
                while len(self._wrong) > _MAX_KEPT:
                    self._wrong.popitem(last=False)
        return wait_s

    def was_right(self, username: str, address: str) -> None:
        """Do not count a guess that was begun."""
        with self._lock:
            for key, _ in _keys(username, address):
                if wrong := self._wrong.get(key):
                    wrong.pop()
                    if not wrong:
                        del self._wrong[key]

    def __len__(self) -> int:
        """Return for how many names, addresses and pairs of them wrong guesses are kept."""
        with self._lock:
            return len(self._wrong)

    def _wait_s_locked(self, key: Hashable, limit: int, now: float) -> float:
        wrong = self._wrong.get(key)
        # The deque has `limit` at most: full, the first of it is the one to wait for.
        if wrong is None or len(wrong) < limit:
            return 0.0
        return max(0.0, wrong[0] + WINDOW_S - now)


def _keys(username: str, address: str) -> tuple[tuple[Hashable, int], ...]:
    return (
        ((username, address), MAX_OF_PAIR),
        (("address", address), MAX_OF_ONE),
        (("user", username), MAX_OF_ONE),
    )
