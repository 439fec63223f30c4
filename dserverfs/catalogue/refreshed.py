"""A value that is loaded on demand, kept, and refreshed in the background.

The catalogue is made of these. Reading never blocks: a value that is missing or very
old raises NotLoaded, which has a function to call in a thread before reading again.
That keeps the tree free of I/O and the event loop free of waiting. Thread-safe.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from typing import Generic, NamedTuple, Protocol, TypeVar

from dserverfs.base.clock import boottime_s
from dserverfs.base.errors import DserverfsError, NotAuthenticated, NotFound, PermissionDenied

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S = 5.0  # between refreshes that fail
WAIT_S = 0.75  # of a reader in a mount for a refresh, which may hang: `ls` has to be within 1 s
COMMAND_WAIT_S = 30.0  # as long as one question to a server may take
NO_WAIT_S = 60.0  # after a reader waited in vain, readers do not wait for so long
RENEW_SHARE = 10  # a value that took 1 s to fetch is not renewed more than every 10 s


class Load(Protocol):
    """A load that goes on by itself, for all who wait for it."""

    future: Future[None]

    def progress(self) -> float:
        """Return a number that changes as long as the load gets on."""


class NotLoaded(Exception):
    """The value has to be loaded first: call `load` (it blocks), then ask again.

    A load that may take long has `begin` in addition: it returns at once, with a load
    that goes on by itself and is shared by all who ask for the same value.
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


class Staleness(NamedTuple):
    """Which values readers get at once while they are refreshed, and which they wait for."""

    ages: int  # a value of up to so many times its `max_age_s` is told at once
    wait_s: float  # for the refresh of an older one, before that is told all the same
    # Whether an answer that was kept on the disk is told like that, when there is no value yet;
    # else the server has all its time first.
    recalls: bool


MOUNT = Staleness(ages=2, wait_s=WAIT_S, recalls=True)
# A script that looks again after a minute is to see what others have changed.
COMMAND = Staleness(ages=1, wait_s=COMMAND_WAIT_S, recalls=False)


class RefreshWaits:
    """Whether readers wait for refreshes: not for a while after one has waited in vain.

    One for all values of a server; thread-safe.
    """

    def __init__(
        self, clock_s: Callable[[], float] = boottime_s, staleness: Staleness = MOUNT
    ) -> None:
        self.staleness = staleness
        self._clock_s = clock_s
        self._suspended_until_s = 0.0

    def are_suspended(self) -> bool:
        return self._clock_s() < self._suspended_until_s

    def suspend(self) -> None:
        self._suspended_until_s = self._clock_s() + NO_WAIT_S

    def resume(self) -> None:
        self._suspended_until_s = 0.0


