"""Work ahead of a caller that asks for one result after the other, within bounds.

dtoolcore asks for one item after the other and waits for each. A caller that asks for
two in order is likely to ask for the rest: they are worked on in parallel from then
on. A single request starts no other work. Thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Bounds(NamedTuple):
    """Limits of the work under way."""

    threads: int
    keys: int
    cost: int  # of all together, unless one alone costs more


class Ahead(Generic[K, T]):
    """Results of `work` for `keys`, computed in their order by several threads."""

    def __init__(
        self,
        keys: Sequence[K],
        work: Callable[[K], T],
        cost: Callable[[K], int],
        bounds: Bounds,
    ) -> None:
        self._keys = keys
        self._places = {key: place for place, key in enumerate(keys)}
        self._work = work
        self._cost = cost
        self._bounds = bounds
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: dict[K, Future[T]] = {}  # in the order of their places
        self._cost_under_way = 0
        self._next = 0  # the first place that nothing was begun for
        self._last = -1  # the place asked for last

    def start(self) -> None:
        """Begin: all keys will be asked for, from the first."""
        with self._lock:
            self._forget_before_locked(len(self._keys))
            self._next, self._last = 0, -1
            self._go_on_locked()

    def get(self, key: K) -> T:
        """Return the result for `key`, which is forgotten here; raises what its work raises."""
        with self._lock:
            place = self._places.get(key)
            future = None if place is None else self._take_locked(key, place)
        return self._work(key) if future is None else future.result()

    def close(self) -> None:
        """Begin nothing more."""
        with self._lock:
            self._forget_before_locked(len(self._keys))
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _take_locked(self, key: K, place: int) -> Future[T] | None:
        last, self._last = self._last, place
        if place == last:
            return None
        if not last < place <= self._next or (last < 0 and not self._under_way):
            self._forget_before_locked(len(self._keys))
            self._next = place + 1
            return None
        self._forget_before_locked(place)
        future = self._under_way.pop(key, None)
        if future is None:
            future = self._begin_locked(key)
            self._next = place + 1
        else:
            self._cost_under_way -= self._cost(key)
        self._go_on_locked()
        return future

    def _go_on_locked(self) -> None:
        while self._next < len(self._keys) and len(self._under_way) < self._bounds.keys:
            key = self._keys[self._next]
            cost = self._cost(key)
            if self._under_way and self._cost_under_way + cost > self._bounds.cost:
                return
            self._under_way[key] = self._begin_locked(key)
            self._cost_under_way += cost
            self._next += 1

    def _begin_locked(self, key: K) -> Future[T]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._bounds.threads, thread_name_prefix="ahead")
        return self._pool.submit(self._work, key)

    def _forget_before_locked(self, place: int) -> None:
        """Drop the work for places before `place`: its results are not wanted."""
        for key in list(self._under_way):
            if self._places[key] >= place:
                break
            self._under_way.pop(key).cancel()
            self._cost_under_way -= self._cost(key)
