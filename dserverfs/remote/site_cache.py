"""A site cache before stores: which GETs of objects go to it, and when it is passed over.

Used by `objects` and `many_gets`. The cache (`dserverfs site-cache` prints what it is made of)
is asked for a store's object as the store would be, with the store's Host, which is signed.
It has no word in what is right: content is compared as always, and what the cache cannot give
comes from the store itself. One that fails is left alone for a while, and then tried by one
request. Thread-safe.
"""

from __future__ import annotations

import logging
import re
import threading
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import urllib3

from dserverfs.base.clock import boottime_s
from dserverfs.base.errors import DeadlineExceeded, DserverfsError
from dserverfs.base.retry import Deadline
from dserverfs.remote.connections import Connections
from dserverfs.remote.http1 import Target, target_of
from dserverfs.remote.trust import Trust

logger = logging.getLogger(__name__)

# In each answer of a site cache: HIT, MISS and the like, or one of these.
HEADER = "Dserverfs-Site-Cache"
PASSED = "PASSED"  # what the store itself says
UNKNOWN_STORE = "UNKNOWN-STORE"

# It is near. It waits itself for 3 s for another's fetch, and the judge is a round trip to the
# store; a line that brings less than a block in 20 s is no better than the one to the store.
SILENCE_S = 6.0
BLOCK_S = 20.0
FIRST_PAUSE_S = 60.0
MAX_PAUSE_S = 600.0
TRIAL_S = 30.0  # for one that may never say what came of it
UNKNOWN_S = 600.0  # a store that the cache's administrator has not named
MAX_UNKNOWN = 64
_SIGNED = re.compile(r"[?&](?:X-Amz-)?Signature=")
_USUAL_PORTS = {"http": 80, "https": 443}


class Way(NamedTuple):
    """A request to the cache in place of one to a store."""

    url: str  # at the cache
    target: Target  # the cache's origin, the store's Host
    store: str  # origin


class SiteCacheState(NamedTuple):
    """What `dserverfs status` tells of it."""

    url: str
    requests: int  # that it answered
    hits: int  # of those, with what it had
    reason: str | None  # why it is passed over now
    unknown_stores: list[str]


