"""What the index of one dserver says: which datasets a search finds, README, tags, annotations.

Used by the resolver, where the store need not be asked or cannot be, and by the catalogue,
which finds datasets. On some servers the index is older than the store. Blocking and
thread-safe; keeps nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dserverfs.base import limits
from dserverfs.base.errors import NotFound, ProtocolError
from dserverfs.base.limits import is_text, understood
from dserverfs.base.model import Dataset
from dserverfs.remote.listings import Listings, SearchQuery
from dserverfs.remote.routes import Routes


class ServerIndex:
    """The index of one server. Of a dataset that is not there every question raises NotFound."""

    def __init__(self, routes: Routes, listings: Listings) -> None:
        self._routes = routes
        self._listings = listings

    def is_searched(self) -> bool:
        """Return whether the server has a search, as every dservercore has."""
        return self._routes.capabilities().searches

    def search(self, query: SearchQuery) -> list[Dataset]:
        """Return every dataset that the search finds; as `Listings.found`."""
        return self._listings.found(query)

    def has(self, dataset: Dataset) -> bool:
        """Return whether a dataset is there: some searches find what was deleted."""
        try:
            self._routes.core("uris", dataset.uri)
        except NotFound:
            return False
        return True

    def readme(self, dataset: Dataset) -> bytes:
        answer = self._routes.core(
            "readmes", dataset.uri, max_bytes=limits.MAX_README_ANSWER_BYTES
        ).json()
        readme = answer.get("readme") if isinstance(answer, dict) else None
        if isinstance(readme, str):
            with understood(self._what("the README", dataset)):
                return readme.encode("utf-8")
        if isinstance(readme, dict):  # old servers keep it parsed; JSON is YAML
            return json.dumps(readme, indent=2).encode("utf-8")
        raise ProtocolError(f"{self._what('the README', dataset)} is no text")

    def tags(self, dataset: Dataset) -> tuple[str, ...]:
        """Return the tags, sorted, without values that are no text."""
        answer = self._routes.core("tags", dataset.uri).json()
        with understood(self._what("the tags", dataset)):
            tags = answer["tags"]
            if not isinstance(tags, list):
                raise TypeError("tags is no list")
        return sorted_texts(tags)

    def annotations(self, dataset: Dataset) -> Mapping[str, Any]:
        answer = self._routes.core(
            "annotations", dataset.uri, max_bytes=limits.MAX_ANNOTATIONS_BYTES
        ).json()
        with understood(self._what("the annotations", dataset)):
            return {str(name): value for name, value in answer["annotations"].items()}

    def _what(self, part: str, dataset: Dataset) -> str:
        return f"{self._routes.server_url}: {part} of {dataset.uri}"


def sorted_texts(values: list[Any]) -> tuple[str, ...]:
    """Return the values that are texts, sorted."""
    return tuple(sorted(value for value in values if is_text(value)))
