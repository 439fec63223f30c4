"""The routes of a dserver for uploading a dataset.

Used by the uploader, by way of the resolver. Keeps nothing. Blocking and
thread-safe.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dserverfs.base import limits
from dserverfs.base.clock import boottime_s
from dserverfs.base.errors import (
    Conflict,
    DserverfsError,
    ProtocolError,
    Unreachable,
    UnusableAnswer,
)
from dserverfs.base.item_stream import ItemStream
from dserverfs.base.limits import understood
from dserverfs.base.model import Identifier
from dserverfs.base.retry import AWAY_OR_EXPIRED, Deadline, Retries
from dserverfs.remote.answers import Answer
from dserverfs.remote.json_body import Items, JsonBody
from dserverfs.remote.routes import Routes, quote
from dserverfs.remote.signed_urls import expiry_of
from dserverfs.remote.upload_urls import UploadUrl, UploadUrls, UrlTable

UPLOAD_TIMEOUT_S = 60.0
# Servers of old look at every item at the end, one by one: 6 ms each.
_SECONDS_PER_ITEM = 0.02
_STORED_BYTES = 64  # an identifier in the list of stored items
# A store puts 10,000 parts together while the server waits for it. Guess.
PARTS_TIMEOUT_S = 300.0


class Parts(NamedTuple):
    """The state of an item that is uploaded in parts."""

    stored: bool  # the whole item
    part_bytes: int  # of each but the last
    etags: Mapping[int, str]  # of the parts that are stored, by their numbers from 1


class UploadRoutes:
    """The routes by which a dataset gets onto one server."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes

    @property
    def server_url(self) -> str:
        return self._routes.server_url

    def start(self, base_uri: str, description: Mapping[str, Any], items: Items) -> UploadUrls:
        """Announce a dataset; return where to PUT its README and items.

        `created_at` in the description is kept where the server can keep it.
        Repeating it gives fresh URLs. Raises PermissionDenied without register
        permission, Conflict if the dataset exists. Neither the items nor their URLs
        are ever in memory all at once.
        """
        if not self._routes.capabilities().extended:
            description = {key: description[key] for key in description if key != "created_at"}
        path = f"/signed-urls/upload/{quote(base_uri)}"
        body = JsonBody(description, items)

        def attempt(limit: Deadline) -> UploadUrls:
            before_s = boottime_s()
            response = self._routes.transport.stream(path, limit, body)
            return self._read_urls(response, limit, len(items), before_s)

        deadline = Deadline(self._timeout_s(len(items)))
        return Retries(deadline, what=f"POST {path}").run(attempt)

    def _read_urls(
        self, response: Answer, limit: Deadline, number_of_items: int, before_s: float
    ) -> UploadUrls:
        what = f"{self.server_url}: the answer about upload URLs"
        stream = ItemStream(
            what,
            inside=["upload_urls"],
            more_beside_bytes=number_of_items * _STORED_BYTES,
        )
        table = UrlTable()
        in_parts: set[Identifier] = set()
        pieces = self._routes.transport.read_pieces(
            response, limit, max_bytes=limits.max_urls_bytes(number_of_items)
        )
        with contextlib.closing(pieces):
            for piece in pieces:
                with _usable():
                    some = stream.feed(piece)
                self._add_urls(some, table, in_parts, what)
        with _usable():
            last = stream.close()
        self._add_urls(last, table, in_parts, what)
        table.complete()
        answer = stream.beside
        with understood(what):
            readme = UploadUrl(_text(stream.beside_items["readme"]), {})
            stored = frozenset(Identifier(_text(each)) for each in answer.get("stored", ()))
            good_until_s = expiry_of(readme.url, answer, response.headers, before_s)
            uri = _text(answer["uri"])
            block_hashes = None
            if (entry := answer.get("block_hashes_url")) is not None:
                block_hashes = UploadUrl(_url(entry["url"]), _headers(entry))
        self._routes.note_signed(readme.url)
        return UploadUrls(
            uri, readme, table, frozenset(in_parts), stored, good_until_s, block_hashes
        )

    def _add_urls(
        self, entries: Mapping[str, Any], table: UrlTable, in_parts: set[Identifier], what: str
    ) -> None:
        with understood(what):
            found = []
            for key, entry in entries.items():
                identifier = Identifier(_text(key))
                if entry.get("in_parts"):
                    in_parts.add(identifier)
                else:
                    found.append((identifier, UploadUrl(_text(entry["url"]), _headers(entry))))
        table.add(found)

    def takes_parts(self) -> bool:
        """Return whether the server takes items that are too large for one PUT."""
        return self._routes.capabilities().parts

    def begin_parts(self, uri: str, identifier: Identifier) -> Parts:
        """Begin an item in parts, or take it up again."""
        answer = self._parts("", uri, identifier, {})
        with understood(f"{self.server_url}: the answer about parts of {uri}"):
            if answer["stored"] is True:
                return Parts(True, 0, {})
            etags = {int(number): _text(etag) for number, etag in answer["etags"].items()}
            part_bytes = answer["part_bytes"]
        if not limits.size_is_usable(part_bytes) or part_bytes == 0:
            raise ProtocolError(
                f"{self.server_url}: parts of {limits.quoted(part_bytes)} bytes", uri=uri
            )
        return Parts(False, part_bytes, etags)

    def sign_part(self, uri: str, identifier: Identifier, number: int, md5: str) -> UploadUrl:
        """Return where to PUT a part that has this MD5."""
        answer = self._parts("/sign", uri, identifier, {"parts": {str(number): md5}})
        with understood(f"{self.server_url}: the answer with the URL of a part of {uri}"):
            entry = answer["urls"][str(number)]
            return UploadUrl(_url(entry["url"]), _headers(entry))

    def complete_parts(self, uri: str, identifier: Identifier, etags: Sequence[str]) -> None:
        """Have the item made of its parts; after an error `begin_parts` tells whether it is."""
        self._parts("/complete", uri, identifier, {"etags": list(etags)})

    def _parts(
        self, step: str, uri: str, identifier: Identifier, more: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        response = self._routes.transport.request(
            "POST",
            f"/signed-urls/upload-parts{step}",
            json={"uri": uri, "identifier": identifier, **more},
            timeout_s=PARTS_TIMEOUT_S,
        )
        answer = response.json()
        if not isinstance(answer, dict):
            raise ProtocolError(f"{self.server_url}: says nothing of parts", uri=uri)
        return answer

    def takes_block_hashes(self) -> bool:
        """Return whether the server keeps those of datasets that are registered."""
        return self._routes.capabilities().block_hashes

    def place_of_block_hashes(self, uri: str) -> UploadUrl:
        """Return where to PUT the block hashes of a registered dataset.

        Raises Conflict if it has some, ProtocolError if it has no item of more than one block.
        """
        path = f"/signed-urls/block-hashes/{quote(uri)}"
        answer = self._routes.transport.request("POST", path, json={}).json()
        with understood(f"{self.server_url}: the answer with the URL of block hashes of {uri}"):
            return UploadUrl(_url(answer["url"]), _headers(answer))

    def complete_block_hashes(self, uri: str) -> None:
        """Have what was PUT there taken; raises Conflict if the dataset has some by now.

        ProtocolError is raised if they are not those of its manifest.
        """
        self._routes.transport.request(
            "POST", "/signed-urls/block-hashes-complete", json={"uri": uri}
        )

    def complete(self, uri: str, number_of_items: int) -> None:
        """Register the dataset whose README and items are stored.

        Not to be done twice: if the answer gets lost, or says that nothing is
        pending, whether the dataset is registered decides; only if it is not, the
        server is asked again. If nobody says whether it is, that is what is raised:
        it may be.
        """

        def attempt(limit: Deadline) -> None:
            try:
                self._routes.transport.request_once(
                    "POST", "/signed-urls/upload-complete", limit, json={"uri": uri}
                )
            except (Unreachable, ProtocolError, Conflict):
                if not self._is_registered(uri):
                    raise

        deadline = Deadline(self._timeout_s(number_of_items))
        Retries(deadline, what=f"completion of {uri}").run(attempt)

    def _is_registered(self, uri: str) -> bool:
        """Return whether the server has a dataset; raises what keeps it from saying so."""
        try:
            self._routes.core("uris", uri)
        except AWAY_OR_EXPIRED:
            raise
        except DserverfsError:
            return False
        return True

    def _timeout_s(self, number_of_items: int) -> float:
        return UPLOAD_TIMEOUT_S + _SECONDS_PER_ITEM * number_of_items


@contextlib.contextmanager
def _usable() -> Iterator[None]:
    """Raise UnusableAnswer for JSON that is not as it should be."""
    try:
        yield
    except ProtocolError as error:
        raise UnusableAnswer(f"{error}; is this a dserver?") from error


def _headers(entry: Mapping[str, Any]) -> Mapping[str, str]:
    return {_text(name): _text(value) for name, value in dict(entry["headers"]).items()}


def _url(value: object) -> str:
    """Return `value` if it is a URL that can be asked; raises TypeError."""
    if not isinstance(value, str) or not limits.url_is_usable(value):
        raise TypeError(f"{limits.quoted(value)} is no URL")
    return value


def _text(value: object) -> str:
    """Return `value` if it is a text that can be sent; raises TypeError."""
    if not isinstance(value, str) or not limits.is_text(value):
        raise TypeError(f"{limits.quoted(value)} is no text")
    return value
