"""What a dserver says: users, listings, manifests, metadata and signed URLs.

One method per question, each answered by the routes the server has. Keeps
signed URLs until shortly before they expire and nothing else; what is worth
keeping longer is kept by the catalogue. Blocking and thread-safe.
"""

from __future__ import annotations

import json
import logging
import threading
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import requests

from dserverfs.errors import Conflict, NotFound, ProtocolError, Unreachable, Unsupported
from dserverfs.model import UUID, Dataset, Identifier, User
from dserverfs.signed_urls import SignedURL, UrlBook, boottime_s, expiry_of
from dserverfs.storage import Storage, StorageRefused
from dserverfs.transport import METADATA_TIMEOUT_S, Deadline, ServerTransport

logger = logging.getLogger(__name__)

PAGE_SIZE = 100  # the largest a dserver gives
PARALLEL_PAGES = 4
# Larger datasets are asked item by item on a server that cannot sign batches: one
# answer for all costs 420 bytes an item, and 0.37 ms of the server's time.
MAX_ITEMS_ASKED_WHOLE = 10_000
BATCH_SIZE = 200
MANIFEST_TIMEOUT_S = 120.0
UPLOAD_TIMEOUT_S = 60.0
_PIECE_BYTES = 1024 * 1024

# Names under which /config/versions lists a plugin with the signed-URL routes.
_UPSTREAM_PLUGIN = "dserver_signed_url_plugin"
_OWN_PLUGIN = "dserverfs.server.signed_urls"


@dataclass(frozen=True)
class Capabilities:
    """Which of the routes beyond dservercore's a server has."""

    signed_urls: bool
    extended: bool  # what dserverfs.server.signed_urls adds


class UploadUrl(NamedTuple):
    """Where to PUT an item, and the headers that are signed with it."""

    url: str
    headers: Mapping[str, str]


class UploadUrls(NamedTuple):
    """The server's answer to the start of an upload."""

    uri: str
    readme_url: str
    items: Mapping[Identifier, UploadUrl]


@dataclass(frozen=True)
class Metadata:
    """What a dataset's `.dtool` holds beside the manifest; contents as stored."""

    admin_metadata: bytes
    tags: tuple[str, ...]
    overlays: Mapping[str, bytes]
    annotations: Mapping[str, bytes]


