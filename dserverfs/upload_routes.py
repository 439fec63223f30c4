"""What a dserver is asked while a dataset is uploaded.

Used by the uploader, by way of the resolver. Keeps nothing. Blocking and
thread-safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dserverfs.errors import Conflict, DserverfsError, NotFound, ProtocolError, Unreachable
from dserverfs.model import Identifier
from dserverfs.routes import Routes, json_of, quote
from dserverfs.signed_urls import boottime_s, expiry_of

UPLOAD_TIMEOUT_S = 60.0
# Servers of old look at every item at the end, one by one: 6 ms each.
_SECONDS_PER_ITEM = 0.02
MANIFEST_TIMEOUT_S = 120.0


class UploadUrl(NamedTuple):
    """Where to PUT something, and the headers that are signed with it."""

    url: str
    headers: Mapping[str, str]


class UploadUrls(NamedTuple):
    """The server's answer to the start of an upload."""

    uri: str
    readme: UploadUrl
    items: Mapping[Identifier, UploadUrl]
    stored: frozenset[Identifier]  # need no upload; empty if the server does not say
    good_until_s: float  # CLOCK_BOOTTIME


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
        )
        answer = json_of(response)
        try:
            urls = answer["upload_urls"]
            items = {
                Identifier(identifier): UploadUrl(str(entry["url"]), _headers(entry))
                for identifier, entry in urls["items"].items()
            }
            readme = UploadUrl(str(urls["readme"]), {})
            stored = frozenset(Identifier(each) for each in answer.get("stored", ()))
            good_until_s = expiry_of(readme.url, answer, response.headers, before_s)
            return UploadUrls(str(answer["uri"]), readme, items, stored, good_until_s)
        except (KeyError, TypeError, AttributeError) as error:
            raise ProtocolError(f"{self.server_url}: the upload URLs are incomplete") from error

    def complete(self, uri: str, number_of_items: int) -> None:
        """Register the dataset whose README and items are stored.

        If the answer gets lost, or says that nothing is pending, whether the
        dataset is registered decides.
        """
        try:
            self._routes.transport.request(
                "POST",
                "/signed-urls/upload-complete",
                json={"uri": uri},
                timeout_s=self._timeout_s(number_of_items),
            )
        except (Unreachable, ProtocolError, Conflict) as error:
            try:
                self._routes.core("uris", uri)
            except DserverfsError as unknown:
                # Not the answer to the question whether it is there, but to why it may not be.
                raise error from unknown

    def manifest_items(self, uri: str) -> Mapping[str, Any] | None:
        """Return the `items` of a registered dataset's manifest; None if it is not registered."""
        try:
            manifest = json_of(self._routes.core("manifests", uri, timeout_s=MANIFEST_TIMEOUT_S))
        except NotFound:
            return None
        items = manifest.get("items") if isinstance(manifest, dict) else None
        if not isinstance(items, dict):
            raise ProtocolError(f"{self.server_url}: the manifest of {uri} has no items", uri=uri)
        return items

    def _timeout_s(self, number_of_items: int) -> float:
        return UPLOAD_TIMEOUT_S + _SECONDS_PER_ITEM * number_of_items


def _headers(entry: Mapping[str, Any]) -> Mapping[str, str]:
    return {str(name): str(value) for name, value in dict(entry["headers"]).items()}
