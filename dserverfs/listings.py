"""Which datasets a dserver lists, below a base URI or with a uuid: all pages of them.

Used by the resolver. A listing is no snapshot, and servers differ in what they
say about its length; so every page is judged by what it brings. Blocking and
thread-safe.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from dserverfs.errors import NotFound, ProtocolError, Unreachable
from dserverfs.model import UUID, Dataset
from dserverfs.routes import Routes, json_of

logger = logging.getLogger(__name__)

PAGE_SIZE = 100  # the largest a dserver gives
PARALLEL_PAGES = 4
SORT = "frozen_at,uuid"  # what is registered while we ask comes last


class _Page(NamedTuple):
    entries: list[Any]
    total: int | None  # of entries on all pages, if the server says


class _Pages:
    """The pages of one listing, put together."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}  # by URI
        self.shrunk = False  # the listing got shorter meanwhile
        self._rows = 0
        self._total: int | None = None  # as the last page that tells one says

    def add(self, page: _Page) -> bool:
        """Take what a page holds; return whether any of it is new."""
        before = len(self.entries)
        for entry in page.entries:
            uri = entry.get("uri") if isinstance(entry, dict) else None
            self.entries.setdefault(str(uri), entry)
        is_new = len(self.entries) > before
        if is_new:  # some servers give a page again in place of another
            self._rows += len(page.entries)
        if page.total is not None:
            self.shrunk = self.shrunk or (self._total is not None and page.total < self._total)
            self._total = page.total
        return is_new

    def missing(self) -> str | None:
        """Return how the server contradicts itself, if it told of more than it listed."""
        if self._total is None or self._rows >= self._total:
            return None
        return f"it has {self._total} entries, and {self._rows} came"


class Listings:
    """Listings of one server."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._sort: str | None = SORT  # None once the server has refused it

    def datasets(self, base_uri: str) -> list[Dataset]:
        """Return every dataset registered in `base_uri`, oldest first.

        A dataset seen twice is returned once. Entries that cannot be read are
        left out with a warning. Raises Unreachable if fewer entries came than the
        server says there are: what is not listed counts as deleted.
        """
        pages = self._pages(base_uri)
        entries = pages.entries
        if pages.missing():
            pages = self._pages(base_uri)
            entries = pages.entries
        elif pages.shrunk:
            # What was deleted moved others to the end of a page that was here already.
            pages = self._pages(base_uri)
            entries |= pages.entries
        if (said := pages.missing()) is not None:
            raise Unreachable(
                f"{self._routes.server_url}: the listing of {base_uri} is incomplete: {said}"
            )
        datasets: dict[UUID, Dataset] = {}
        for entry in entries.values():
            try:
                dataset = Dataset.from_json(entry)
            except ProtocolError as error:
                logger.warning(
                    "%s: a dataset of %s is left out: %s", self._routes.server_url, base_uri, error
                )
                continue
            if dataset.base_uri == base_uri:
                datasets[dataset.uuid] = dataset
        return sorted(datasets.values(), key=lambda dataset: (dataset.frozen_at, dataset.uuid))

    def datasets_by_uuid(self, uuid: UUID) -> list[Dataset]:
        """Return the datasets of that uuid in every base URI the user may search."""
        for spelling in (uuid, uuid.upper()):  # some servers compare letter by letter
            try:
                response = self._routes.transport.get(
                    f"/uuids/{spelling}", params={"page_size": PAGE_SIZE}
                )
            except NotFound:
                continue
            entries = json_of(response)
            if not isinstance(entries, list):
                raise ProtocolError(f"{response.url}: is not a list")
            found = [Dataset.from_json(entry) for entry in entries]
            if found:
                return [dataset for dataset in found if dataset.uuid == uuid]
        return []

    def _pages(self, base_uri: str) -> _Pages:
        """Return every page there is."""
        first = self._page(base_uri, 1)
        found = _Pages()
        found.add(first)
        page_size = len(first.entries)  # some give fewer than they are asked for
        if page_size == 0 or page_size == first.total:
            return found
        pages = -(-first.total // page_size) if first.total else 1
        last = first
        if pages > 1:
            with ThreadPoolExecutor(PARALLEL_PAGES, thread_name_prefix="pages") as pool:
                for last in pool.map(lambda page: self._page(base_uri, page), range(2, pages + 1)):
                    found.add(last)
        # What came meanwhile, or what a server that tells no total has; a page that
        # brings nothing new ends it, as some servers give the last page again.
        page = pages
        while len(last.entries) >= page_size:
            page += 1
            last = self._page(base_uri, page)
            if not found.add(last):
                break
        return found

    def _page(self, base_uri: str, page: int) -> _Page:
        params: dict[str, Any] = {"page": page, "page_size": PAGE_SIZE}
        sort = self._sort
        if sort is not None:
            params["sort"] = sort
        try:
            response = self._routes.transport.request(
                "POST", "/uris", params=params, json={"base_uris": [base_uri]}
            )
        except NotFound as error:
            if page == 1:  # it lists nothing: that is not to say that there is nothing
                raise ProtocolError(
                    f"{self._routes.server_url} cannot list {base_uri}: {error}",
                    status=error.status,
                ) from error
            return _Page([], None)  # beyond the last page, on some servers
        except ProtocolError as error:
            if error.status != 422 or sort is None:
                raise
            logger.debug("%s: does not sort: %s", self._routes.server_url, error)
            self._sort = None
            return self._page(base_uri, page)
        entries = json_of(response)
        if not isinstance(entries, list):
            raise ProtocolError(
                f"{self._routes.server_url}: the listing of {base_uri} is not a list"
            )
        return _Page(entries, _total(response.headers))


def _total(headers: Mapping[str, str]) -> int | None:
    try:
        total = int(json.loads(headers["X-Pagination"])["total"])
    except (KeyError, ValueError, TypeError):
        return None
    return total if total >= 0 else None