class Resolver:
    """Questions to one dserver."""

    def __init__(self, transport: ServerTransport, storage: Storage) -> None:
        self._transport = transport
        self._storage = storage
        self._urls = UrlBook()
        self._capabilities: Capabilities | None = None
        self._lock = threading.Lock()

    @property
    def server_url(self) -> str:
        return self._transport.base_url

    def capabilities(self) -> Capabilities:
        """Return which routes there are; asked once. Needs no token."""
        with self._lock:
            if self._capabilities is not None:
                return self._capabilities
        answer = _json(self._transport.request("GET", "/config/versions", authenticated=False))
        versions = answer.get("versions") if isinstance(answer, dict) else None
        if not isinstance(versions, dict) or "dservercore" not in versions:
            raise ProtocolError(
                f"{self.server_url} is not a dserver: /config/versions says otherwise"
            )
        capabilities = Capabilities(
            signed_urls=any("signed_url" in name for name in versions),
            extended=_OWN_PLUGIN in versions,
        )
        with self._lock:
            self._capabilities = capabilities
        return capabilities

    def require_signed_urls(self) -> None:
        """Raise Unsupported if this server cannot sign URLs."""
        if not self.capabilities().signed_urls:
            raise Unsupported(
                f"{self.server_url} has no signed-URL routes: its operator has to install "
                f"{_UPSTREAM_PLUGIN}"
            )

    def user(self) -> User:
        """Return whom the token speaks for."""
        return User.from_json(_json(self._transport.get("/me")))

    def datasets(self, base_uri: str) -> list[Dataset]:
        """Return every dataset registered below `base_uri`, oldest first.

        Pages after the first are asked in parallel. A listing is no snapshot: a
        dataset seen twice is returned once, and asking goes on until a page is
        short. Entries that cannot be read are left out with a warning.
        """
        entries, total = self._page(base_uri, 1)
        pages = -(-total // PAGE_SIZE)
        if pages > 1:
            with ThreadPoolExecutor(PARALLEL_PAGES, thread_name_prefix="pages") as pool:
                for more, _ in pool.map(
                    lambda page: self._page(base_uri, page), range(2, pages + 1)
                ):
                    entries += more
        page = max(pages, 1)
        while len(entries) >= page * PAGE_SIZE:
            page += 1
            more, _ = self._page(base_uri, page)
            if not more:
                break
            entries += more
        datasets: dict[UUID, Dataset] = {}
        for entry in entries:
            try:
                dataset = Dataset.from_json(entry)
            except ProtocolError as error:
                logger.warning(
                    "%s: a dataset of %s is left out: %s", self.server_url, base_uri, error
                )
                continue
            datasets[dataset.uuid] = dataset
        return sorted(datasets.values(), key=lambda dataset: (dataset.frozen_at, dataset.uuid))

    def _page(self, base_uri: str, page: int) -> tuple[list[Any], int]:
        """Return (entries, total number of entries) of one page."""
        try:
            response = self._transport.request(
                "POST",
                "/uris",
                params={"page": page, "page_size": PAGE_SIZE, "sort": "frozen_at,uuid"},
                json={"base_uris": [base_uri]},
            )
        except NotFound:  # beyond the last page, on some servers
            return [], 0
        entries = _json(response)
        if not isinstance(entries, list):
            raise ProtocolError(f"{self.server_url}: the listing of {base_uri} is not a list")
        try:
            pagination = json.loads(response.headers.get("X-Pagination", "{}"))
            total = int(pagination.get("total", 0))
        except (ValueError, TypeError, AttributeError):
            total = 0
        return entries, total

    def dataset_by_uuid(self, uuid: UUID, base_uri: str) -> Dataset:
        """Return the dataset of that uuid below `base_uri`; raises NotFound."""
        for entry in _json(self._transport.get(f"/uuids/{uuid}")):
            dataset = Dataset.from_json(entry)
            if dataset.base_uri == base_uri:
                return dataset
        raise NotFound(f"{self.server_url} has no dataset {uuid} in {base_uri}")

    def fetch_manifest(self, dataset: Dataset, file: IO[bytes]) -> None:
        """Write the manifest's JSON, as the server sends it, to `file`."""
        path = f"/manifests/{_quote(dataset.uri)}"
        response = self._transport.request("GET", path, stream=True, timeout_s=MANIFEST_TIMEOUT_S)
        deadline = Deadline(MANIFEST_TIMEOUT_S)
        try:
            for piece in response.iter_content(_PIECE_BYTES):
                file.write(piece)
                deadline.remaining_s()
        except requests.RequestException as error:
            raise Unreachable(f"{self.server_url}{path}: the answer was cut off") from error
        finally:
            response.close()

    def readme(self, dataset: Dataset) -> bytes:
        """Return the content of README.yml."""
        answer = _json(self._transport.get(f"/readmes/{_quote(dataset.uri)}"))
        readme = answer.get("readme") if isinstance(answer, dict) else None
        if isinstance(readme, str):
            return readme.encode("utf-8")
        if isinstance(readme, dict):  # old servers keep it parsed; JSON is YAML
            return json.dumps(readme, indent=2).encode("utf-8")
        raise ProtocolError(f"{self.server_url}: the README of {dataset.uri} is no text")

    def metadata(self, dataset: Dataset) -> Metadata:
        """Return what `.dtool` holds: one request to the server, one to the store an object."""
        answer = self._signed_dataset(dataset, with_items=False)
        deadline = Deadline(METADATA_TIMEOUT_S)
        overlays = _string_map(answer.get("overlay_urls"), "overlay_urls")
        annotations = _string_map(answer.get("annotation_urls"), "annotation_urls")
        admin_url = answer.get("admin_metadata_url")
        tags = answer.get("tags", [])
        if not isinstance(admin_url, str) or not isinstance(tags, list):
            raise ProtocolError(f"{self.server_url}: signed URLs of {dataset.uri} are incomplete")
        urls = [admin_url, *overlays.values(), *annotations.values()]
        try:
            with ThreadPoolExecutor(4, thread_name_prefix="metadata") as pool:
                admin, *rest = pool.map(lambda url: self._storage.read_object(url, deadline), urls)
        except StorageRefused as error:
            raise ProtocolError(f"{error}, for a URL signed just now", uri=dataset.uri) from error
        return Metadata(
            admin_metadata=admin,
            tags=tuple(sorted(str(tag) for tag in tags)),
            overlays=dict(zip(overlays, rest[: len(overlays)], strict=True)),
            annotations=dict(zip(annotations, rest[len(overlays) :], strict=True)),
        )

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
        return self._urls.get(
            dataset.uuid, identifier, lambda: self._sign(dataset, identifier, neighbours)
        )

    def forget_url(self, dataset: Dataset, identifier: Identifier, url: SignedURL) -> None:
        """Drop `url`, which the store refused, unless it was already replaced."""
        self._urls.forget(dataset.uuid, identifier, url)

    def start_upload(self, base_uri: str, description: Mapping[str, Any]) -> UploadUrls:
        """Announce a dataset; return where to PUT its README and items.

        `created_at` in the description is kept where the server can keep it.
        Repeating it gives fresh URLs. Raises PermissionDenied without register
        permission, Conflict if the dataset exists.
        """
        path = f"/signed-urls/upload/{_quote(base_uri)}"
        if not self.capabilities().extended:
            description = {key: description[key] for key in description if key != "created_at"}
        response = self._transport.request(
            "POST", path, json=description, timeout_s=UPLOAD_TIMEOUT_S
        )
        answer = _json(response)
        try:
            urls = answer["upload_urls"]
            items = {
                Identifier(identifier): UploadUrl(str(entry["url"]), dict(entry["headers"]))
                for identifier, entry in urls["items"].items()
            }
            return UploadUrls(str(answer["uri"]), str(urls["readme"]), items)
        except (KeyError, TypeError, AttributeError) as error:
            raise ProtocolError(f"{self.server_url}: the upload URLs are incomplete") from error

    def complete_upload(self, uri: str, number_of_items: int) -> None:
        """Register the dataset whose README and items are stored.

        Servers of old look at every item: 6 ms each. If the answer gets lost, or
        says that nothing is pending, whether the dataset is registered decides.
        """
        try:
            self._transport.request(
                "POST",
                "/signed-urls/upload-complete",
                json={"uri": uri},
                timeout_s=UPLOAD_TIMEOUT_S + 0.02 * number_of_items,
            )
        except (Unreachable, ProtocolError, Conflict) as error:
            try:
                self._transport.get(f"/uris/{_quote(uri)}")
            except NotFound:
                raise error from None

    def _sign(
        self,
        dataset: Dataset,
        identifier: Identifier,
        neighbours: Callable[[int], Sequence[Identifier]],
    ) -> dict[Identifier, SignedURL]:
        before_s = boottime_s()
        path = f"/signed-urls/items/{_quote(dataset.uri)}"
        if self.capabilities().extended:
            wanted = list(dict.fromkeys([identifier, *neighbours(BATCH_SIZE)]))
            response = self._transport.request("POST", path, json={"identifiers": wanted})
            return self._item_urls(response, before_s)
        if dataset.number_of_items is None or dataset.number_of_items <= MAX_ITEMS_ASKED_WHOLE:
            response = self._transport.get(f"/signed-urls/dataset/{_quote(dataset.uri)}")
            return self._item_urls(response, before_s)
        response = self._transport.get(
            f"/signed-urls/item/{_quote(dataset.uri)}/{_quote(identifier)}"
        )
        answer = _json(response)
        url = answer.get("url") if isinstance(answer, dict) else None
        if not isinstance(url, str):
            raise ProtocolError(f"{self.server_url}: no signed URL for {identifier}")
        return {identifier: SignedURL(url, expiry_of(url, answer, response.headers, before_s))}

    def _item_urls(
        self, response: requests.Response, before_s: float
    ) -> dict[Identifier, SignedURL]:
        answer = _json(response)
        urls = _string_map(
            answer.get("item_urls") if isinstance(answer, dict) else None, "item_urls"
        )
        return {
            Identifier(key): SignedURL(url, expiry_of(url, answer, response.headers, before_s))
            for key, url in urls.items()
        }

    def _signed_dataset(self, dataset: Dataset, *, with_items: bool) -> dict[str, Any]:
        # A server that does not know the parameter ignores it and answers with all.
        params = None if with_items else {"items": "false"}
        before_s = boottime_s()
        response = self._transport.get(f"/signed-urls/dataset/{_quote(dataset.uri)}", params=params)
        answer = _json(response)
        if not isinstance(answer, dict):
            raise ProtocolError(
                f"{self.server_url}: signed URLs of {dataset.uri} are not an object"
            )
        if answer.get("item_urls"):
            self._urls.add(dataset.uuid, self._item_urls(response, before_s))
        return answer


def _quote(text: str) -> str:
    """Return `text` as one path component, the form every dserver route accepts."""
    return urllib.parse.quote(text, safe="")


def _json(response: requests.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        where = response.url.partition("?")[0]
        raise ProtocolError(f"{where}: the answer is not JSON; is this a dserver?") from error


def _string_map(value: Any, what: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(url, str) for url in value.values()):
        raise ProtocolError(f"{what} of a dataset is not a map of URLs")
    return value
