"""What a dserver is asked while a dataset is uploaded.

Used by the uploader, by way of the resolver. Keeps nothing. Blocking and
thread-safe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dserverfs import limits
from dserverfs.clock import boottime_s
from dserverfs.errors import (
    Conflict,
    DserverfsError,
    NotFound,
    ProtocolError,
    Unreachable,
    Unsupported,
)
from dserverfs.limits import understood
from dserverfs.model import Identifier
from dserverfs.retry import Deadline, Retries
from dserverfs.routes import Routes, json_of, quote
from dserverfs.signed_urls import expiry_of

UPLOAD_TIMEOUT_S = 60.0
# Servers of old look at every item at the end, one by one: 6 ms each.
_SECONDS_PER_ITEM = 0.02
MANIFEST_TIMEOUT_S = 120.0
# A store puts 10,000 parts together while the server waits for it. Guess.
PARTS_TIMEOUT_S = 300.0


class UploadUrl(NamedTuple):
    """Where to PUT something, and the headers that are signed with it."""

    url: str
    headers: Mapping[str, str]


class UploadUrls(NamedTuple):
    """The server's answer to the start of an upload."""

    uri: str
    readme: UploadUrl
    items: Mapping[Identifier, UploadUrl]
    in_parts: frozenset[Identifier]  # have no URL: too large for one PUT
    stored: frozenset[Identifier]  # need no upload; empty if the server does not say
    good_until_s: float  # CLOCK_BOOTTIME


class Parts(NamedTuple):
    """What the server has of an item that is uploaded in parts."""

    stored: bool  # the whole item
    part_bytes: int  # of each but the last
    etags: Mapping[int, str]  # of the parts that are stored, by their numbers from 1


class PendingUpload(NamedTuple):
    """A dataset that was announced to the server and is not complete."""

    uri: str
    name: str
    started_at: float  # epoch seconds
    number_of_items: int
    size_in_bytes: int


class UploadRoutes:
    """The routes by which a dataset gets onto one server."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes

    @property
    def server_url(self) -> str:
        return self._routes.server_url

    def start(self, base_uri: str, description: Mapping[str, Any]) -> UploadUrls:
        """Announce a dataset; return where to PUT its README and items.

        `created_at` in the description is kept where the server can keep it.
        Repeating it gives fresh URLs. Raises PermissionDenied without register
        permission, Conflict if the dataset exists.
        """
        if not self._routes.capabilities().extended:
            description = {key: description[key] for key in description if key != "created_at"}
        before_s = boottime_s()
        response = self._routes.transport.request(
            "POST",
            f"/signed-urls/upload/{quote(base_uri)}",
            json=description,
            timeout_s=self._timeout_s(len(description["items"])),
            max_bytes=limits.max_urls_bytes(len(description["items"])),
        )
        answer = json_of(response)
        with understood(f"{self.server_url}: the answer about upload URLs"):
            urls = answer["upload_urls"]
            entries = {Identifier(key): entry for key, entry in urls["items"].items()}
            in_parts = frozenset(key for key, entry in entries.items() if entry.get("in_parts"))
            items = {
                identifier: UploadUrl(_url(entry["url"]), _headers(entry))
                for identifier, entry in entries.items()
                if identifier not in in_parts
            }
            readme = UploadUrl(_url(urls["readme"]), {})
            stored = frozenset(Identifier(_text(each)) for each in answer.get("stored", ()))
            good_until_s = expiry_of(readme.url, answer, response.headers, before_s)
            self._routes.note_signed(readme.url)
            uri = _text(answer["uri"])
            return UploadUrls(uri, readme, items, in_parts, stored, good_until_s)

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
        answer = json_of(response)
        if not isinstance(answer, dict):
            raise ProtocolError(f"{self.server_url}: says nothing of parts", uri=uri)
        return answer

    def complete(self, uri: str, number_of_items: int) -> None:
        """Register the dataset whose README and items are stored.

        Not to be done twice: if the answer gets lost, or says that nothing is
        pending, whether the dataset is registered decides; only if it is not, the
        server is asked again.
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
        """Return whether the server says that a dataset is there; False, too, if it cannot say."""
        try:
            self._routes.core("uris", uri)
        except DserverfsError:
            return False
        return True

    def pending(self) -> list[PendingUpload]:
        """Return the user's own pending uploads; raises Unsupported if the server does not tell."""
        self._require_ours("tell which uploads are pending")
        answer = json_of(self._routes.transport.get("/signed-urls/uploads"))
        with understood(f"{self.server_url}: the list of uploads"):
            return [
                PendingUpload(
                    _text(entry["uri"]),
                    _text(entry["name"]),
                    limits.parse_timestamp(entry["started_at"]),
                    int(entry["number_of_items"]),
                    int(entry["size_in_bytes"]),
                )
                for entry in answer["uploads"]
            ]

    def discard(self, uri: str) -> None:
        """Delete a pending upload with what of it is stored; one that is not there is no error.

        Raises Unsupported if the server has no such route, and Conflict if
        another user has begun it or it is a frozen dataset by now.
        """
        self._require_ours("delete a pending upload")
        try:
            self._routes.transport.request("DELETE", f"/signed-urls/upload/{quote(uri)}")
        except NotFound:
            pass

    def _require_ours(self, what: str) -> None:
        if not self._routes.capabilities().extended:
            raise Unsupported(f"{self.server_url} has no route to {what}")

    def manifest_items(self, uri: str) -> Mapping[str, Any] | None:
        """Return the `items` of a registered dataset's manifest; None if it is not registered."""
        try:
            manifest = json_of(
                self._routes.core(
                    "manifests",
                    uri,
                    timeout_s=MANIFEST_TIMEOUT_S,
                    max_bytes=limits.MAX_WHOLE_MANIFEST_BYTES,
                )
            )
        except NotFound:
            return None
        items = manifest.get("items") if isinstance(manifest, dict) else None
        if not isinstance(items, dict):
            raise ProtocolError(f"{self.server_url}: the manifest of {uri} has no items", uri=uri)
        return items

    def _timeout_s(self, number_of_items: int) -> float:
        return UPLOAD_TIMEOUT_S + _SECONDS_PER_ITEM * number_of_items


def _headers(entry: Mapping[str, Any]) -> Mapping[str, str]:
    return {_text(name): _text(value) for name, value in dict(entry["headers"]).items()}


def _url(value: object) -> str:
    """Return a URL as it is; raises TypeError for what is none that can be asked."""
    if not isinstance(value, str) or not limits.url_is_usable(value):
        raise TypeError(f"{limits.quoted(value)} is no URL")
    return value


def _text(value: object) -> str:
    """Return a string as it is; raises TypeError for what is none that can be sent."""
    if not isinstance(value, str) or not limits.is_text(value):
        raise TypeError(f"{limits.quoted(value)} is no text")
    return value
