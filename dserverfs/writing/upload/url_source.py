"""An upload that was announced: its signed URLs, announced again before they expire.

Used by the uploader and the sender's threads. One announcement however many
threads find that the URLs have expired. Thread-safe; times are of
CLOCK_BOOTTIME, so that a suspended machine announces again when it wakes up.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from dserverfs.base.clock import boottime_s
from dserverfs.base.errors import ProtocolError
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.remote.upload_api import UploadRoutes
from dserverfs.remote.upload_urls import UploadUrls

logger = logging.getLogger(__name__)


class Announcement:
    """The URLs of one upload."""

    def __init__(
        self,
        routes: UploadRoutes,
        dataset: LocalDataset,
        base_uri: str,
        *,
        clock_s: Callable[[], float] = boottime_s,
    ) -> None:
        self.routes = routes
        self._dataset = dataset
        self._base_uri = base_uri
        self._clock_s = clock_s
        self._lock = threading.Lock()  # held while the server is asked: all wait for one answer
        self._urls: UploadUrls | None = None

    def urls(self) -> UploadUrls:
        """Return URLs that are good for a while; raises what the server says."""
        with self._lock:
            if self._urls is None or self._clock_s() >= self._urls.good_until_s:
                self._urls = self._announce()
            return self._urls

    def renewed(self, refused: UploadUrls) -> UploadUrls:
        """Return other URLs than those that the store refused."""
        with self._lock:
            if self._urls is refused:
                logger.debug("%s: announced again for URLs that are not refused", refused.uri)
                self._urls = self._announce()
            assert self._urls is not None
            return self._urls

    def _announce(self) -> UploadUrls:
        dataset = self._dataset
        urls = self.routes.start(self._base_uri, dataset.description(), dataset.described_items())
        for identifier in dataset.items:
            if identifier not in urls.in_parts and identifier not in urls.items:
                raise ProtocolError(f"{urls.uri}: no upload URL for item {identifier}")
        if self._urls is not None and self._urls.uri != urls.uri:
            raise ProtocolError(f"{self._urls.uri} is {urls.uri} when announced again")
        return urls
