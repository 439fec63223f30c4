"""What a dserver says: users, listings, manifests, metadata and signed URLs.

One method per question, each answered by the routes the server has. Keeps
signed URLs until shortly before they expire and nothing else; what is worth
keeping longer is kept by the catalogue. Blocking and thread-safe.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from dserverfs.errors import (
    DeadlineExceeded,
    NotFound,
    NotStored,
    ProtocolError,
    Unreachable,
)
from dserverfs.limits import component_is_usable
from dserverfs.listings import Listings
from dserverfs.model import UUID, Dataset, Identifier, User, split_base_uri
from dserverfs.routes import Capabilities, Routes, json_of, string_map
from dserverfs.signed_urls import SignedURL
from dserverfs.signing import MAX_REMEMBERED, Signing, is_asked_whole
from dserverfs.storage import Storage, StorageRefused
from dserverfs.transport import METADATA_TIMEOUT_S, Deadline, ServerTransport, backoff_s
from dserverfs.upload_routes import UploadRoutes

logger = logging.getLogger(__name__)

MANIFEST_TIMEOUT_S = 120.0
MANIFEST_TOTAL_S = 3600.0
OBJECT_ATTEMPTS = 3
# A manifest's keys come sorted, its version before its items.
_MANIFEST_HEAD_BYTES = 64 * 1024
_DTOOLCORE_VERSION = re.compile(rb'"dtoolcore_version"\s*:\s*"([0-9A-Za-z.+-]{1,40})"')


@dataclass(frozen=True)
class Metadata:
    """What a dataset's `.dtool` holds beside the manifest; contents as stored."""

    admin_metadata: bytes
    tags: tuple[str, ...]
    overlays: Mapping[str, bytes]
    annotations: Mapping[str, bytes]


