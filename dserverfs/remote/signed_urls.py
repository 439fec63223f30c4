"""Signed URLs and how long each is good: kept until shortly before expiry, asked for once.

Kept by the resolver alone. Times are of CLOCK_BOOTTIME, which goes on while the
machine is suspended. Thread-safe.
"""

from __future__ import annotations

import datetime
import email.utils
import functools
import threading
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from dserverfs.base.clock import boottime_s
from dserverfs.base.errors import NotFound, ProtocolError
from dserverfs.base.limits import parse_timestamp
from dserverfs.base.model import BackendURI, Dataset, Identifier

DEFAULT_LIFETIME_S = 300.0  # where neither URL nor server says; upstream signs for an hour
MARGIN_S = 60.0  # a URL is renewed so long before it expires, but not before 9/10 of its life
# 100,000 URLs of AWS. The dataset used longest ago is dropped first.
MAX_BYTES = 64 * 1024 * 1024
_ENTRY_BYTES = 250  # Python's own, beside the URL's letters


class SignedURL(NamedTuple):
    """A URL that carries its own permission; never log it."""

    url: str
    good_until_s: float  # CLOCK_BOOTTIME


def expiry_of(
    url: str, answer: Mapping[str, Any], headers: Mapping[str, str], before_s: float
) -> float:
    """Return until when (CLOCK_BOOTTIME) `url` is to be used.

    The URL's own dates are trusted above the answer's expiry_seconds, and that
    above its expiry_timestamp, which some servers give seconds too late. Dates
    are compared with the answer's Date header, so that the local wall clock does
    not matter. `before_s` is when the request was sent.
    """
    lifetime_s = _lifetime_by_url(url, headers)
    if lifetime_s is None:
        lifetime_s = _lifetime_by_answer(answer, headers)
    return before_s + lifetime_s - min(MARGIN_S, lifetime_s / 10)


def _lifetime_by_url(url: str, headers: Mapping[str, str]) -> float | None:
    """Return the seconds that AWS's, Google's or Azure's parameters give, if they do."""
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)
    try:
        for prefix in ("X-Amz", "X-Goog"):
            if f"{prefix}-Date" in query:
                signed_at_s = _signed_at(query[f"{prefix}-Date"][0])
                expires_s = float(query[f"{prefix}-Expires"][0])
                return _usable(signed_at_s + expires_s - _server_now(headers))
        end = query.get("se") or query.get("Expires")  # Azure's SAS; AWS before version 4
        return _usable(parse_timestamp(end[0]) - _server_now(headers)) if end else None
    except (KeyError, ValueError, ProtocolError):
        return None


def _lifetime_by_answer(answer: Mapping[str, Any], headers: Mapping[str, str]) -> float:
    try:
        return _usable(parse_timestamp(answer.get("expiry_seconds")))
    except (ProtocolError, ValueError):
        pass
    try:
        return _usable(parse_timestamp(answer.get("expiry_timestamp")) - _server_now(headers))
    except (KeyError, ProtocolError, ValueError):
        return DEFAULT_LIFETIME_S


def _server_now(headers: Mapping[str, str]) -> float:
    return _seconds_of(headers["Date"])


# The URLs of one answer have the same dates, each of which takes 20 us.
@functools.lru_cache(maxsize=16)
def _seconds_of(date: str) -> float:
    return email.utils.parsedate_to_datetime(date).timestamp()


@functools.lru_cache(maxsize=16)
def _signed_at(date: str) -> float:
    signed_at = datetime.datetime.strptime(date, "%Y%m%dT%H%M%SZ")
    return signed_at.replace(tzinfo=datetime.timezone.utc).timestamp()


def _usable(lifetime_s: float) -> float:
    """Return a lifetime that can be one; raises ValueError if a clock must be wrong."""
    if not 0 < lifetime_s < 366 * 86_400:
        raise ValueError(f"{lifetime_s} s is no lifetime")
    return lifetime_s


class UrlSource(Protocol):
    """A source of signed URLs: the resolver."""

    def item_url(
        self,
        dataset: Dataset,
        identifier: Identifier,
        neighbours: Callable[[int], Sequence[Identifier]],
    ) -> SignedURL:
        """Return a good URL for the item; blocks."""

    def forget_url(self, dataset: Dataset, identifier: Identifier, url: SignedURL) -> None:
        """Drop a URL that the store refused."""

    def forget_host(self, url: SignedURL) -> None:
        """Drop all URLs of a host that cannot be reached: the store may be elsewhere by now."""


