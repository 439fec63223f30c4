"""Signed URLs from a dserver, by the cheapest of the routes it has.

Used by the resolver. A server with our extensions signs items in batches; any
other signs a dataset whole, or, if that is too large, item by item. Answers are
kept in a `UrlBook`. Blocking and thread-safe.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from dserverfs.base import hash_overlay
from dserverfs.base.clock import boottime_s
from dserverfs.base.errors import NotFound, ProtocolError
from dserverfs.base.limits import max_urls_bytes, url_is_usable
from dserverfs.base.model import BackendURI, Dataset, Identifier
from dserverfs.remote.answers import Answer
from dserverfs.remote.routes import Routes, string_map
from dserverfs.remote.signed_urls import SignedURL, UrlBook, expiry_of

logger = logging.getLogger(__name__)

# Larger datasets are asked item by item on a server that cannot sign batches: one
# answer for all costs 420 bytes an item, and 0.37 ms of the server's time.
MAX_ITEMS_ASKED_WHOLE = 10_000
BATCH_SIZE = 200
# So many items are looked through for some without a URL: 25 ms.
MAX_REACH = 12_800
MAX_REMEMBERED = 1000
# In place of an identifier: the URL by which a dataset's block hashes are read.
BLOCK_HASHES = Identifier("block hashes")
# And in place of another: that of the overlay that has them instead, see `base/hash_overlay`.
HASH_OVERLAY = Identifier("overlay of block hashes")
# Others may add them to a dataset that had none.
WITHOUT_S = 3600.0
MAX_WITHOUT = 10_000
# The statuses for a batch that is too large for the server.
_TOO_MANY = frozenset({400, 413, 422})


class _Signed(NamedTuple):
    """The answer about a dataset's metadata."""

    answer: dict[str, Any]
    hashes: dict[Identifier, SignedURL]  # of BLOCK_HASHES and HASH_OVERLAY, as far as there


