"""Questions to one dserver: users, listings, manifests, metadata and signed URLs.

One method per question, each answered by the routes the server has. Keeps signed
URLs until shortly before they expire and nothing else; the catalogue keeps the answers
that are worth keeping longer. Blocking and thread-safe.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from dserverfs.base import limits
from dserverfs.base.errors import (
    DserverfsError,
    NotFound,
    NotStored,
    PermissionDenied,
    ProtocolError,
    StorageRefused,
    UnusableAnswer,
)
from dserverfs.base.limits import component_is_usable, url_is_usable
from dserverfs.base.model import UUID, Dataset, Identifier, User, split_base_uri
from dserverfs.base.pools import begun
from dserverfs.base.printable import listed, public_url
from dserverfs.base.retry import Deadline, Retries, refused_url
from dserverfs.remote import manifest_transfer
from dserverfs.remote.contact import Away, Contact
from dserverfs.remote.dserver_http import METADATA_TIMEOUT_S, ServerTransport, may_be_json
from dserverfs.remote.listings import Listings
from dserverfs.remote.manifest_parsing import dtoolcore_version_in
from dserverfs.remote.objects import Storage
from dserverfs.remote.routes import Capabilities, Routes, string_map
from dserverfs.remote.server_index import ServerIndex, sorted_texts
from dserverfs.remote.signed_urls import SignedURL
from dserverfs.remote.signing import HASH_OVERLAY, MAX_REMEMBERED, Signing, is_asked_whole
from dserverfs.remote.upload_api import UploadRoutes

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Metadata:
    """The contents of a dataset's `.dtool` except the manifest, as stored."""

    admin_metadata: bytes
    tags: tuple[str, ...]
    overlays: Mapping[str, bytes]
    annotations: Mapping[str, bytes]


class MetadataUrls(NamedTuple):
    """The URLs by which the parts of a dataset's metadata are read, and its tags."""

    admin_metadata: str
    overlays: Mapping[str, str]
    annotations: Mapping[str, str]
    tags: tuple[str, ...]


