"""Listings of a dserver's datasets: of a base URI, of a uuid, of a search; all pages of them.

Used by the resolver. A listing is no snapshot, and servers differ in what they
say about its length; so every page is judged by what it brings. Blocking and
thread-safe.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from dserverfs.base.errors import NotFound, ProtocolError, Unreachable
from dserverfs.base.limits import (
    MAX_LISTED_DATASETS,
    MAX_LISTING_BYTES,
    MAX_LISTING_PAGE_BYTES,
    count_is_usable,
    parse_json,
    understood,
)
from dserverfs.base.model import UUID, Dataset
from dserverfs.base.pools import each
from dserverfs.base.printable import public_url
from dserverfs.remote.answers import Answer
from dserverfs.remote.routes import Routes

logger = logging.getLogger(__name__)

PAGE_SIZE = 100  # the largest a dserver gives
PARALLEL_PAGES = 4
PAGES_AHEAD = 16
SORT = "frozen_at,uuid"  # what is registered while we ask comes last


class SearchQuery(NamedTuple):
    """What a dserver's search can be asked; what is empty is not asked.

    A dataset has all of the tags and, of `free_text`, any word, as a stem, or all phrases in
    double quotes; where it looks for these is the server's. `base_uris` has one of its own.
    """

    base_uris: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    creator: str | None = None
    free_text: str | None = None

    def body(self) -> dict[str, Any]:
        """Return the body of POST /uris."""
        asked = {
            "base_uris": list(self.base_uris),
            "tags": list(self.tags),
            "creator_usernames": [] if self.creator is None else [self.creator],
        }
        body: dict[str, Any] = {key: values for key, values in asked.items() if values}
        return body if self.free_text is None else {**body, "free_text": self.free_text}


class _Page(NamedTuple):
    entries: list[Any]
    total: int | None  # of entries on all pages, if the server says
    size_in_bytes: int


class _Pages:
    """The pages of one listing, put together."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._found: dict[str, Dataset | ProtocolError] = {}  # by URI; or why it is none
        self.shrunk = False  # the listing got shorter between two pages
        self._size_in_bytes = 0
        self._rows = 0
        self._total: int | None = None  # as the last page that tells one says

    def add(self, page: _Page) -> bool:
        """Take what a page holds; return whether any of it is new.

        Raises ProtocolError if it is more than a listing may have.
        """
        before = len(self._found)
        for entry in page.entries:
            found = _read(entry)
            uri = found.uri if isinstance(found, Dataset) else _key_of(entry)
            self._found.setdefault(uri, found)
        is_new = len(self._found) > before
        if is_new:  # some servers give a page again in place of another
            self._rows += len(page.entries)
        if page.total is not None:
            self.shrunk = self.shrunk or (self._total is not None and page.total < self._total)
            self._total = page.total
        self._size_in_bytes += page.size_in_bytes
        if len(self._found) > MAX_LISTED_DATASETS or self._size_in_bytes > MAX_LISTING_BYTES:
            raise ProtocolError(
                f"the listing of {self._what} is not shown: it has more than"
                f" {MAX_LISTED_DATASETS} datasets or {MAX_LISTING_BYTES} bytes"
            )
        return is_new

    def add_all(self, others: _Pages) -> None:
        """Take what the same listing had when it was asked for once more."""
        self._found |= others._found

    def missing(self) -> str | None:
        """Return how the server contradicts itself, if it told of more than it listed."""
        if self._total is None or self._rows >= self._total:
            return None
        return f"it has {self._total} entries, and {self._rows} came"

    def datasets(self) -> list[Dataset]:
        """Return the datasets; warn, in one line, of entries that are none."""
        datasets, wrong = [], []
        for found in self._found.values():
            if isinstance(found, Dataset):
                datasets.append(found)
            else:
                wrong.append(found)
        if wrong:
            more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            logger.warning("a dataset of %s is left out: %s%s", self._what, wrong[0], more)
        return datasets


