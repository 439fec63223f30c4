"""Other attempts after a failure: one rule for all requests that cross the network.

Used by all requests to a dserver or a store. A request that is safe to repeat is
repeated on a new connection, within the deadline of its operation:

    the URL was refused           a new URL at once; refused again it is an error
    a connection was lost,        at once, then with growing waits: a kept connection may
    or said nothing               have been dead for long, and all others with it
    no connection                 with growing waits
    "not now" (Busy)              when the other side says, or earlier: a date or an hour
                                  hence is no reason to fail while seconds are left
    a useless answer              with growing waits, less often: a proxy may have sent it
    anything else                 not at all

The first connection that says nothing is given up well before the deadline, and each
later one has twice as long: a server that is slow is not taken for one that hangs.
`wait_s` decides and does nothing; `Retries` waits. Pure but for clocks.
"""

from __future__ import annotations

import email.utils
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from dserverfs.base.errors import (
    Busy,
    DeadlineExceeded,
    DserverfsError,
    Garbled,
    NotAuthenticated,
    NotTheServer,
    ProtocolError,
    Stalled,
    StorageRefused,
    Unreachable,
    UnusableAnswer,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 4  # in a row; with the waits between them 4 s of a server that refuses connections
FIRST_WAIT_S = 0.2
MAX_WAIT_S = 15.0
MAX_RETRY_AFTER_S = 60.0
STALL_S = 30.0  # by default
FIRST_STALL_S = 10.0
# Of an answer of an address whose host has another one that works. A gateway that hangs has
# one such wait of each process, which then asks the other one; so has a store that is slow, once in
# half a minute at most. Guess: longer than a checked proxy needs to take a gateway out.
ELSEWHERE_S = 3.0
# A slower answer has stalled: bytes that trickle are as good as none. A modem's speed.
MIN_BYTES_PER_S = 4096
# Of the time that is left, the share in which a busy server is waited for: then there is time
# for further attempts.
_SHARE = 1 / 3
# Failures that say nothing of what was asked for: no answer, and answers of proxies and faults.
# What is kept serves in their place, and what was to be sent is sent later.
# Of our own: a program that has the module's give the same numbers again is not disturbed.
chance = random.Random()
AWAY: tuple[type[DserverfsError], ...] = (Unreachable, UnusableAnswer)
AWAY_OR_EXPIRED: tuple[type[DserverfsError], ...] = (*AWAY, NotAuthenticated)
# Of servers that are up and cannot now, and of proxies before servers that are down.
BUSY_STATUSES = frozenset({408, 425, 429, 502, 503, 504})


class Deadline:
    """The end of an operation's time, and the limit of each wait in it.

    By CLOCK_MONOTONIC, which stands still while the machine is suspended.
    """

    def __init__(
        self,
        timeout_s: float,
        *,
        stall_s: float = STALL_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.timeout_s = timeout_s
        self.stall_s = stall_s
        # The rest of `stall_s`: waiting uses it up, and bytes that come renew it.
        self._patience_s = stall_s
        # One wait takes no longer, if what is asked for can be had from another address.
        self.elsewhere_s: float | None = None
        self._clock_s = clock_s
        self._whole = self  # whose end counts: an attempt has that of its operation
        self._end_s = clock_s() + timeout_s

    def restart(self) -> None:
        """Begin anew: a part of the answer has come."""
        self._whole._end_s = self._clock_s() + self._whole.timeout_s

    def extend(self, seconds: float) -> None:
        """End so much later, but not later than if it began anew."""
        whole = self._whole
        whole._end_s = min(whole._end_s + seconds, self._clock_s() + whole.timeout_s)

    def left_s(self) -> float:
        """Return the seconds left; none or fewer when it is over."""
        return self._whole._end_s - self._clock_s()

    def remaining_s(self) -> float:
        """Return the seconds left; raises DeadlineExceeded when there are none."""
        left = self.left_s()
        if left <= 0:
            raise DeadlineExceeded("the time for the operation is over")
        return left

    def wait_s(self) -> float:
        """Return how long one wait may take; raises DeadlineExceeded when the time is over.

        Raises Stalled when so little came for so long that it is no answer.
        """
        left_s = self.remaining_s()
        if self._patience_s <= 0:
            raise Stalled(f"less than {MIN_BYTES_PER_S} bytes a second came")
        return min(self._patience_s, left_s)

    def waited(self, seconds: float, count: int) -> None:
        """Note how long a wait took, and how many bytes came or went in it."""
        gained_s = count / MIN_BYTES_PER_S
        self._patience_s = min(self._patience_s - seconds + gained_s, self.stall_s)

    def begin(self) -> None:
        """Note that a connection is used from now on, for the first time or again."""
        self._patience_s = self.stall_s

    def of_attempt(self, stall_s: float, elsewhere_s: float | None = None) -> Deadline:
        """Return the same end with other waits: extending one extends both."""
        attempt = Deadline.__new__(Deadline)
        attempt.timeout_s = self.timeout_s
        attempt.stall_s = attempt._patience_s = stall_s
        attempt.elsewhere_s = elsewhere_s
        attempt._clock_s = self._clock_s
        attempt._whole = self._whole
        return attempt


def anything(error: DserverfsError) -> bool:
    """Any failure may be followed by another attempt: the request can be repeated."""
    return True


def refused_url(error: DserverfsError) -> bool:
    """Only a refused URL: the function that is called repeats the rest itself."""
    return isinstance(error, StorageRefused)


def wait_s(
    error: DserverfsError, failures: int, left_s: float, *, attempts: int, jitter: float
) -> float | None:
    """Return the seconds before the next attempt; None if there is to be none.

    `failures` in a row came before this one; `jitter` is about 1, so that clients
    that failed together do not come again together.
    """
    if isinstance(error, (NotTheServer, UnusableAnswer)):
        attempts = max(min(2, attempts), attempts - 1)
    if failures + 1 >= attempts or not _may_pass(error):
        return None
    wait = min(FIRST_WAIT_S * 4.0**failures * jitter, MAX_WAIT_S)
    if isinstance(error, Busy):
        asked = min(error.retry_after_s, MAX_RETRY_AFTER_S, left_s * _SHARE)
        wait = max(wait, asked)
    elif failures == 0 and type(error) in (Unreachable, Stalled):
        wait = 0.0
    return wait if wait < left_s else None


def _may_pass(error: DserverfsError) -> bool:
    if isinstance(error, Unreachable) and error.lasting:
        return False
    if isinstance(error, DeadlineExceeded):
        return isinstance(error, Stalled)
    return isinstance(error, (*AWAY, Garbled))


def stall_s(first_s: float, failures: int) -> float:
    """Return how long a connection may say nothing after so many failures in a row."""
    return min(first_s * 2.0**failures, max(2 * first_s, STALL_S))


def pause_s(last_s: float, least_s: float, most_s: float) -> float:
    """Return the pause after one of `last_s`, for work in the background that must succeed."""
    return min(max(2 * last_s, least_s), most_s) * chance.uniform(0.8, 1.0)


class Retries:
    """The attempts of one operation; for one thread."""

    def __init__(
        self,
        deadline: Deadline,
        *,
        what: str = "",
        attempts: int | None = None,
        first_stall_s: float | None = None,
        elsewhere_s: float | None = None,
        repeatable: Callable[[DserverfsError], bool] = anything,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        """`what` is for the log. `first_stall_s` is a third of the time unless given.

        `elsewhere_s` is how long the first attempt waits for an address that is not the only one:
        for what costs nothing to ask for twice.
        `repeatable` says after which failures the same may be asked again at all.
        """
        self.failures = 0  # in a row
        self._deadline = deadline
        self._what = what
        self._attempts = ATTEMPTS if attempts is None else attempts
        self._first_stall_s = deadline.timeout_s / 3 if first_stall_s is None else first_stall_s
        self._elsewhere_s = elsewhere_s
        self._repeatable = repeatable
        self._sleep = time.sleep if sleep is None else sleep
        self._refused = False

    def limit(self) -> Deadline:
        """Return the limits of the next attempt."""
        self._deadline.remaining_s()
        elsewhere_s = None if self.failures else self._elsewhere_s
        return self._deadline.of_attempt(stall_s(self._first_stall_s, self.failures), elsewhere_s)

    def progressed(self) -> None:
        """Note that a part came: failures are counted anew."""
        self.failures = 0
        self._refused = False

    def again(self, error: DserverfsError) -> None:
        """Return when it is time for another attempt; raises `error` if there is to be none.

        After a refused URL that is at once, once: the caller has dropped it. Raises
        ProtocolError for the second.
        """
        if not self._repeatable(error):
            raise error
        if isinstance(error, StorageRefused):
            if self._refused:
                raise ProtocolError(f"{error}, for a URL signed just now", uri=error.uri) from error
            self._refused = True
            return
        jitter = chance.uniform(0.5, 1.5)
        wait = wait_s(
            error,
            self.failures,
            self._deadline.left_s(),
            attempts=self._attempts,
            jitter=jitter,
        )
        if wait is None:
            raise error
        self.failures += 1
        self._refused = False
        logger.debug("%s: tried again in %.1f s after: %s", self._what, wait, error)
        if wait:
            self._sleep(wait)

    def run(
        self,
        attempt: Callable[[Deadline], T],
        *,
        on_failure: Callable[[DserverfsError], None] = lambda error: None,
    ) -> T:
        """Return what `attempt` returns, called until it does or there is no other attempt.

        It is given its limits. `on_failure` is told of each failure.
        """
        while True:
            try:
                return attempt(self.limit())
            except DserverfsError as error:
                on_failure(error)
                self.again(error)


def retry_after_s(headers: Mapping[str, str], now_s: Callable[[], float] = time.time) -> float:
    """Return the seconds an answer's Retry-After asks to wait; 0 if it has none."""
    value = headers.get("Retry-After", "")
    try:
        seconds = float(value)
        return max(0.0, seconds) if seconds < float("inf") else 0.0
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    try:
        now = email.utils.parsedate_to_datetime(headers["Date"]).timestamp()
    except (ValueError, TypeError, KeyError, OverflowError):
        now = now_s()
    return max(0.0, until - now)