class Resolver:
    """Questions to one dserver."""

    def __init__(
        self, transport: ServerTransport, storage: Storage, routes: Routes | None = None
    ) -> None:
        """`routes` are those of the transport, if others know them, too."""
        self._transport = transport
        self._storage = storage
        self._routes = routes or Routes(transport)
        self._listings = Listings(self._routes)
        self.index = ServerIndex(self._routes, self._listings)
        self._signing = Signing(self._routes)
        self.uploads = UploadRoutes(self._routes)
        self._warned: set[str] = set()  # each is said once

    @property
    def server_url(self) -> str:
        return self._transport.base_url

    @property
    def contact(self) -> Contact:
        """Whether the server answers."""
        return self._transport.contact

    def look(self) -> Away | None:
        """Return since when the server does not answer; asks it once, and not for long."""
        with self.contact.hurried(), contextlib.suppress(DserverfsError):
            self._transport.request("GET", "/config/versions", authenticated=False)
        return self.contact.away

    def capabilities(self) -> Capabilities:
        """Return the server's routes; asked once. Fails at once if nothing listens there."""
        return self._routes.capabilities()

    def require_signed_urls(self) -> None:
        """Raise Unsupported if this server cannot sign URLs."""
        self._routes.require_signed_urls()

    def token_subject(self) -> str | None:
        """Return the user the token names, unchecked, without a request; None if it names none."""
        return self._transport.subject()

    def user(self) -> User:
        """Return the token's user; base URIs that cannot be part of a path are left out."""
        try:
            answer = self._transport.get("/me").json()
        except NotFound as error:
            raise ProtocolError(f"{error}; is this a dserver?", status=error.status) from error
        user = User.from_json(answer)
        return User(
            user.username,
            user.is_admin,
            self._usable(user.search_base_uris),
            self._usable(user.register_base_uris),
        )

    def datasets(self, base_uri: str) -> list[Dataset]:
        """Return every dataset registered in `base_uri`, oldest first.

        A listing is no snapshot; entries that cannot be read are left out with
        a warning. Raises PermissionDenied if the user may not search there, where a
        dserver answers with an empty listing, and what `Listings.datasets` does.
        """
        datasets = self._listings.datasets(base_uri)
        if not datasets:
            user = self.user()
            if base_uri not in user.search_base_uris:
                raise PermissionDenied(
                    f"{self.server_url}: user {user.username} has no search permission on"
                    f" {base_uri}, or the server does not have it; permitted:"
                    f" {listed(user.search_base_uris)}"
                )
        return datasets

    def some_datasets(self, base_uri: str) -> list[Dataset]:
        """Return the first datasets of `base_uri`; none where the user may not search."""
        return self._listings.some_datasets(base_uri)

    def datasets_by_uuid(self, uuid: UUID) -> list[Dataset]:
        """Return the datasets of that uuid, one for each base URI that holds it; none: empty."""
        return self._listings.datasets_by_uuid(uuid)

    def dataset_by_uuid(self, uuid: UUID, base_uri: str) -> Dataset:
        """Return the dataset of that uuid in `base_uri`; raises NotFound."""
        for dataset in self._listings.datasets_by_uuid(uuid):
            if dataset.base_uri == base_uri:
                return dataset
        raise NotFound(f"{self.server_url} has no dataset {uuid} in {base_uri}")

    def dataset(self, uri: str) -> Dataset:
        """Return the dataset of that URI of its backend.

        Raises NotFound, and PermissionDenied, which also means an unknown base URI.
        """
        return Dataset.from_json(self._routes.core("uris", uri).json())

    def manifest_pieces(self, dataset: Dataset) -> Generator[bytes, None, None]:
        """Yield the manifest's JSON, as the server sends it; see `manifest_transfer`."""
        return manifest_transfer.pieces(self._routes, self._transport, dataset)

    def readme(self, dataset: Dataset) -> bytes:
        """Return the content of README.yml: the store's where the server may show an older one."""
        if self._routes.capabilities().index_may_lag and is_asked_whole(dataset):
            try:
                return self.stored_readme(dataset)
            except NotStored as error:
                logger.debug("%s: the index's README is shown: %s", dataset.uri, error)
        return self.index.readme(dataset)

    def stored_readme(self, dataset: Dataset) -> bytes:
        """Return the store's README, which may be newer than that of the server's index.

        Return the index's if the store cannot be asked for it.
        """
        if not self._routes.capabilities().signed_urls or not is_asked_whole(dataset):
            return self.index.readme(dataset)
        deadline = Deadline(METADATA_TIMEOUT_S)
        return self._signed_anew(lambda limit: self._stored_readme(dataset, limit), deadline)

    def _stored_readme(self, dataset: Dataset, deadline: Deadline) -> bytes:
        url = self._signing.dataset_urls(dataset).get("readme_url")
        if not isinstance(url, str) or not url_is_usable(url):
            raise ProtocolError(f"{self.server_url}: no signed URL for the README", uri=dataset.uri)
        return self._read_object(url, deadline)

    def stored_annotations(self, dataset: Dataset) -> Mapping[str, bytes]:
        """Return the store's annotations, as stored, by name."""
        deadline = Deadline(METADATA_TIMEOUT_S)

        def ask(limit: Deadline) -> Mapping[str, bytes]:
            return self._read_objects(self.metadata_urls(dataset).annotations, limit)

        return self._signed_anew(ask, deadline)

    def metadata(self, dataset: Dataset) -> Metadata:
        """Return the contents of `.dtool`: one request to the server, one to the store an object.

        If the dataset's metadata is not signed, return that of the server's index, which
        has no overlays.
        """
        if not self.signs_metadata(dataset):
            return self._indexed_metadata(dataset)
        deadline = Deadline(METADATA_TIMEOUT_S)
        return self._signed_anew(lambda limit: self._stored_metadata(dataset, limit), deadline)

    def _signed_anew(self, ask: Callable[[Deadline], T], deadline: Deadline) -> T:
        """Return what `ask` reads by fresh URLs; ask once more if an object is gone by then."""

        def ask_once() -> T:
            return Retries(deadline, repeatable=refused_url).run(ask)

        try:
            return ask_once()
        except NotStored as error:  # deleted since it was named
            logger.debug("signed once more: %s", error)
            return ask_once()

    def signs_metadata(self, dataset: Dataset) -> bool:
        """Return whether `metadata_urls` can be asked for.

        It cannot for a dataset too large to be signed whole, on a server that cannot
        leave its items out.
        """
        return self._routes.capabilities().extended or is_asked_whole(dataset)

    def metadata_urls(self, dataset: Dataset) -> MetadataUrls:
        """Return fresh URLs of the objects in `.dtool`; one request."""
        answer = self._signing.dataset_urls(dataset)
        # A member left out of the answer is unknown; only an empty map means none.
        overlays = string_map(answer.get("overlay_urls"), "overlay_urls")
        annotations = string_map(answer.get("annotation_urls"), "annotation_urls")
        admin_url, tags = answer.get("admin_metadata_url"), answer.get("tags")
        if not url_is_usable(admin_url) or not isinstance(tags, list):
            raise ProtocolError(f"{self.server_url}: signed URLs of {dataset.uri} are incomplete")
        self._routes.note_signed(str(admin_url))
        return MetadataUrls(str(admin_url), overlays, annotations, sorted_texts(tags))

    def item_url(
        self,
        dataset: Dataset,
        identifier: Identifier,
        neighbours: Callable[[int], Sequence[Identifier]],
    ) -> SignedURL:
        """Return a signed URL for an item; one request however many ask for it at once.

        `neighbours(n)` names up to n items likely to be asked for next,
        including this one: where the server can, they are signed in the same request.
        """
        return self._signing.item_url(dataset, identifier, neighbours)

    def block_hashes_url(self, dataset: Dataset) -> SignedURL | None:
        """Return a signed URL of the hashes of a dataset's blocks; None if the server has none.

        See `base/block_hashes` for what is there. No request if `item_url` was answered before,
        for the URL comes with those of items; that there are none is believed for an hour. A URL
        that the store refused is dropped by `forget_url`, with BLOCK_HASHES of `signing` as the
        identifier. Raises NotFound if there is no such dataset.
        """
        return self._signing.block_hashes_url(dataset)

    def knows_block_hashes(self, dataset: Dataset) -> bool:
        """Return True if `block_hashes_url` would make no request; never blocks."""
        return self._signing.knows_block_hashes(dataset)

    def hash_overlay(self, dataset: Dataset) -> bytes | None:
        """Return the overlay that has the hashes of a dataset's blocks; see `base/hash_overlay`.

        None if there is none, and on servers that keep them as an object. No request to the server
        if `item_url` was answered before.
        """

        def attempt(limit: Deadline) -> bytes | None:
            url = self._signing.hash_overlay_url(dataset)
            if url is None:
                return None
            try:
                return self._storage.read_object(url.url, limit)
            except StorageRefused:
                self._signing.forget(dataset, HASH_OVERLAY, url)
                raise

        what = f"block hashes of {dataset.uri}"
        return Retries(Deadline(METADATA_TIMEOUT_S), what=what).run(attempt)

    def forget_url(self, dataset: Dataset, identifier: Identifier, url: SignedURL) -> None:
        """Drop `url`, which the store refused, unless it was already replaced."""
        self._signing.forget(dataset, identifier, url)

    def forget_host(self, url: SignedURL) -> None:
        """Drop all URLs of a host that cannot be reached: the store may be elsewhere by now."""
        self._signing.forget_host(url)

    def _usable(self, base_uris: Sequence[str]) -> tuple[str, ...]:
        usable = []
        for base_uri in base_uris:
            try:
                parts = split_base_uri(base_uri)
            except ProtocolError:
                parts = [""]
            if all(component_is_usable(part) for part in parts):
                usable.append(base_uri)
            else:
                self._warn_once(
                    f"{self.server_url}: base URI {base_uri!r} is left out: it cannot be a path"
                )
        return tuple(usable)

    def _stored_metadata(self, dataset: Dataset, deadline: Deadline) -> Metadata:
        urls = self.metadata_urls(dataset)
        room = _Room(limits.MAX_METADATA_BYTES, f"{dataset.uri}: its metadata")

        def read(url: str, *, is_json: bool = False) -> bytes:
            room.require()
            content = self._read_object(url, deadline, is_json=is_json)
            room.take(len(content))
            return content

        with ThreadPoolExecutor(4, thread_name_prefix="metadata") as pool:
            admin = begun(pool, partial(read, urls.admin_metadata, is_json=True))
            parts = [
                {name: begun(pool, partial(read, url)) for name, url in part.items()}
                for part in (urls.overlays, urls.annotations)
            ]
            overlays, annotations = (
                {name: future.result() for name, future in part.items()} for part in parts
            )
            metadata = Metadata(admin.result(), urls.tags, overlays, annotations)
        _require_metadata(dataset, metadata)
        return metadata

    def _read_objects(self, urls: Mapping[str, str], deadline: Deadline) -> Mapping[str, bytes]:
        with ThreadPoolExecutor(4, thread_name_prefix="metadata") as pool:
            parts = {
                name: begun(pool, partial(self._read_object, url, deadline))
                for name, url in urls.items()
            }
            return {name: future.result() for name, future in parts.items()}

    def _read_object(self, url: str, deadline: Deadline, *, is_json: bool = False) -> bytes:
        """Return a small object; a refused URL is the caller's to replace."""

        def is_repeatable(error: DserverfsError) -> bool:
            return not refused_url(error)

        def attempt(limit: Deadline) -> bytes:
            content = self._storage.read_object(url, limit)
            if is_json and not may_be_json(content):
                raise UnusableAnswer(f"{public_url(url)}: is not the JSON that is stored there")
            return content

        return Retries(deadline, what=public_url(url), repeatable=is_repeatable).run(attempt)

    def _indexed_metadata(self, dataset: Dataset) -> Metadata:
        tags, annotations = self.index.tags(dataset), self.index.annotations(dataset)
        self._warn_once(
            f"{dataset.uri}: its overlays are not shown: {self.server_url} cannot sign them"
            f" without the URLs of {dataset.number_of_items} items"
        )
        admin = {
            "uuid": dataset.uuid,
            "name": dataset.name,
            "type": "dataset",
            "creator_username": dataset.creator_username,
            "created_at": dataset.created_at,
            "frozen_at": dataset.frozen_at,
        }
        if (version := self.dtoolcore_version(dataset)) is not None:
            admin["dtoolcore_version"] = version
        return Metadata(
            json.dumps(admin).encode(),
            tags,
            {},
            {name: json.dumps(value, indent=2).encode() for name, value in annotations.items()},
        )

    def dtoolcore_version(self, dataset: Dataset) -> str | None:
        """Return the version of dtoolcore that the beginning of the manifest names, if it does."""
        with contextlib.closing(self.manifest_pieces(dataset)) as pieces:
            return dtoolcore_version_in(pieces)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned and len(self._warned) < MAX_REMEMBERED:
            self._warned.add(message)
            logger.warning("%s", message)