class Listings:
    """Listings of one server."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._sort: str | None = SORT  # None once the server has refused it

    def datasets(self, base_uri: str) -> list[Dataset]:
        """Return every dataset registered in `base_uri`, oldest first.

        A dataset seen twice is returned once. Entries that cannot be read are
        left out with a warning. Raises Unreachable if fewer entries came than the
        server says there are, because what is not listed counts as deleted, and
        ProtocolError for a listing without an end.
        """
        listed = self._complete(base_uri, SearchQuery(base_uris=(base_uri,)))
        datasets = {dataset.uuid: dataset for dataset in listed if dataset.base_uri == base_uri}
        return sorted(datasets.values(), key=lambda dataset: (dataset.frozen_at, dataset.uuid))

    def found(self, query: SearchQuery) -> list[Dataset]:
        """Return every dataset that the server's search finds; raises what `datasets` does."""
        return self._complete("what was searched for", query)

    def some_datasets(self, base_uri: str) -> list[Dataset]:
        """Return the first datasets of `base_uri`: one request."""
        pages = _Pages(f"{self._routes.server_url}, {base_uri},")
        pages.add(self._page(base_uri, SearchQuery(base_uris=(base_uri,)), 1))
        return pages.datasets()

    def datasets_by_uuid(self, uuid: UUID) -> list[Dataset]:
        """Return the datasets of that uuid in every base URI the user may search."""
        for spelling in (uuid, uuid.upper()):  # some servers compare letter by letter
            try:
                response = self._routes.transport.get(
                    f"/uuids/{spelling}", params={"page_size": PAGE_SIZE}
                )
            except NotFound:
                continue
            pages = _Pages(f"{self._routes.server_url}, by the uuid {uuid},")
            pages.add(_page_of(response))
            found = pages.datasets()
            if found:
                return [dataset for dataset in found if dataset.uuid == uuid]
        return []

    def _complete(self, what: str, query: SearchQuery) -> list[Dataset]:
        """Return all datasets of a listing, `what` in messages."""
        pages = self._pages(what, query)
        if pages.missing():
            pages = self._pages(what, query)
        elif pages.shrunk:
            # A deletion moves later entries to the end of a page that was read already.
            before, pages = pages, self._pages(what, query)
            pages.add_all(before)
        if (said := pages.missing()) is not None:
            raise Unreachable(
                f"{self._routes.server_url}: the listing of {what} is incomplete: {said}"
            )
        return pages.datasets()

    def _pages(self, what: str, query: SearchQuery) -> _Pages:
        """Return every page there is."""
        first = self._page(what, query, 1)
        found = _Pages(f"{self._routes.server_url}, {what},")
        found.add(first)
        page_size = len(first.entries)  # some give fewer than they are asked for
        if page_size == 0 or page_size == first.total:
            return found
        pages = -(-first.total // page_size) if first.total else 1
        page, last, is_new = 1, first, True
        with ThreadPoolExecutor(PARALLEL_PAGES, thread_name_prefix="pages") as pool:
            # A few ahead: that there are so many is what a server says, and no more.
            while is_new and page < pages:
                wanted = range(page + 1, min(page + PAGES_AHEAD, pages) + 1)
                is_new = False
                for last in each(pool, partial(self._page, what, query), wanted):
                    is_new = found.add(last) or is_new
                page = wanted[-1]
        # Entries registered since, or those of a server that tells no total; a page that
        # brings nothing new ends it, as some servers give the last page again.
        while len(last.entries) >= page_size:
            page += 1
            last = self._page(what, query, page)
            if not found.add(last):
                break
        return found

    def _page(self, what: str, query: SearchQuery, page: int) -> _Page:
        params: dict[str, Any] = {"page": page, "page_size": PAGE_SIZE}
        sort = self._sort
        if sort is not None:
            params["sort"] = sort
        try:
            response = self._routes.transport.request(
                "POST",
                "/uris",
                params=params,
                json=query.body(),
                max_bytes=MAX_LISTING_PAGE_BYTES,
            )
        except NotFound as error:
            if page == 1:  # it lists nothing: that is not to say that there is nothing
                raise ProtocolError(
                    f"{self._routes.server_url} cannot list {what}: {error}",
                    status=error.status,
                ) from error
            return _Page([], None, 0)  # beyond the last page, on some servers
        except ProtocolError as error:
            if error.status != 422 or sort is None:
                raise
            logger.debug("%s: does not sort: %s", self._routes.server_url, error)
            self._sort = None
            try:
                return self._page(what, query, page)
            except ProtocolError:
                self._sort = sort  # it was not for that
                raise
        return _page_of(response)


def _page_of(response: Answer) -> _Page:
    entries = response.json()
    if not isinstance(entries, list):
        raise ProtocolError(f"{public_url(response.url)}: the listing is not a list")
    return _Page(entries, _total(response.headers), len(response.content))


def _read(entry: Any) -> Dataset | ProtocolError:
    try:
        return Dataset.from_json(entry)
    except ProtocolError as error:
        return error


def _key_of(entry: Any) -> str:
    """Return what tells an entry that is no dataset from others."""
    uri = entry.get("uri") if isinstance(entry, dict) else None
    return uri if isinstance(uri, str) else json.dumps(entry)[:1000]


def _total(headers: Mapping[str, str]) -> int | None:
    with contextlib.suppress(ProtocolError), understood("X-Pagination"):
        total = parse_json(headers["X-Pagination"], "X-Pagination")["total"]
        return int(total) if count_is_usable(total) else None
    return None
