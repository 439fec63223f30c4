"""Signed URLs and how long each is good: kept until shortly before expiry, asked for once.

Used by the resolver alone. Times are of CLOCK_BOOTTIME, which goes on while the
machine is suspended. Thread-safe.
"""

from __future__ import annotations

import datetime
import email.utils
import threading
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

from dserverfs.errors import NotFound
from dserverfs.model import UUID, Identifier

DEFAULT_LIFETIME_S = 300.0  # where neither URL nor server says; upstream signs for an hour
MARGIN_S = 60.0  # a URL is renewed so long before it expires, but not before 9/10 of its life
MAX_URLS = 100_000  # of 420 bytes each; the dataset used longest ago goes first


class SignedURL(NamedTuple):
    """A URL that carries its own permission; never log it."""

    url: str
    good_until_s: float  # CLOCK_BOOTTIME


def boottime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def expiry_of(
    url: str, answer: Mapping[str, Any], headers: Mapping[str, str], before_s: float
) -> float:
    """Return until when (CLOCK_BOOTTIME) `url` is to be used.

    The URL's own X-Amz-Date and X-Amz-Expires are trusted above the answer's
    expiry_seconds, and compared with the answer's Date header, so that the local
    wall clock does not matter. `before_s` is when the request was sent.
    """
    lifetime_s = _lifetime_by_url(url, headers)
    if lifetime_s is None:
        seconds = answer.get("expiry_seconds")
        known = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        lifetime_s = float(seconds) if known and seconds is not None else DEFAULT_LIFETIME_S
    return before_s + lifetime_s - min(MARGIN_S, lifetime_s / 10)


def _lifetime_by_url(url: str, headers: Mapping[str, str]) -> float | None:
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)
    try:
        signed_at = datetime.datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ")
        expires_s = float(query["X-Amz-Expires"][0])
        server_now = email.utils.parsedate_to_datetime(headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return None
    signed_at_s = signed_at.replace(tzinfo=datetime.timezone.utc).timestamp()
    return signed_at_s + expires_s - server_now


class UrlBook:
    """Signed URLs by dataset and item."""

    def __init__(self, clock_s: Callable[[], float] = boottime_s) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._urls: OrderedDict[UUID, dict[Identifier, SignedURL]] = OrderedDict()
        self._count = 0
        self._asking: dict[tuple[UUID, Identifier], Future[SignedURL]] = {}

    def get(
        self,
        dataset: UUID,
        identifier: Identifier,
        ask: Callable[[], Mapping[Identifier, SignedURL]],
    ) -> SignedURL:
        """Return a good URL; `ask` is called by one of all who wait for the same item.

        Raises what `ask` raises, and NotFound if its answer lacks the item.
        """
        key = (dataset, identifier)
        with self._lock:
            known = self._urls.get(dataset, {}).get(identifier)
            if known is not None and self._clock_s() < known.good_until_s:
                self._urls.move_to_end(dataset)
                return known
            pending = self._asking.get(key)
            mine = pending is None
            if pending is None:
                pending = self._asking[key] = Future()
        if not mine:
            return pending.result()
        try:
            answer = ask()
            if identifier not in answer:
                raise NotFound(f"the server has no item {identifier} in dataset {dataset}")
            self.add(dataset, answer)
            pending.set_result(answer[identifier])
        except BaseException as error:
            pending.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._asking[key]
        return answer[identifier]

    def add(self, dataset: UUID, urls: Mapping[Identifier, SignedURL]) -> None:
        with self._lock:
            known = self._urls.setdefault(dataset, {})
            self._count -= len(known)
            known.update(urls)
            self._count += len(known)
            self._urls.move_to_end(dataset)
            while self._count > MAX_URLS and len(self._urls) > 1:
                _, dropped = self._urls.popitem(last=False)
                self._count -= len(dropped)

    def forget(self, dataset: UUID, identifier: Identifier, url: SignedURL) -> None:
        with self._lock:
            known = self._urls.get(dataset, {})
            if known.get(identifier) is url:
                del known[identifier]
                self._count -= 1