class _Room:
    """A byte limit for several answers together. Thread-safe."""

    def __init__(self, max_bytes: int, what: str) -> None:
        self._lock = threading.Lock()
        self._left = max_bytes
        self._message = f"{what} is larger than {max_bytes} bytes"

    def take(self, size_in_bytes: int) -> None:
        """Count bytes that have come; raises ProtocolError above the limit."""
        with self._lock:
            self._left -= size_in_bytes
        self.require()

    def require(self) -> None:
        """Raise ProtocolError if too much has come."""
        if self._left < 0:
            raise ProtocolError(self._message)


def _require_metadata(dataset: Dataset, metadata: Metadata) -> None:
    """Raise UnusableAnswer unless all of it has dtool's form: no hash tells a proxy's page."""
    about = {"the administrative metadata": metadata.admin_metadata}
    about |= {f"overlay {name}": content for name, content in metadata.overlays.items()}
    for what, content in about.items():
        if not isinstance(_json_in(dataset, what, content), dict):
            raise UnusableAnswer(f"{dataset.uri}: {what} is no JSON object", uri=dataset.uri)
    for name, content in metadata.annotations.items():
        _json_in(dataset, f"annotation {name}", content)
    found = json.loads(metadata.admin_metadata).get("uuid")
    if not isinstance(found, str) or found.lower() != dataset.uuid:
        raise UnusableAnswer(
            f"{dataset.uri}: the administrative metadata is another dataset's", uri=dataset.uri
        )


def _json_in(dataset: Dataset, what: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UnusableAnswer(f"{dataset.uri}: {what} is not JSON", uri=dataset.uri) from error