class UrlBook:
    """Signed URLs by dataset and item."""

    def __init__(
        self, clock_s: Callable[[], float] = boottime_s, *, max_bytes: int = MAX_BYTES
    ) -> None:
        self._clock_s = clock_s
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._urls: OrderedDict[BackendURI, dict[Identifier, SignedURL]] = OrderedDict()
        self._bytes = 0
        self._asking: dict[Hashable, _Question] = {}

    def get(
        self,
        dataset: BackendURI,
        identifier: Identifier,
        ask: Callable[[], Mapping[Identifier, SignedURL]],
        *,
        question: Hashable | None = None,
    ) -> SignedURL:
        """Return a good URL; `ask` is called by one of all who wait for the same question.

        A question is one item unless told otherwise; a caller whose item the answer lacks
        asks again for that item. Raises what `ask` raises, and NotFound if its own
        answer lacks the item.
        """
        key = (dataset, identifier) if question is None else question
        while True:
            with self._lock:
                known = self._urls.get(dataset, {}).get(identifier)
                if known is not None and self._clock_s() < known.good_until_s:
                    self._urls.move_to_end(dataset)
                    return known
                pending = self._asking.get(key)
                if pending is None:
                    mine = self._asking[key] = _Question(identifier, Future())
            if pending is None:
                return self._answer(dataset, mine, key, ask)
            try:
                urls = pending.urls.result()
            except NotFound:
                if pending.identifier == identifier:
                    raise
                continue
            if identifier in urls:
                return urls[identifier]

    def lacking(self, dataset: BackendURI, identifiers: Sequence[Identifier]) -> list[Identifier]:
        """Return those of `identifiers` that have no good URL."""
        now_s = self._clock_s()
        with self._lock:
            known = self._urls.get(dataset, {})
            return [
                identifier
                for identifier in identifiers
                if identifier not in known or known[identifier].good_until_s <= now_s
            ]

    def add(self, dataset: BackendURI, urls: Mapping[Identifier, SignedURL]) -> None:
        """Keep `urls`; others go if there are too many, and a dataset's oldest if it alone has."""
        with self._lock:
            known = self._urls.setdefault(dataset, {})
            for identifier, url in urls.items():
                self._drop_locked(known, identifier)
                known[identifier] = url
                self._bytes += _size(url)
            self._urls.move_to_end(dataset)
            while self._bytes > self._max_bytes and len(self._urls) > 1:
                _, dropped = self._urls.popitem(last=False)
                self._bytes -= sum(map(_size, dropped.values()))
            while self._bytes > self._max_bytes and known:
                self._drop_locked(known, next(iter(known)))

    def forget(self, dataset: BackendURI, identifier: Identifier, url: SignedURL) -> None:
        with self._lock:
            known = self._urls.get(dataset, {})
            if known.get(identifier) is url:
                self._drop_locked(known, identifier)

    def forget_host(self, url: SignedURL) -> None:
        """Drop every URL that leads where `url` does."""
        origin = _origin(url)
        with self._lock:
            for known in self._urls.values():
                for identifier in [key for key, each in known.items() if _origin(each) == origin]:
                    self._drop_locked(known, identifier)

    def check(self) -> None:
        """Raise AssertionError unless the invariants hold; for tests."""
        kept = [url for known in self._urls.values() for url in known.values()]
        assert sum(map(_size, kept)) == self._bytes, "the bytes of URLs are miscounted"
        assert self._bytes <= self._max_bytes

    def _answer(
        self,
        dataset: BackendURI,
        mine: _Question,
        key: Hashable,
        ask: Callable[[], Mapping[Identifier, SignedURL]],
    ) -> SignedURL:
        try:
            urls = ask()
            if mine.identifier not in urls:
                raise NotFound(f"the server has no item {mine.identifier} in {dataset}")
            self.add(dataset, urls)
            mine.urls.set_result(urls)
        except BaseException as error:
            mine.urls.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._asking[key]
        return urls[mine.identifier]

    def _drop_locked(self, known: dict[Identifier, SignedURL], identifier: Identifier) -> None:
        url = known.pop(identifier, None)
        if url is not None:
            self._bytes -= _size(url)


class _Question(NamedTuple):
    """A request under way for an item's URL, and maybe for others with it."""

    identifier: Identifier
    urls: Future[Mapping[Identifier, SignedURL]]


def _origin(url: SignedURL) -> str:
    """Return scheme and host."""
    return "/".join(url.url.split("/", 3)[:3])


def _size(url: SignedURL) -> int:
    return len(url.url) + _ENTRY_BYTES
