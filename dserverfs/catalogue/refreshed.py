"""A value that is loaded on demand, kept, and refreshed while nobody waits, or hardly.

The catalogue is made of these. Reading never blocks: a value that is not there, or
very old, raises NotLoaded, which says what to call, in a thread, before trying again.
That keeps the tree free of I/O and the event loop free of waiting. Thread-safe.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from typing import Generic, Protocol, TypeVar

from dserverfs.base.clock import boottime_s
from dserverfs.base.errors import DserverfsError, NotAuthenticated, NotFound, PermissionDenied

logger = logging.getLogger(__name__)

T = TypeVar("T")

FOR_EVER = float("inf")
RETRY_S = 5.0  # between refreshes that fail
WAIT_S = 2.0  # for a refresh, before an old value is told all the same
IMPATIENT_S = 60.0  # nobody waits so long after one who waited in vain
RENEW_SHARE = 10  # a value that took 1 s to fetch is not renewed more than every 10 s


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


class Patience:
    """Whether readers wait for refreshes: for a while not, after one kept them waiting in vain.

    One for all values of a server; thread-safe.
    """

    def __init__(self, clock_s: Callable[[], float] = boottime_s) -> None:
        self._clock_s = clock_s
        self._lost_until_s = 0.0

    def is_lost(self) -> bool:
        return self._clock_s() < self._lost_until_s

    def lose(self) -> None:
        self._lost_until_s = self._clock_s() + IMPATIENT_S

    def regain(self) -> None:
        self._lost_until_s = 0.0


class Cell(Generic[T]):
    """One value, its age, and how to fetch it.

    Younger than `max_age_s` it is told at once; older, at once, while it is refreshed;
    older than twice that, after a refresh, for which a reader waits WAIT_S at most. So
    what nobody looked at for hours is not shown as if it were of now, and a server that
    is away holds nobody up.
    """

    def __init__(
        self,
        fetch: Callable[[], T],
        max_age_s: float,
        background: Executor,
        clock_s: Callable[[], float] = boottime_s,
        patience: Patience | None = None,
    ) -> None:
        self._fetch = fetch
        self._max_age_s = max_age_s
        self._background = background
        self._clock_s = clock_s
        self._patience = patience or Patience(clock_s)
        self._lock = threading.Lock()  # of the fields below; held for moments
        self._loading = threading.Lock()  # held while fetching, so that one thread fetches
        self._values: list[T] = []  # empty or one; T may be None
        self._as_of_s = 0.0  # when the value was asked for
        self._took_s = 0.0
        self._fresh_until_s = 0.0
        self._retry_at_s = 0.0
        self._refreshing: Future[None] | None = None
        self._waited_for_until_s = 0.0
        self._failures = 0  # of loads; and the last of them
        self._failure: DserverfsError | None = None

    def get(self) -> T:
        """Return the value, at once but for a short wait if it is very old; raises NotLoaded."""
        value = self.get_at_once()
        with self._lock:
            now_s = self._clock_s()
            if now_s >= self._as_of_s + 2 * self._max_age_s:
                self._wait_shortly_locked(now_s)
        return value

    def get_at_once(self) -> T:
        """Return the value, however old, and have it refreshed; raises NotLoaded if there is none.

        For who cannot wait.
        """
        with self._lock:
            value = self._at_hand_locked()
            now_s = self._clock_s()
            if now_s >= self._fresh_until_s:
                self._begin_refresh_locked(now_s)
        return value

    def at_hand(self) -> T:
        """Return the value, however old, and do nothing about that; raises NotLoaded."""
        with self._lock:
            return self._at_hand_locked()

    def renew(self, age_s: float) -> None:
        """Raise NotLoaded, whose load waits shortly for a refresh, if the value is older than that.

        Before somebody is told that something is not there, or begins to change it.
        What takes long to fetch is renewed less often.
        """
        with self._lock:
            self._at_hand_locked()
            now_s = self._clock_s()
            if now_s >= self._as_of_s + max(age_s, RENEW_SHARE * self._took_s):
                self._begin_refresh_locked(now_s)
                self._wait_shortly_locked(now_s)

    def load(self) -> None:
        """Fetch the value unless another thread just did; blocks. Raises what fetching raises.

        All who wait for one thread's fetch are told what it was told: that each asked
        again would be a storm. Nobody is told of it who comes later.
        """
        with self._lock:
            failures = self._failures
        with self._loading:
            with self._lock:
                if self._values:
                    return
                if self._failure is not None and self._failures != failures:
                    raise copy.copy(self._failure)  # of who had the lock before us
            try:
                self._fetch_now()
            except DserverfsError as error:
                with self._lock:
                    self._failures += 1
                    self._failure = error
                raise

    def renewed(self) -> T:
        """Return a value that was asked for after now; blocks. Raises what fetching raises."""
        wanted_s = self._clock_s()
        with self._loading:
            with self._lock:
                if self._values and self._as_of_s >= wanted_s:  # by who had the lock before us
                    return self._values[0]
            return self._fetch_now()

    def keep(self, value: T) -> None:
        """Have what was fetched in another way for the value."""
        self._keep(value, self._clock_s())

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

    def _at_hand_locked(self) -> T:
        if not self._values:
            raise NotLoaded(self.load)
        return self._values[0]

    def _begin_refresh_locked(self, now_s: float) -> None:
        if self._refreshing is not None or now_s < self._retry_at_s:
            return
        try:
            self._refreshing = self._background.submit(self._refresh)
        except RuntimeError:  # shut down: the daemon is ending
            return
        self._waited_for_until_s = now_s + WAIT_S

    def _wait_shortly_locked(self, now_s: float) -> None:
        """Raise NotLoaded while a refresh is worth waiting for."""
        future, wait_s = self._refreshing, self._waited_for_until_s - now_s
        if future is None or wait_s <= 0 or self._patience.is_lost():
            return
        raise NotLoaded(lambda: self._wait(future, wait_s))

    def _wait(self, refresh: Future[None], wait_s: float) -> None:
        if not wait([refresh], timeout=wait_s).done:
            self._patience.lose()

    def _keep(self, value: T, as_of_s: float) -> None:
        with self._lock:
            self._values = [value]
            self._as_of_s = as_of_s
            self._fresh_until_s = self._clock_s() + self._max_age_s
            self._retry_at_s = 0.0

    def _fetch_now(self) -> T:
        begun_s = self._clock_s()
        value = self._fetch()
        self._took_s = self._clock_s() - begun_s
        self._keep(value, begun_s)
        self._patience.regain()
        return value

    def _refresh(self) -> None:
        """Fetch anew; keep the old value if the server is away, drop it if it says no."""
        try:
            with self._loading:
                self._fetch_now()
        except (NotFound, PermissionDenied) as error:
            with self._lock:
                self._not_before_locked()
                if isinstance(error, NotAuthenticated):  # an expired token takes nothing away
                    self._patience.lose()
                else:
                    self._values = []
            logger.info("no longer available: %s", error)
        except DserverfsError as error:
            with self._lock:
                self._not_before_locked()
            self._patience.lose()
            logger.info("kept as it was, it cannot be refreshed: %s", error)
        except BaseException:
            logger.exception("a fault of ours while refreshing")
            raise
        finally:
            with self._lock:
                self._refreshing = None

    def _not_before_locked(self) -> None:
        self._fresh_until_s = self._retry_at_s = self._clock_s() + RETRY_S


def loaded(ask: Callable[[], T]) -> T:
    """Return what `ask` returns, loading what it lacks; blocks."""
    while True:
        try:
            return ask()
        except NotLoaded as missing:
            missing.load()