class SiteCache:
    """The site cache of one client; `url` is http(s)://HOST[:PORT]."""

    def __init__(
        self,
        url: str,
        trust: Trust | None = None,
        *,
        silence_s: float = SILENCE_S,
        block_s: float = BLOCK_S,
        clock_s: Callable[[], float] = boottime_s,
    ) -> None:
        """It may say nothing for `silence_s`, and take `block_s` for a block or a small object."""
        self.url = url
        self.silence_s = silence_s
        self.block_s = block_s
        # A proxy on the way to what is near would take the Host of the URL for the signed one.
        self.connections = Connections(trust, proxy_of=lambda origin: None)
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._reason: str | None = None  # why it is passed over
        self._again_s = 0.0  # when the next request may try it
        self._pause_s = 0.0
        self._failed_s = -2 * MAX_PAUSE_S
        self._unknown: OrderedDict[str, float] = OrderedDict()  # stores, until when
        self._requests = 0
        self._hits = 0

    def way(self, url: str) -> Way | None:
        """Return how the cache is asked for the object of a signed URL; None: it is not."""
        try:
            target = target_of(url)
        except ValueError:
            return None
        if _SIGNED.search(target.path) is None:
            return None
        now_s = self._clock_s()
        with self._lock:
            if self._unknown.get(target.origin, now_s) > now_s:
                return None
            if self._reason is not None:
                if now_s < self._again_s:
                    return None
                self._again_s = now_s + TRIAL_S
        at_cache = Target(self.url, _host(target.origin), target.path)
        return Way(f"{self.url}{target.path}", at_cache, target.origin)

    def limit(self, deadline: Deadline) -> Deadline:
        """Return the limits of a request to the cache, which leave time for the store."""
        return Deadline(min(self.block_s, max(deadline.left_s() / 2, 0.0)), stall_s=self.silence_s)

    def ask(
        self, way: Way, headers: Mapping[str, str], limit: Deadline
    ) -> urllib3.BaseHTTPResponse | None:
        """Return the cache's answer, its body unread; None if the store itself is to be asked."""
        headers = {**headers, "Host": way.target.authority}
        try:
            response = self._request(way, headers, limit)
        except DeadlineExceeded:  # no time is left, not even for the store
            return None
        except (urllib3.exceptions.HTTPError, OSError, UnicodeError) as error:
            self.failed(_reason(error))
            return None
        if self.takes(way, response.status, response.headers):
            return response
        response.close()
        return None

    def takes(self, way: Way, status: int, headers: Mapping[str, str]) -> bool:
        """Return whether an answer of the cache is one to use; take note of what it means."""
        said = headers.get(HEADER)
        if said is None:
            self.failed(f"it answers {status}, and not as a site cache does")
            return False
        if said == UNKNOWN_STORE:
            self._pass_over(way.store)
            return False
        if status in (502, 504) or (said != PASSED and status >= 500):
            self.failed(f"it answers {status}: it cannot reach the store, or keep anything")
            return False
        self._worked(said)
        # Anything else is for the store to say: another version, a query that is not for caches.
        return said == PASSED or status in (200, 206)

    def failed(self, reason: str) -> None:
        """Have the cache passed over for a while; the first failure is logged."""
        now_s = self._clock_s()
        with self._lock:
            is_first = self._reason is None
            # Requests that were under way fail after the first one; only a trial counts anew.
            if not is_first and now_s < self._again_s - TRIAL_S:
                return
            self._reason = reason
            if now_s - self._failed_s > 2 * MAX_PAUSE_S:
                self._pause_s = 0.0
            self._failed_s = now_s
            self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), MAX_PAUSE_S)
            self._again_s = now_s + self._pause_s
            pause_s = self._pause_s
        log = logger.warning if is_first else logger.debug
        log(
            "the site cache %s: %s; objects come from the store itself, and the cache is tried"
            " again in %.0f s",
            self.url,
            reason,
            pause_s,
        )

    def broke_off(self, error: Exception) -> None:
        """Have the cache passed over, as `failed`, for an answer that it began."""
        self.connections.begin_anew(self.url)
        self.failed(_reason(error))

    def state(self) -> SiteCacheState:
        now_s = self._clock_s()
        with self._lock:
            unknown = [store for store, until_s in self._unknown.items() if until_s > now_s]
            return SiteCacheState(self.url, self._requests, self._hits, self._reason, unknown)

    def close(self) -> None:
        self.connections.close()

    def _request(
        self, way: Way, headers: Mapping[str, str], limit: Deadline
    ) -> urllib3.BaseHTTPResponse:
        try:
            return self.connections.request("GET", way.url, headers, limit)
        except urllib3.exceptions.ProtocolError:  # a kept connection whose other end is gone
            return self.connections.request("GET", way.url, headers, limit)

    def _worked(self, said: str) -> None:
        with self._lock:
            self._requests += 1
            self._hits += said == "HIT"
            was_away, self._reason = self._reason is not None, None
        if was_away:
            logger.info("the site cache %s is used again", self.url)

    def _pass_over(self, store: str) -> None:
        """Note that the cache does not know a store."""
        now_s = self._clock_s()
        with self._lock:
            is_new = store not in self._unknown
            self._unknown[store] = now_s + UNKNOWN_S
            if len(self._unknown) > MAX_UNKNOWN:
                self._unknown.popitem(last=False)
            self._reason = None
        if is_new:
            logger.warning(
                "the site cache %s does not know the store %s, whose objects come from there: its"
                " administrator names it by dserverfs site-cache --store %s",
                self.url,
                store,
                store,
            )


def _host(origin: str) -> str:
    """Return the Host header of a request to an origin, as HTTP clients send it."""
    parts = urllib.parse.urlsplit(origin)
    if parts.port == _USUAL_PORTS[parts.scheme]:
        return parts.netloc.rpartition(":")[0]
    return parts.netloc


def _reason(error: Exception) -> str:
    if isinstance(error, DserverfsError):  # about the form of an answer
        return str(error)
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # a timeout to urllib3
        return "it cannot be connected to"
    if isinstance(error, (urllib3.exceptions.TimeoutError, TimeoutError)):
        return "it does not answer in time"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "its certificate is not accepted"
    return f"it broke off an answer, or garbled it ({type(error).__name__.strip('_')})"