class Signing:
    """Signed URLs of one server's items."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._urls = UrlBook()
        self._batch_size = BATCH_SIZE
        # Datasets of which the server does not know every item that we do.
        self._disputed: OrderedDict[BackendURI, None] = OrderedDict()
        # Datasets that lack BLOCK_HASHES or HASH_OVERLAY, and until when (CLOCK_BOOTTIME) that is
        # believed.
        self._without: OrderedDict[tuple[BackendURI, Identifier], float] = OrderedDict()

    def item_url(
        self,
        dataset: Dataset,
        identifier: Identifier,
        neighbours: Callable[[int], Sequence[Identifier]],
    ) -> SignedURL:
        """Return a signed URL; see `Resolver.item_url`."""
        extended = self._routes.capabilities().extended
        question: Hashable = (dataset.uri, identifier)
        if extended and dataset.uri not in self._disputed:
            question = dataset.uri
            ask = lambda: self._sign_batch(dataset, identifier, neighbours)  # noqa: E731
        elif extended:
            ask = lambda: self._batch(dataset, [identifier])  # noqa: E731
        elif is_asked_whole(dataset):
            question = dataset.uri
            ask = lambda: self._sign_whole(dataset)  # noqa: E731
        else:
            ask = lambda: self._sign_one(dataset, identifier)  # noqa: E731
        return self._urls.get(dataset.uri, identifier, ask, question=question)

    def block_hashes_url(self, dataset: Dataset) -> SignedURL | None:
        """Return a signed URL, or None; see `Resolver.block_hashes_url`."""
        if not self._routes.capabilities().block_hashes:
            return None
        return self._url_of_hashes(dataset, BLOCK_HASHES)

    def knows_block_hashes(self, dataset: Dataset) -> bool:
        """Return True if `block_hashes_url` would make no request."""
        is_known = not self._urls.lacking(dataset.uri, [BLOCK_HASHES])
        return is_known or self._is_without(dataset, BLOCK_HASHES)

    def hash_overlay_url(self, dataset: Dataset) -> SignedURL | None:
        """Return a signed URL; None if there is no such overlay, or finding out is not cheap."""
        if self._routes.capabilities().extended or not is_asked_whole(dataset):
            return None
        return self._url_of_hashes(dataset, HASH_OVERLAY)

    def _url_of_hashes(self, dataset: Dataset, which: Identifier) -> SignedURL | None:
        if self._is_without(dataset, which):
            return None

        def ask() -> dict[Identifier, SignedURL]:
            return self._sign_metadata(dataset).hashes

        try:
            return self._urls.get(dataset.uri, which, ask, question=(dataset.uri, BLOCK_HASHES))
        except NotFound as error:
            if error.status is None:  # the answer lacks it
                return None
            raise

    def _is_without(self, dataset: Dataset, which: Identifier) -> bool:
        return boottime_s() < self._without.get((dataset.uri, which), 0.0)

    def forget(self, dataset: Dataset, identifier: Identifier, url: SignedURL) -> None:
        """Drop `url`, which the store refused, unless it was already replaced."""
        self._urls.forget(dataset.uri, identifier, url)

    def forget_host(self, url: SignedURL) -> None:
        """Drop all URLs of a host that cannot be reached."""
        self._urls.forget_host(url)

    def dataset_urls(self, dataset: Dataset) -> dict[str, Any]:
        """Return the answer about a dataset's metadata; keep the items' URLs in it."""
        return self._sign_metadata(dataset).answer

    def _sign_metadata(self, dataset: Dataset) -> _Signed:
        # A server that does not know the parameter ignores it and answers with all.
        before_s = boottime_s()
        response = self._routes.signed(
            "GET",
            "dataset",
            dataset.uri,
            params={"items": "false"},
            max_bytes=max_urls_bytes(MAX_ITEMS_ASKED_WHOLE),
        )
        answer = self._object(response, dataset)
        if answer.pop("item_urls", None):
            self._urls.add(dataset.uri, self._item_urls(response, dataset, before_s))
        found = self._hashes_in(response, answer, dataset, before_s)
        self._urls.add(dataset.uri, found)
        return _Signed(answer, found)

    def _hashes_in(
        self, response: Answer, answer: dict[str, Any], dataset: Dataset, before_s: float
    ) -> dict[Identifier, SignedURL]:
        """Return the URLs of hashes that an answer has; of the others remember that it has none."""
        overlays = answer.get("overlay_urls")
        urls = {
            BLOCK_HASHES: answer.get("block_hashes_url"),
            HASH_OVERLAY: overlays.get(hash_overlay.NAME) if isinstance(overlays, dict) else None,
        }
        found = {}
        for which, url in urls.items():
            if isinstance(url, str) and url_is_usable(url):
                self._without.pop((dataset.uri, which), None)
                found[which] = SignedURL(url, expiry_of(url, answer, response.headers, before_s))
            else:
                self._without[dataset.uri, which] = before_s + WITHOUT_S
        while len(self._without) > MAX_WITHOUT:
            self._without.popitem(last=False)
        return found

    def _sign_batch(
        self,
        dataset: Dataset,
        identifier: Identifier,
        neighbours: Callable[[int], Sequence[Identifier]],
    ) -> dict[Identifier, SignedURL]:
        """Sign an item and its neighbours; the item alone if the server does not know them all."""
        size = self._batch_size
        while True:
            wanted = self._unsigned(dataset, identifier, neighbours, size)
            try:
                urls = self._batch(dataset, wanted)
                self._batch_size = min(size, self._batch_size)
                return urls
            except ProtocolError as error:
                if error.status not in _TOO_MANY or len(wanted) == 1:
                    raise
                size = len(wanted) // 2
                logger.debug("%s: takes smaller batches: %s", self._routes.server_url, error)
            except NotFound:
                if len(wanted) == 1:
                    raise
                urls = self._batch(dataset, [identifier])
                self._disputed[dataset.uri] = None
                if len(self._disputed) > MAX_REMEMBERED:
                    self._disputed.popitem(last=False)
                return urls

    def _unsigned(
        self,
        dataset: Dataset,
        identifier: Identifier,
        neighbours: Callable[[int], Sequence[Identifier]],
        size: int,
    ) -> list[Identifier]:
        """Return up to `size` items to sign together: this one, and the nearest without a URL.

        On both sides and as far off as need be, so that each request brings that many new
        URLs, in any order of reading.
        """
        reach = size
        while True:
            near = neighbours(reach)
            wanted = list(dict.fromkeys([identifier, *self._urls.lacking(dataset.uri, near)]))
            if len(wanted) >= size or len(near) < reach or reach >= MAX_REACH:
                return wanted[:size]
            reach *= 4

    def _batch(
        self, dataset: Dataset, identifiers: Sequence[Identifier]
    ) -> dict[Identifier, SignedURL]:
        before_s = boottime_s()
        try:
            response = self._routes.signed(
                "POST", "items", dataset.uri, json={"identifiers": list(identifiers)}
            )
        except NotFound:
            if len(identifiers) > 1 or not self._routes.lost_extensions():
                raise
            if is_asked_whole(dataset):
                return self._sign_whole(dataset)
            return self._sign_one(dataset, identifiers[0])
        return self._item_urls(response, dataset, before_s)

    def _sign_whole(self, dataset: Dataset) -> dict[Identifier, SignedURL]:
        before_s = boottime_s()
        response = self._routes.signed(
            "GET", "dataset", dataset.uri, max_bytes=max_urls_bytes(MAX_ITEMS_ASKED_WHOLE)
        )
        return self._item_urls(response, dataset, before_s)

    def _sign_one(self, dataset: Dataset, identifier: Identifier) -> dict[Identifier, SignedURL]:
        before_s = boottime_s()
        response = self._routes.signed("GET", "item", dataset.uri, identifier)
        answer = self._object(response, dataset)
        url = answer.get("url")
        if not isinstance(url, str) or not url_is_usable(url):
            raise ProtocolError(f"{self._routes.server_url}: no signed URL for {identifier}")
        self._routes.note_signed(url)
        return {identifier: SignedURL(url, expiry_of(url, answer, response.headers, before_s))}

    def _item_urls(
        self, response: Answer, dataset: Dataset, before_s: float
    ) -> dict[Identifier, SignedURL]:
        answer = self._object(response, dataset)
        urls = string_map(answer.get("item_urls"), "item_urls")
        self._routes.note_signed(next(iter(urls.values()), ""))
        signed = {
            Identifier(key): SignedURL(url, expiry_of(url, answer, response.headers, before_s))
            for key, url in urls.items()
        }
        return signed | self._hashes_in(response, answer, dataset, before_s)

    def _object(self, response: Answer, dataset: Dataset) -> dict[str, Any]:
        answer = response.json()
        if not isinstance(answer, dict):
            raise ProtocolError(
                f"{self._routes.server_url}: signed URLs of {dataset.uri} are not an object"
            )
        return answer


def is_asked_whole(dataset: Dataset) -> bool:
    """Return whether one answer may hold the URLs of all of the dataset's items."""
    return dataset.number_of_items is None or dataset.number_of_items <= MAX_ITEMS_ASKED_WHOLE
