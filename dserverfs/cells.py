"""A value that is loaded on demand, kept, and refreshed without making anybody wait.

The catalogue is made of these. Reading never blocks: a value that is not there
raises NotLoaded, which says what to call, in a thread, before trying again.
That keeps the tree free of I/O and the event loop free of waiting. Thread-safe.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Generic, Protocol, TypeVar

from dserverfs.clock import boottime_s
from dserverfs.errors import DserverfsError, NotAuthenticated, NotFound, PermissionDenied

logger = logging.getLogger(__name__)

T = TypeVar("T")

FOR_EVER = float("inf")
RETRY_S = 5.0  # between refreshes that fail


class Load(Protocol):
    """Something that is being loaded, whoever waits for it."""

    future: Future[None]

    def progress(self) -> float:
        """Return what differs from the last time if the load has got on since."""


class NotLoaded(Exception):
    """What was asked for has to be loaded first: call `load` (it blocks), then ask again.

    What may take long has `begin` in addition: it returns at once, with a load that
    goes on by itself and is shared by all who ask for the same.
    """

    def __init__(
        self, load: Callable[[], None] | None = None, *, begin: Callable[[], Load] | None = None
    ) -> None:
        super().__init__("not loaded yet")
        self.begin = begin
        self._load = load

    def load(self) -> None:
        """Load it; raises what loading raises."""
        if self._load is not None:
            self._load()
        elif self.begin is not None:
            self.begin().future.result()


class Cell(Generic[T]):
    """One value, its age, and how to fetch it."""

    def __init__(
        self,
        fetch: Callable[[], T],
        max_age_s: float,
        background: Executor,
        clock_s: Callable[[], float] = boottime_s,
    ) -> None:
        self._fetch = fetch
        self._max_age_s = max_age_s
        self._background = background
        self._clock_s = clock_s
        self._lock = threading.Lock()  # of the fields below; held for moments
        self._loading = threading.Lock()  # held while fetching, so that one thread fetches
        self._values: list[T] = []  # empty or one; T may be None
        self._fresh_until_s = 0.0
        self._asked_s = 0.0  # when the last value was asked for
        self._refreshing = False

    def get(self) -> T:
        """Return the value at once; if it is old, a refresh is started. Raises NotLoaded."""
        with self._lock:
            if not self._values:
                raise NotLoaded(self.load)
            value = self._values[0]
            due = not self._refreshing and self._clock_s() >= self._fresh_until_s
            self._refreshing = self._refreshing or due
        if due:
            try:
                self._background.submit(self._refresh)
            except RuntimeError:  # shut down: the daemon is ending
                pass
        return value

    def load(self) -> None:
        """Fetch the value unless another thread just did; blocks. Raises what fetching raises."""
        with self._loading:
            with self._lock:
                if self._values:
                    return
            self._fetch_anew()

    def renewed(self) -> T:
        """Return a value that was asked for after now; blocks. Raises what fetching raises."""
        wanted_s = self._clock_s()
        with self._loading:
            with self._lock:
                if self._values and self._asked_s >= wanted_s:  # by who had the lock before us
                    return self._values[0]
            return self._fetch_anew()

    def keep(self, value: T) -> None:
        """Have what was fetched in another way for the value."""
        with self._lock:
            self._values = [value]
            self._fresh_until_s = self._clock_s() + self._max_age_s

    def replace(self, change: Callable[[T], T]) -> None:
        """Change the value, if there is one, without fetching; it gets no fresher by that."""
        with self._lock:
            if self._values:
                self._values = [change(self._values[0])]

    def expire(self) -> None:
        """Refresh the value the next time it is asked for."""
        with self._lock:
            self._fresh_until_s = 0.0

    def forget(self) -> None:
        """Have the value fetched before it is told again."""
        with self._lock:
            self._values = []

    def _fetch_anew(self) -> T:
        asked_s = self._clock_s()
        value = self._fetch()
        self.keep(value)
        with self._lock:
            self._asked_s = asked_s
        return value

    def _refresh(self) -> None:
        """Fetch anew; keep the old value if the server is away, drop it if it says no."""
        try:
            with self._loading:
                self._fetch_anew()
        except (NotFound, PermissionDenied) as error:
            with self._lock:
                self._fresh_until_s = self._clock_s() + RETRY_S
                if not isinstance(error, NotAuthenticated):  # an expired token takes nothing away
                    self._values = []
            logger.info("no longer available: %s", error)
        except DserverfsError as error:
            with self._lock:
                self._fresh_until_s = self._clock_s() + RETRY_S
            logger.info("kept as it was, it cannot be refreshed: %s", error)
        except BaseException:
            logger.exception("a fault of ours while refreshing")
            raise
        finally:
            with self._lock:
                self._refreshing = False


def loaded(ask: Callable[[], T]) -> T:
    """Return what `ask` returns, loading what it lacks; blocks."""
    while True:
        try:
            return ask()
        except NotLoaded as missing:
            missing.load()