class MetadataUrls(NamedTuple):
    """Where the parts of a dataset's metadata can be read one by one, and its tags."""

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
        self._signing = Signing(self._routes)
        self.uploads = UploadRoutes(self._routes)
        self._warned: set[str] = set()  # each is said once

    @property
    def server_url(self) -> str:
        return self._transport.base_url

    def capabilities(self) -> Capabilities:
        """Return which routes there are; asked once. Fails at once if nobody listens there."""
        return self._routes.capabilities()

    def require_signed_urls(self) -> None:
        """Raise Unsupported if this server cannot sign URLs."""
        self._routes.require_signed_urls()

    def token_subject(self) -> str | None:
        """Return whom the token names, unchecked and without asking; None if it does not say."""
        return self._transport.subject()

    def user(self) -> User:
        """Return whom the token speaks for; base URIs that have no place in a path are left out."""
        user = User.from_json(json_of(self._transport.get("/me")))
        return User(
            user.username,
            user.is_admin,
            self._usable(user.search_base_uris),
            self._usable(user.register_base_uris),
        )

    def datasets(self, base_uri: str) -> list[Dataset]:
        """Return every dataset registered in `base_uri`, oldest first.

        A listing is no snapshot; entries that cannot be read are left out with
        a warning.
        """
        return self._listings.datasets(base_uri)

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
        return Dataset.from_json(json_of(self._routes.core("uris", uri)))

    def manifest_pieces(self, dataset: Dataset) -> Iterator[bytes]:
        """Yield the manifest's JSON, as the server sends it.

        Takes as long as it takes, up to MANIFEST_TOTAL_S, if only something comes
        every MANIFEST_TIMEOUT_S: a million items are 60 MB, compressed.
        """
        stalled, over = Deadline(MANIFEST_TIMEOUT_S), Deadline(MANIFEST_TOTAL_S)
        response = self._routes.core(
            "manifests", dataset.uri, stream=True, timeout_s=MANIFEST_TIMEOUT_S
        )
        for piece in self._transport.read_pieces(response, stalled, max_bytes=None):
            over.remaining_s()
            stalled.restart()
            yield piece

    def readme(self, dataset: Dataset) -> bytes:
        """Return the content of README.yml."""
        answer = json_of(self._routes.core("readmes", dataset.uri))
        readme = answer.get("readme") if isinstance(answer, dict) else None
        if isinstance(readme, str):
            return readme.encode("utf-8")
        if isinstance(readme, dict):  # old servers keep it parsed; JSON is YAML
            return json.dumps(readme, indent=2).encode("utf-8")
        raise ProtocolError(f"{self.server_url}: the README of {dataset.uri} is no text")

    def stored_readme(self, dataset: Dataset) -> bytes:
        """Return the README that the store has, which may not be the one the server knows.

        The server's own if the store cannot be asked for it.
        """
        if not self._routes.capabilities().signed_urls or not is_asked_whole(dataset):
            return self.readme(dataset)
        url = self._signing.dataset_urls(dataset).get("readme_url")
        if not isinstance(url, str):
            raise ProtocolError(f"{self.server_url}: no signed URL for the README", uri=dataset.uri)
        return self._read_object(url, Deadline(METADATA_TIMEOUT_S))

    def metadata(self, dataset: Dataset) -> Metadata:
        """Return what `.dtool` holds: one request to the server, one to the store an object.

        Of a dataset whose metadata is not signed: what the server's index has,
        which is all but overlays.
        """
        if not self.signs_metadata(dataset):
            return self._indexed_metadata(dataset)
        deadline = Deadline(METADATA_TIMEOUT_S)
        try:
            return self._stored_metadata(dataset, deadline)
        except (StorageRefused, NotStored) as error:  # expired, or deleted since it was named
            logger.debug("%s: signed once more: %s", dataset.uri, error)
        try:
            return self._stored_metadata(dataset, deadline)
        except StorageRefused as error:
            raise ProtocolError(f"{error}, for a URL signed just now", uri=dataset.uri) from error

    def signs_metadata(self, dataset: Dataset) -> bool:
        """Return whether `metadata_urls` can be asked for.

        Not of a dataset too large to be asked whole, on a server that cannot leave
        its items out.
        """
        return self._routes.capabilities().extended or is_asked_whole(dataset)

    def metadata_urls(self, dataset: Dataset) -> MetadataUrls:
        """Return fresh URLs for what `.dtool` holds; one request."""
        answer = self._signing.dataset_urls(dataset)
        # What is left out of an answer is not known; only an empty map is none.
        overlays = string_map(answer.get("overlay_urls"), "overlay_urls")
        annotations = string_map(answer.get("annotation_urls"), "annotation_urls")
        admin_url, tags = answer.get("admin_metadata_url"), answer.get("tags")
        if not isinstance(admin_url, str) or not isinstance(tags, list):
            raise ProtocolError(f"{self.server_url}: signed URLs of {dataset.uri} are incomplete")
        return MetadataUrls(admin_url, overlays, annotations, _sorted_texts(tags))

    def read_metadata(self, url: str) -> bytes:
        """Return what is stored at one of the `metadata_urls`; StorageRefused: it has expired."""
        return self._read_object(url, Deadline(METADATA_TIMEOUT_S))

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

    def forget_url(self, dataset: Dataset, identifier: Identifier, url: SignedURL) -> None:
        """Drop `url`, which the store refused, unless it was already replaced."""
        self._signing.forget(dataset, identifier, url)

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
        with ThreadPoolExecutor(4, thread_name_prefix="metadata") as pool:
            admin = pool.submit(self._read_object, urls.admin_metadata, deadline)
            parts = [
                {name: pool.submit(self._read_object, url, deadline) for name, url in part.items()}
                for part in (urls.overlays, urls.annotations)
            ]
            overlays, annotations = (
                {name: future.result() for name, future in part.items()} for part in parts
            )
            return Metadata(admin.result(), urls.tags, overlays, annotations)

    def _read_object(self, url: str, deadline: Deadline) -> bytes:
        attempt = 0
        while True:
            try:
                return self._storage.read_object(url, deadline)
            except Unreachable as error:
                attempt += 1
                if attempt >= OBJECT_ATTEMPTS or isinstance(error, DeadlineExceeded):
                    raise
                logger.debug("tried again after: %s", error)
                time.sleep(min(backoff_s(attempt - 1), deadline.remaining_s()))

    def _indexed_metadata(self, dataset: Dataset) -> Metadata:
        tags = json_of(self._routes.core("tags", dataset.uri))
        annotations = json_of(self._routes.core("annotations", dataset.uri))
        try:
            tag_names, values = tags["tags"], dict(annotations["annotations"])
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"{self.server_url}: tags of {dataset.uri} are no tags") from error
        if not isinstance(tag_names, list):
            raise ProtocolError(f"{self.server_url}: tags of {dataset.uri} are no list")
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
            **self._dtoolcore_version(dataset),
        }
        return Metadata(
            json.dumps(admin).encode(),
            _sorted_texts(tag_names),
            {},
            {str(name): json.dumps(value, indent=2).encode() for name, value in values.items()},
        )

    def _dtoolcore_version(self, dataset: Dataset) -> dict[str, str]:
        """Return what the beginning of the manifest says of the version that made it."""
        deadline = Deadline(MANIFEST_TIMEOUT_S)
        response = self._routes.core(
            "manifests", dataset.uri, stream=True, timeout_s=MANIFEST_TIMEOUT_S
        )
        head = b""
        pieces = self._transport.read_pieces(response, deadline, max_bytes=None)
        for piece in pieces:
            head += piece
            if len(head) >= _MANIFEST_HEAD_BYTES or b'"items"' in head:
                break
        pieces.close()
        match = _DTOOLCORE_VERSION.search(head)
        return {"dtoolcore_version": match[1].decode("ascii")} if match else {}

    def _warn_once(self, message: str) -> None:
        if message not in self._warned and len(self._warned) < MAX_REMEMBERED:
            self._warned.add(message)
            logger.warning("%s", message)


def _sorted_texts(tags: list[Any]) -> tuple[str, ...]:
    return tuple(sorted(str(tag) for tag in tags))
