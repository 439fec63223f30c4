"""Items that are too large for one PUT of S3, in parts that the server signs one by one.

Used by the sender, for servers that sign parts.
"""

from __future__ import annotations

from dserverfs.base.clock import boottime_s
from dserverfs.base.errors import Conflict, ProtocolError, Unreachable
from dserverfs.base.model import Identifier, Item
from dserverfs.remote.upload_api import UploadRoutes
from dserverfs.remote.upload_urls import UploadUrl
from dserverfs.writing.upload.pieces import PieceSender

# Not as long as they are signed for: a part is sent as soon as it is signed.
_URL_LIFE_S = 600.0


class PartSender:
    """Gets items stored in parts."""

    def __init__(self, routes: UploadRoutes, pieces: PieceSender) -> None:
        self._routes = routes
        self._pieces = pieces

    def send(self, uri: str, item: Item, descriptor: int) -> int:
        """Return when the item is stored, with how many bytes of it were there already.

        Raises ItemChanged if the file is not what was announced, and what server
        and store say; parts that are stored stay for the next time.
        """
        begun = self._routes.begin_parts(uri, item.identifier)
        if begun.stored:
            return item.size_in_bytes
        etags = self._pieces.send(
            item,
            descriptor,
            begun.part_bytes,
            lambda number, md5: _PartTarget(self._routes, uri, item.identifier, number, md5),
            begun.etags,
        )
        if not all(etags):
            raise ProtocolError(f"{item.relpath}: the store names no ETag of a part")
        try:
            self._routes.complete_parts(uri, item.identifier, etags)
        except (Unreachable, ProtocolError, Conflict):
            # The answer may be what was lost.
            if not self._routes.begin_parts(uri, item.identifier).stored:
                raise
        return 0


class _PartTarget:
    """The URL of one part; for one thread."""

    def __init__(
        self, routes: UploadRoutes, uri: str, identifier: Identifier, number: int, md5: str
    ) -> None:
        self._routes = routes
        self._uri = uri
        self._identifier = identifier
        self._number = number
        self._md5 = md5
        self._url: UploadUrl | None = None
        self._good_until_s = 0.0

    def url(self) -> UploadUrl:
        if self._url is None or boottime_s() >= self._good_until_s:
            self._good_until_s = boottime_s() + _URL_LIFE_S
            self._url = self._routes.sign_part(self._uri, self._identifier, self._number, self._md5)
        return self._url

    def renew(self) -> None:
        self._url = None
