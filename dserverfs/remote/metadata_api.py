"""Changes of a frozen dataset's README, tags, annotations, overlays and name; publishing it,
and withdrawing it.

Used by the mount and the broker, through dserver. Three kinds of servers: ours says what it did;
dservercore's development branch has routes for README, tags and annotations that
can delete what they were not asked to (see `compared_writes`); released
ones have no such routes. The catalogue shows its own copy: call its `forget` after a
change. Blocking and thread-safe.

Each method raises Unsupported where the server has no such route, UsageError
for what dtool does not accept, PermissionDenied without the right to register,
NotFound, and ProtocolError if the server has not done what it said.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from dserverfs.base.dtool_layout import README
from dserverfs.base.errors import (
    ChangedMeanwhile,
    DserverfsError,
    NotAuthenticated,
    NotFound,
    PermissionDenied,
    ProtocolError,
    Unsupported,
    UsageError,
)
from dserverfs.base.limits import name_is_valid
from dserverfs.base.model import Dataset, Identifier
from dserverfs.base.versions import Version, version_of_json, version_of_text, version_of_value
from dserverfs.remote.api import Resolver
from dserverfs.remote.compared_writes import ComparedWrites
from dserverfs.remote.routes import Routes
from dserverfs.remote.signing import is_asked_whole

_REFUSED_VALUES = (400, 413, 422)
_NO_ROUTE = 405  # of servers that can read what the same path would change


class MetadataWrites:
    """Changes of the datasets of one dserver."""

    def __init__(
        self,
        routes: Routes,
        resolver: Resolver,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._routes = routes
        self._resolver = resolver
        self._compared = ComparedWrites(routes, resolver, self._write, pause)
        self._has_routes: bool | None = None  # None: not known

    def supported(self) -> bool:
        """Return False where README, tags and annotations surely cannot be changed."""
        if self._has_routes is None:
            self._has_routes = self._routes.capabilities().metadata_writes
        return self._has_routes is not False

    def supports(self, dataset: Dataset) -> bool:
        """Return False where those of this dataset surely cannot be changed."""
        changes = self._routes.capabilities().changes_metadata
        return self.supported() and (changes or is_asked_whole(dataset))

    def supports_all(self) -> bool:
        """Return whether overlays and names can be changed, too."""
        return self._routes.capabilities().changes_metadata

    # With `read`, the server must still have that version, else
    # ChangedMeanwhile is raised and nothing sent. Between comparing and sending another
    # may still come first: these servers compare nothing themselves.

    def put_readme(self, dataset: Dataset, content: bytes, read: Version | None = None) -> None:
        """Replace the README; the server keeps the one before."""
        try:
            readme = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{dataset.uri}: a README must be UTF-8 text") from error
        if read is not None:
            now = version_of_text(self._resolver.readme(dataset))
            if self._is_there(dataset, README, now, version_of_text(content), read):
                return
        if self._is_compared(dataset, "README"):
            self._compared.put_readme(dataset, readme)
        else:
            self._write(dataset, "README", "PUT", "readmes", body={"readme": readme})

    def put_tag(self, dataset: Dataset, tag: str) -> None:
        require_name("tag", tag)
        if self._is_compared(dataset, "tags"):
            self._compared.put_tag(dataset, tag)
        else:
            self._write(dataset, "tags", "POST", "tags", tag)

    def delete_tag(self, dataset: Dataset, tag: str) -> None:
        """Take a tag away; one that is not there, or cannot be, is no error."""
        if not _is_name(tag):
            return
        if self._is_compared(dataset, "tags"):
            self._compared.delete_tag(dataset, tag)
        else:
            self._write(dataset, "tags", "DELETE", "tags", tag)

    def put_annotation(
        self, dataset: Dataset, name: str, value: Any, read: Version | None = None
    ) -> None:
        """Set an annotation to any value that JSON has."""
        require_metadata_name("annotation", name)
        _require_json(f"annotation {name}", value)
        if read is not None:
            text = self._resolver.metadata(dataset).annotations.get(name)
            now = None if text is None else version_of_json(text)
            if self._is_there(dataset, f"annotation {name}", now, version_of_value(value), read):
                return
        if self._is_compared(dataset, "annotations"):
            self._compared.put_annotation(dataset, name, value)
        else:
            self._write(dataset, "annotations", "PUT", "annotations", name, {"value": value})

    def delete_annotation(self, dataset: Dataset, name: str) -> None:
        """Take an annotation away; one that is not there, or cannot be, is no error."""
        if not _is_name(name):
            return
        require_metadata_name("annotation", name)
        if self._is_compared(dataset, "annotations"):
            self._compared.delete_annotation(dataset, name)
        else:
            self._write(dataset, "annotations", "DELETE", "annotations", name)

    def put_overlay(
        self,
        dataset: Dataset,
        name: str,
        values: Mapping[Identifier, Any],
        read: Version | None = None,
    ) -> None:
        """Set an overlay: a value for each item's identifier, or for some."""
        require_metadata_name("overlay", name)
        _require_json(f"overlay {name}", dict(values))
        self._require_ours(dataset, "overlays")
        if read is not None:
            text = self._resolver.metadata(dataset).overlays.get(name)
            now = None if text is None else version_of_json(text)
            wanted = version_of_value(dict(values))
            if self._is_there(dataset, f"overlay {name}", now, wanted, read):
                return
        self._write(dataset, "overlays", "PUT", "overlays", name, {"value": dict(values)})

    def delete_overlay(self, dataset: Dataset, name: str) -> None:
        """Take an overlay away; one that is not there, or cannot be, is no error."""
        if not _is_name(name):
            return
        require_metadata_name("overlay", name)
        self._require_ours(dataset, "overlays")
        self._write(dataset, "overlays", "DELETE", "overlays", name)

    def rename(self, dataset: Dataset, name: str) -> None:
        require_name("dataset name", name)
        self._require_ours(dataset, "the name")
        self._write(dataset, "the name", "PUT", "names", body={"name": name})

    def publish(self, dataset: Dataset, expiry_seconds: int | None = None) -> str:
        """Return a link that dtool-http reads the dataset by, without a token, until it expires.

        The link is a secret. After `expiry_seconds`, at most 7 days, or what the
        server has as DTOOL_S3_PUBLISH_EXPIRY.
        """
        if not self._routes.capabilities().publishes:
            raise Unsupported(
                f"{self._routes.server_url} has no route to publish a dataset: {dataset.uri}",
                uri=dataset.uri,
            )
        body = {} if expiry_seconds is None else {"expiry_seconds": expiry_seconds}
        try:
            answer = self._routes.signed("POST", "publish", dataset.uri, json=body).json()
        except NotAuthenticated:
            raise
        except PermissionDenied as error:
            raise self._may_not(dataset, "published", error) from error
        except ProtocolError as error:
            if error.status in _REFUSED_VALUES:
                raise UsageError(str(error), uri=dataset.uri, status=error.status) from error
            raise
        path = answer.get("path") if isinstance(answer, dict) else None
        if not isinstance(path, str) or not path.startswith("/"):
            raise ProtocolError(f"{self._routes.server_url}: no link to {dataset.uri} was answered")
        # Not the answer's whole URL: a server behind a proxy does not know its own name.
        return f"{self._routes.server_url}{path}"

    def withdraw(self, dataset: Dataset) -> None:
        """Take a dataset out of the server's catalogue; what the store has of it stays there.

        One that is gone already is no error.
        """
        try:
            self._routes.change("DELETE", "uris", dataset.uri)
        except NotAuthenticated:
            raise
        except PermissionDenied as error:
            raise self._may_not(dataset, "withdrawn", error) from error
        except NotFound as error:
            if error.status == _NO_ROUTE:
                raise Unsupported(
                    f"{self._routes.server_url} has no route to withdraw a dataset: {dataset.uri}",
                    uri=dataset.uri,
                ) from error
        with contextlib.suppress(NotFound):
            self._resolver.dataset(dataset.uri)
            raise ProtocolError(
                f"{self._routes.server_url}: answered that {dataset.uri} was withdrawn, and has it"
                " still",
                uri=dataset.uri,
            )

    def _write(
        self,
        dataset: Dataset,
        what: str,
        method: str,
        route: str,
        name: str = "",
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        if not self.supported():
            raise self._unsupported(dataset, what)
        try:
            response = self._routes.change(method, route, dataset.uri, name, json=body)
        except NotFound as error:
            if error.status == _NO_ROUTE:
                self._has_routes = False
                raise self._unsupported(dataset, what) from error
            raise self._routes.explained(error, dataset.uri) from error
        except NotAuthenticated:
            raise
        except PermissionDenied as error:
            raise self._may_not(dataset, f"changed ({what})", error) from error
        except ProtocolError as error:
            if error.status in _REFUSED_VALUES:
                raise UsageError(str(error), uri=dataset.uri, status=error.status) from error
            raise
        self._has_routes = True
        return response.json()

    def _may_not(self, dataset: Dataset, done: str, error: DserverfsError) -> DserverfsError:
        return PermissionDenied(
            f"{self._routes.server_url}: {dataset.uri} cannot be {done} without the right to"
            f" register in {dataset.base_uri}",
            uri=dataset.uri,
            status=error.status,
        )

    def _is_there(
        self, dataset: Dataset, what: str, now: Version | None, wanted: Version, read: Version
    ) -> bool:
        """Return whether the server has it already; raises ChangedMeanwhile."""
        if now not in (wanted, read):
            raise ChangedMeanwhile(
                f"{dataset.uri}: {what} was changed by somebody else since it was read here;"
                " read what it is now, and make the change there",
                uri=dataset.uri,
            )
        return now == wanted

    def _is_compared(self, dataset: Dataset, what: str) -> bool:
        """Return whether a change has to be compared with the store; raises Unsupported.

        Of a dataset too large to be asked whole the store's set cannot be had.
        """
        if self._routes.capabilities().changes_metadata:
            return False
        if not self.supported():
            raise self._unsupported(dataset, what)
        if not self.supports(dataset):
            raise Unsupported(
                f"{dataset.uri}: {what} cannot be changed: {self._routes.server_url} names what"
                f" the store has of it only with the URLs of {dataset.number_of_items} items",
                uri=dataset.uri,
            )
        return True

    def _require_ours(self, dataset: Dataset, what: str) -> None:
        if not self._routes.capabilities().changes_metadata:
            raise self._unsupported(dataset, what)

    def _unsupported(self, dataset: Dataset, what: str) -> DserverfsError:
        version = self._routes.capabilities().core_version
        return Unsupported(
            f"{self._routes.server_url} (dservercore {version}) has no route to change {what} of"
            f" a frozen dataset: {dataset.uri}",
            uri=dataset.uri,
        )


def _is_name(name: str) -> bool:
    """Return whether dtool accepts a name, and so can have it anywhere."""
    # A proxy on the way takes a path that ends in /.. for another path.
    return bool(name_is_valid(name)) and name not in (".", "..")


def require_name(kind: str, name: str) -> None:
    """Raise UsageError for a name that dtool does not accept."""
    if not _is_name(name):
        raise UsageError(
            f"{kind} {name!r}: dtool accepts up to 80 characters of a-z, A-Z, 0-9, '-', '_', '.'"
        )


def require_metadata_name(kind: str, name: str) -> None:
    """Raise UsageError for a name of an overlay or annotation that could not be read back."""
    require_name(kind, name)
    if "." in name:
        raise UsageError(f"{kind} {name!r}: dtool's S3 broker cannot read a name with a dot")


def _require_json(what: str, value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what}: not a value that JSON has: {error}") from error
