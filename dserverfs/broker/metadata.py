"""A frozen dataset's tags, overlays and annotations, each read when it is asked for.

Which there are is one request to the server, a content another one to the store.
Believed for a minute, as on the mount. Thread-safe.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from dserverfs.base.errors import DserverfsError, NotFound
from dserverfs.base.model import Dataset
from dserverfs.base.retry import Deadline, Retries, refused_url
from dserverfs.remote.api import MetadataUrls, Resolver
from dserverfs.remote.dserver_http import METADATA_TIMEOUT_S

FRESH_S = 60.0
OVERLAYS, ANNOTATIONS = "overlays", "annotations"


class _Known(NamedTuple):
    """What was found at a moment."""

    tags: tuple[str, ...]
    urls: Mapping[str, Mapping[str, str]]  # by kind and name
    contents: dict[tuple[str, str], bytes]  # by kind and name
    until_s: float


class FrozenMetadata:
    """Of one dataset."""

    def __init__(self, resolver: Resolver, dataset: Dataset) -> None:
        self._resolver = resolver
        self._dataset = dataset
        self._lock = threading.Lock()
        self._known: _Known | None = None

    def tags(self) -> list[str]:
        with self._lock:
            return sorted(self._known_locked().tags)

    def names(self, kind: str) -> list[str]:
        """Return the names of all overlays or annotations."""
        with self._lock:
            known = self._known_locked()
            there = set(known.urls[kind]) | {name for each, name in known.contents if each == kind}
        return sorted(there)

    def content(self, kind: str, name: str) -> bytes:
        """Return the JSON text of an overlay or annotation; raises NotFound."""

        def drop_url(error: DserverfsError) -> None:
            if refused_url(error):
                self._known = None

        with self._lock:
            retries = Retries(Deadline(METADATA_TIMEOUT_S), repeatable=refused_url)
            return retries.run(lambda limit: self._content_locked(kind, name), on_failure=drop_url)

    def forget(self) -> None:
        """Ask anew: something was changed."""
        with self._lock:
            self._known = None

    def _content_locked(self, kind: str, name: str) -> bytes:
        known = self._known_locked()
        content = known.contents.get((kind, name))
        if content is None:
            url = known.urls[kind].get(name)
            if url is None:
                raise NotFound(
                    f"{self._dataset.uri} has nothing named {name!r} among its {kind}",
                    uri=self._dataset.uri,
                )
            content = known.contents[kind, name] = self._resolver.read_metadata(url)
        return content

    def _known_locked(self) -> _Known:
        if self._known is None or time.monotonic() >= self._known.until_s:
            self._known = self._ask()
        return self._known

    def _ask(self) -> _Known:
        until_s = time.monotonic() + FRESH_S
        self._resolver.require_signed_urls()
        if self._resolver.signs_metadata(self._dataset):
            urls: MetadataUrls = self._resolver.metadata_urls(self._dataset)
            by_kind = {OVERLAYS: urls.overlays, ANNOTATIONS: urls.annotations}
            return _Known(urls.tags, by_kind, {}, until_s)
        metadata = self._resolver.metadata(self._dataset)
        contents = {(OVERLAYS, name): text for name, text in metadata.overlays.items()}
        contents |= {(ANNOTATIONS, name): text for name, text in metadata.annotations.items()}
        return _Known(metadata.tags, {OVERLAYS: {}, ANNOTATIONS: {}}, contents, until_s)
