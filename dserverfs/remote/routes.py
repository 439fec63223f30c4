"""The routes of one dserver, and the form that URIs have in their paths.

Used by the resolver's parts, which know the questions. Remembers two findings about a
server: its capabilities, and whether a proxy before it spoils encoded slashes. Blocking
and thread-safe.
"""

from __future__ import annotations

import logging
import re
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dserverfs.base import wire_names
from dserverfs.base.errors import (
    DserverfsError,
    NotAuthenticated,
    NotFound,
    PermissionDenied,
    ProtocolError,
    Unreachable,
    Unsupported,
)
from dserverfs.base.limits import is_text, url_is_usable
from dserverfs.base.loopback import is_loopback
from dserverfs.base.printable import public_url
from dserverfs.base.retry import Deadline
from dserverfs.remote.answers import Answer
from dserverfs.remote.dserver_http import ServerTransport

logger = logging.getLogger(__name__)

# Names under which /config/versions lists the server itself, by age.
_CORE_NAMES = ("dservercore", "dserver", "dtool_lookup_server")
# The last release of dservercore that cannot change a README, a tag or an annotation.
_LAST_WITHOUT_CHANGES = (0, 22, 0)
# For the first request: one lost connection is survived, a wrong address is told soon.
FIRST_ATTEMPTS = 2
MAX_PLAIN_STORES = 100  # that are warned of
_RELEASE = re.compile(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?\Z")


@dataclass(frozen=True)
class Capabilities:
    """The routes beyond dservercore's that a server has: see `wire_names`."""

    signed_urls: bool
    extended: bool
    parts: bool = False
    changes_metadata: bool = False
    publishes: bool = False
    block_hashes: bool = False  # takes, keeps and signs those of a dataset's blocks
    searches: bool = False
    core_version: str = "of unknown version"

    @property
    def metadata_writes(self) -> bool | None:
        """True if README, tags and annotations can be changed; None: to be found out."""
        if self.changes_metadata:
            return True
        release = _RELEASE.match(self.core_version)
        if release is None:
            return None
        numbers = tuple(int(number or 0) for number in release.groups())
        return None if numbers > _LAST_WITHOUT_CHANGES else False

    @property
    def index_may_lag(self) -> bool:
        """True if README, tags and annotations in the server's index may differ from the store's.

        dservercore's development branch changes the store, and with the released
        retrieve plugins not its index.
        """
        return self.signed_urls and not self.changes_metadata and self.metadata_writes is not False


class Routes:
    """Requests to the routes of one dserver."""

    def __init__(self, transport: ServerTransport) -> None:
        self.transport = transport
        self._capabilities: Capabilities | None = None
        self._lock = threading.Lock()
        self._plain_stores: set[str] = set()
        # True if core routes take `s3/bucket/uuid` in place of the encoded URI; None: not known.
        self._suffix_form: bool | None = None

    @property
    def server_url(self) -> str:
        return self.transport.base_url

    def capabilities(self) -> Capabilities:
        """Return which routes there are; asked once, and without a token if that is enough.

        A server that is not there is asked only once more, so that a mount of a
        wrong address fails at once.
        """
        with self._lock:
            if self._capabilities is not None:
                return self._capabilities
        capabilities = self._ask_capabilities()
        with self._lock:
            self._capabilities = capabilities
        return capabilities

    def lost_extensions(self) -> bool:
        """Return whether the server has become one without our extensions; asks it."""
        if not self.capabilities().extended:
            return False
        capabilities = self._ask_capabilities()
        with self._lock:
            self._capabilities = capabilities
        return not capabilities.extended

    def require_signed_urls(self) -> None:
        """Raise Unsupported if this server cannot sign URLs."""
        if not self.capabilities().signed_urls:
            raise Unsupported(
                f"{self.server_url} has no signed-URL routes: its operator has to install "
                f"{wire_names.SIGNED_URLS}"
            )

    def core(self, route: str, uri: str, **options: Any) -> Answer:
        """GET `/<route>/<uri>`, a route of dservercore; raises what `explained` makes of it.

        Behind a proxy that decodes `%2F` or merges slashes only the form
        `s3/bucket/uuid` arrives; which one does is found out once.
        """
        return self._core(route, uri, lambda path: self.transport.request("GET", path, **options))

    def core_stream(self, route: str, uri: str, limit: Deadline) -> Answer:
        """As `core`, in one attempt; the body is left to the transport's `read_pieces`."""
        return self._core(route, uri, lambda path: self.transport.stream(path, limit))

    def _core(self, route: str, uri: str, ask: Callable[[str], Answer]) -> Answer:
        encoded, suffix = f"/{route}/{quote(uri)}", f"/{route}/{_suffix(uri)}"
        try:
            response = ask(suffix if self._suffix_form else encoded)
        except DserverfsError as error:
            explained = self.explained(error, uri)
            if self._suffix_form is not None or not _may_be_spoilt(error):
                raise explained from _unless_same(error, explained)
            try:
                response = ask(suffix)
            except DserverfsError:
                raise explained from _unless_same(error, explained)
            self._suffix_form = True
            logger.warning(
                "%s: a proxy before it changes encoded slashes in paths; signed URLs cannot be"
                " asked for until it passes paths on as they are",
                self.server_url,
            )
        if self._suffix_form is None:
            self._suffix_form = False
        return response

    def change(self, method: str, route: str, uri: str, tail: str = "", **options: Any) -> Answer:
        """Return the response of `/<route>/<uri>[/<tail>]`, in the form that `core` found out.

        For changes, which are not tried in both forms.
        """
        if self._suffix_form is None:
            self.core("uris", uri)
        path = f"/{route}/{_suffix(uri) if self._suffix_form else quote(uri)}"
        if tail:
            path += f"/{quote(tail)}"
        return self.transport.request(method, path, **options)

    def signed(self, method: str, route: str, uri: str, tail: str = "", **options: Any) -> Answer:
        """Return the response of `/signed-urls/<route>/<uri>[/<tail>]`, as `core` does.

        These routes take the encoded form alone.
        """
        path = f"/signed-urls/{route}/{quote(uri)}{'/' + quote(tail) if tail else ''}"
        try:
            return self.transport.request(method, path, **options)
        except (NotFound, PermissionDenied) as error:
            what = "such dataset" if route == "dataset" else "such dataset or item of it"
            raise self.explained(error, uri, what) from error

    def note_signed(self, url: str) -> None:
        """Warn once for each store that is reached unencrypted though the server is not.

        It is read nevertheless: a store that only its group's network can reach may
        speak http alone.
        """
        if not self.server_url.startswith("https:") or not url.startswith("http:"):
            return
        host = urllib.parse.urlsplit(public_url(url)).netloc
        with self._lock:
            known = host in self._plain_stores or len(self._plain_stores) >= MAX_PLAIN_STORES
            self._plain_stores.add(host)
        if not known and not is_loopback(host.partition(":")[0]):
            logger.warning(
                "%s speaks https, but signs URLs of http://%s: data, and the permission in each"
                " URL, cross the network unencrypted",
                self.server_url,
                host,
            )

    def explained(
        self, error: DserverfsError, uri: str, what: str = "such dataset"
    ) -> DserverfsError:
        """Return `error` with the dataset and the user it is about."""
        if isinstance(error, NotAuthenticated):
            return error
        hint = ""
        if self._suffix_form:
            hint = "; or the proxy before it has to pass %2F in paths on as it is"
        if isinstance(error, PermissionDenied):
            user = self.transport.subject() or "of the token"
            return PermissionDenied(
                f"{self.server_url}: user {user} may not search {uri.rpartition('/')[0]},"
                f" or there is no such base URI{hint} ({uri})",
                uri=uri,
                status=error.status,
            )
        if isinstance(error, NotFound):
            return NotFound(
                f"{self.server_url} has no {what}{hint}: {uri}", uri=uri, status=error.status
            )
        error.uri = uri
        return error

    def _ask_capabilities(self) -> Capabilities:
        try:
            response = self.transport.request(
                "GET", "/config/versions", authenticated=False, attempts=FIRST_ATTEMPTS
            )
        except (NotFound, PermissionDenied) as error:
            raise ProtocolError(
                f"{self.server_url} is not a dserver, or an old one: {error}", status=error.status
            ) from error
        except Unreachable as error:
            if error.status is None or error.status >= 429:
                raise
            raise Unreachable(
                f"{self.server_url} is not a dserver, or one that is away: {error}",
                status=error.status,
            ) from error
        answer = response.json()
        versions = answer.get("versions") if isinstance(answer, dict) else None
        if not isinstance(versions, dict) or not any(name in versions for name in _CORE_NAMES):
            raise ProtocolError(
                f"{self.server_url} is not a dserver: /config/versions says otherwise"
            )
        names = wire_names.understood(versions)
        return Capabilities(
            signed_urls=any("signed_url" in name for name in names) or self._signs_urls(),
            extended=wire_names.SIGNED_URLS_EXTENDED in names,
            parts=wire_names.MULTIPART in names,
            changes_metadata=wire_names.METADATA in names,
            publishes=wire_names.PUBLICATIONS in names,
            block_hashes=wire_names.BLOCK_HASHES in names,
            # dservercore does not start without a plugin for it.
            searches=any("search" in re.split("[-_]", name) for name in names),
            core_version=_version_of(versions),
        )

    def _signs_urls(self) -> bool:
        """Return whether the signed-URL routes are there under a name we do not know.

        Then a dataset in no base URI is refused (403); a route that is not there is a 404.
        """
        try:
            self.transport.request("GET", "/signed-urls/dataset/x", attempts=FIRST_ATTEMPTS)
        except NotFound:
            return False
        except (NotAuthenticated, Unreachable):
            raise
        except DserverfsError as error:
            logger.debug("%s has signed-URL routes: %s", self.server_url, error)
        return True


def _version_of(versions: dict[str, Any]) -> str:
    known = [str(versions[name]) for name in _CORE_NAMES if versions.get(name)]
    return known[0] if known else "of unknown version"


def quote(text: str) -> str:
    """Return `text` as one path component, the form every dserver route accepts."""
    return urllib.parse.quote(text, safe="")


def string_map(value: Any, what: str) -> dict[str, str]:
    """Return `value` if it maps names to URLs; raises ProtocolError."""
    if (
        not isinstance(value, dict)
        or not all(map(is_text, value))
        or not all(map(url_is_usable, value.values()))
    ):
        raise ProtocolError(f"{what} of a dataset is not a map of URLs")
    return value


def _suffix(uri: str) -> str:
    backend, _, rest = uri.partition("://")
    return "/".join(quote(part) for part in [backend, *rest.split("/")])


def _unless_same(error: Exception, explained: Exception) -> Exception | None:
    """Return the cause to raise `explained` from: none is its own."""
    return None if explained is error else error


def _may_be_spoilt(error: DserverfsError) -> bool:
    """Return whether a path that a proxy has changed may be the reason for `error`."""
    return not isinstance(error, NotAuthenticated) and error.status in (400, 403, 404)