class RefreshedValue(Generic[T]):
    """One value, its age, and how to fetch it.

    A value younger than `max_age_s` is told at once. An older one is told while it is
    refreshed; a very old one (see Staleness) after the refresh, for which a reader waits
    a limited time. So a value that was not read for hours is not shown as if it were
    new, and a server that is away delays no reader for long.
    """

    def __init__(
        self,
        fetch: Callable[[], T],
        max_age_s: float,
        background: Executor,
        clock_s: Callable[[], float] = boottime_s,
        waits: RefreshWaits | None = None,
        recall: Callable[[], Callable[[], T] | None] = lambda: None,
    ) -> None:
        """`recall` gives what makes the value that was kept the last time, if one was."""
        self._fetch = fetch
        self._recall = recall
        self._max_age_s = max_age_s
        self._background = background
        self._clock_s = clock_s
        self._waits = waits or RefreshWaits(clock_s)
        self._lock = threading.Lock()  # of the fields below; held for moments
        self._loading = threading.Lock()  # held while fetching, so that one thread fetches
        self._values: list[T] = []  # empty or one; T may be None
        self._as_of_s = 0.0  # when the value was asked for
        self._took_s = 0.0
        self._fresh_until_s = 0.0
        self._retry_at_s = 0.0
        self._forgotten = 0  # how often; what was asked for before does not count
        self._refreshing: Future[None] | None = None
        self._waited_for_until_s = 0.0
        self._failures = 0  # of loads; and the last of them
        self._failure: DserverfsError | None = None

    def get(self) -> T:
        """Return the value, at once but for a short wait if it is very old; raises NotLoaded."""
        with self._lock:  # held throughout: a refresh must not end between the two looks
            value, now_s = self._at_once_locked(), self._clock_s()
            if now_s >= self._as_of_s + self._waits.staleness.ages * self._max_age_s:
                self._wait_shortly_locked(now_s)
        return value

    def get_at_once(self) -> T:
        """Return the value, however old, and refresh it; raises NotLoaded if there is none."""
        with self._lock:
            return self._at_once_locked()

    def at_hand(self) -> T:
        """Return the value, however old, without a refresh; raises NotLoaded."""
        with self._lock:
            return self._at_hand_locked()

    def renew(self, age_s: float) -> None:
        """Raise NotLoaded, whose load waits shortly for a refresh, if the value is older.

        For use before a name is said not to be there, or a change begins. A value that
        takes long to fetch is renewed less often.
        """
        with self._lock:
            self._at_hand_locked()
            now_s = self._clock_s()
            if now_s >= self._as_of_s + max(age_s, RENEW_SHARE * self._took_s):
                self._begin_refresh_locked(now_s)
                self._wait_shortly_locked(now_s)

    def load(self) -> None:
        """Fetch the value unless another thread just did; blocks. Raises what fetching raises.

        All who wait for one thread's fetch get its error: a fetch for each of them would
        be a storm. Later callers fetch anew. If one was kept, the fetch is waited for as
        that of a very old value, and then what was kept is the value.
        """
        with self._lock:
            failures = self._failures
        if self._waits.staleness.recalls and self._recalled():
            return
        with self._loading:
            with self._lock:
                if self._values:
                    return
                if self._failure is not None and self._failures != failures:
                    raise copy.copy(self._failure)  # of the fetch we waited for
            try:
                self._fetch_now()
            except DserverfsError as error:
                with self._lock:
                    self._failed_locked(error)
                raise

    def _recalled(self) -> bool:
        """Return whether there is a value: one that was kept, if none was fetched shortly."""
        recall = self._recall
        kept = recall()
        if kept is None:
            return False
        with self._lock:
            self._begin_refresh_locked(self._clock_s())
            refresh = self._refreshing
            wait_s = 0.0 if self._waits.are_suspended() else self._waits.staleness.wait_s
        if refresh is None or wait([refresh], wait_s).done:
            return False  # it came, or failed, which is told
        self._waits.suspend()
        value = kept()
        with self._lock:
            if self._recall is not recall:
                return False  # it was forgotten meanwhile
            if not self._values:
                self._values = [value]
        return True

    def renewed(self) -> T:
        """Return a value that was fetched after this call; blocks. Raises what fetching raises."""
        wanted_s = self._clock_s()
        with self._loading:
            with self._lock:
                if self._values and self._as_of_s >= wanted_s:  # by the fetch we waited for
                    return self._values[0]
            return self._fetch_now()

    def keep(self, value: T) -> None:
        """Take over a value that was fetched just now in another way."""
        with self._lock:
            self._keep_locked(value, self._clock_s())

    def replace(self, change: Callable[[T], T]) -> None:
        """Change the value, if there is one, without a fetch; its age does not change."""
        with self._lock:
            if self._values:
                self._values = [change(self._values[0])]

    def expire(self) -> None:
        """Refresh the value the next time it is asked for."""
        with self._lock:
            self._fresh_until_s = 0.0

    def forget(self) -> None:
        """Drop the value: it is fetched before it is told again, whatever was kept."""
        with self._lock:
            self._values = []
            self._forgotten += 1
            self._recall = lambda: None

    def _at_hand_locked(self) -> T:
        if not self._values:
            raise NotLoaded(self.load)
        return self._values[0]

    def _at_once_locked(self) -> T:
        value, now_s = self._at_hand_locked(), self._clock_s()
        if now_s >= self._fresh_until_s:
            self._begin_refresh_locked(now_s)
        return value

    def _begin_refresh_locked(self, now_s: float) -> None:
        if self._refreshing is not None or now_s < self._retry_at_s:
            return
        try:
            self._refreshing = self._background.submit(self._refresh)
        except RuntimeError:  # shut down: the daemon is ending
            return
        self._waited_for_until_s = now_s + self._waits.staleness.wait_s

    def _wait_shortly_locked(self, now_s: float) -> None:
        """Raise NotLoaded while a refresh is worth waiting for."""
        future, wait_s = self._refreshing, self._waited_for_until_s - now_s
        if future is None or wait_s <= 0 or self._waits.are_suspended():
            return
        raise NotLoaded(lambda: self._wait(future, wait_s))

    def _wait(self, refresh: Future[None], wait_s: float) -> None:
        if not wait([refresh], timeout=wait_s).done:
            self._waits.suspend()

    def _keep_locked(self, value: T, as_of_s: float) -> None:
        self._values = [value]
        self._as_of_s = as_of_s
        self._fresh_until_s = self._clock_s() + self._max_age_s
        self._retry_at_s = 0.0

    def _fetch_now(self) -> T:
        """Return the value and keep it; once more if it was forgotten while it came."""
        while True:
            forgotten, begun_s = self._forgotten, self._clock_s()
            value = self._fetch()
            self._took_s = self._clock_s() - begun_s
            self._waits.resume()
            with self._lock:
                if self._forgotten == forgotten:
                    self._keep_locked(value, begun_s)
                    return value

    def _refresh(self) -> None:
        """Fetch anew; keep the old value if the server is away, drop it if it says no."""
        try:
            with self._loading:
                self._fetch_now()
        except (NotFound, PermissionDenied) as error:
            with self._lock:
                self._not_before_locked()
                self._failed_locked(error)
                if isinstance(error, NotAuthenticated):  # an expired token takes nothing away
                    self._waits.suspend()
                else:
                    self._values = []
            logger.info("no longer available: %s", error)
        except DserverfsError as error:
            with self._lock:
                self._not_before_locked()
                self._failed_locked(error)
            self._waits.suspend()
            logger.info("kept as it was, it cannot be refreshed: %s", error)
        except BaseException:
            logger.exception("a fault of ours while refreshing")
            raise
        finally:
            with self._lock:
                self._refreshing = None

    def _failed_locked(self, error: DserverfsError) -> None:
        self._failures += 1
        self._failure = error

    def _not_before_locked(self) -> None:
        self._fresh_until_s = self._retry_at_s = self._clock_s() + RETRY_S


def loaded(ask: Callable[[], T]) -> T:
    """Return what `ask` returns, loading what it lacks; blocks."""
    while True:
        try:
            return ask()
        except NotLoaded as missing:
            missing.load()
