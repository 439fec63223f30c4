"""Whatever servers and stores answer, only errors of ours come of it.

Each reader of JSON, or of other text, gets what it expects with some changes: fields that
are missing, of another type, too large, too deep, no text that UTF-8 can hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from dserverfs.base.disk_tables import ItemTable
from dserverfs.base.errors import ProtocolError
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import UUID, BackendURI, Dataset, identifier_of
from dserverfs.base.retry import Deadline
from dserverfs.catalogue import manifest_indexing
from dserverfs.catalogue.manifest_index import ManifestIndex
from dserverfs.remote.answers import Answer
from dserverfs.remote.api import Resolver
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.json_body import JsonBody
from dserverfs.remote.objects import ByteRange, Storage
from dserverfs.writing.upload.uploader import has_same_items
from tests.support.faulty_store import FaultyStore, Handler, faulty_store
from tests.support.mutations import HOSTILE, mutated, only_errors_of_ours

UUID_1 = UUID("11111111-2222-3333-4444-555555555555")
BASE_URI = "s3://bucket"
URI = f"{BASE_URI}/{UUID_1}"
RELPATHS = ["a", "b/c", "b/d"]
IDENTIFIERS = [identifier_of(relpath) for relpath in RELPATHS]
FIRST = IDENTIFIERS[0]
ENTRY = {
    "uri": URI,
    "uuid": UUID_1,
    "base_uri": BASE_URI,
    "name": "name",
    "creator_username": "me",
    "created_at": 1.5,
    "frozen_at": "2023-11-14T22:13:20Z",
    "number_of_items": 3,
    "size_in_bytes": 3,
}
DATASET = Dataset(UUID_1, BackendURI(URI), BASE_URI, "name", "me", 1.5, 2.5, 3, 3)
LARGE = Dataset(UUID_1, BackendURI(URI), BASE_URI, "name", "me", 1.5, 2.5, 10**6, 3)
MANIFEST = {
    "dtoolcore_version": "3.18.0",
    "hash_function": "md5sum_hexdigest",
    "items": {
        identifier_of(relpath): {
            "relpath": relpath,
            "size_in_bytes": 1,
            "hash": "0" * 32,
            "utc_timestamp": 1.5,
        }
        for relpath in RELPATHS
    },
}
SIGNED_TO = {"expiry_seconds": 3600, "expiry_timestamp": "2033-11-14T22:13:20Z"}
URL = "http://store/x?X-Amz-Date=20231114T221320Z&X-Amz-Expires=3600"
UPLOAD_URL = {"url": URL, "relpath": "a", "headers": {"Content-MD5": "x"}}
UPLOAD_BODY = {
    "uuid": UUID_1,
    "name": "name",
    "creator_username": "me",
    "frozen_at": 1.5,
    "created_at": 1.25,
    "hash_function": "md5sum_hexdigest",
    "items": list(MANIFEST["items"].values()),  # type: ignore[attr-defined]
    "tags": ["t"],
    "annotations": {"a": {"b": [1]}},
    "overlays": {"o": dict.fromkeys(IDENTIFIERS, 1)},
}
OURS = {
    **{"dservercore": "0.22.0", "dserverfs.server.signed_urls": "1"},
    "dserverfs_block_hashes": "1",
}
UPSTREAM = {"dservercore": "0.22.0", "dserver_signed_url_plugin": None}


class Answering:
    """A transport that has one answer to everything but the question for versions."""

    base_url = "http://server"

    def __init__(
        self, content: bytes, versions: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> None:
        self._content = content
        self._versions = versions
        self._headers = headers

    def subject(self) -> str:
        return "me"

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path)

    def request(self, method: str, path: str, **options: Any) -> Answer:
        content = self._content
        if path == "/config/versions" and self._versions is not None:
            content = json.dumps({"versions": self._versions}).encode()
        headers = {"Date": "Tue, 14 Nov 2023 22:13:20 GMT", **self._headers}
        return Answer(self.base_url + path, headers=headers, content=content)

    def stream(self, path: str, limit: Deadline, body: JsonBody | None = None) -> Answer:
        return self.request("GET", path)

    def read_pieces(
        self, response: Answer, limit: Deadline, *, max_bytes: int
    ) -> Generator[bytes, None, None]:
        yield response.content

    def request_once(self, method: str, path: str, limit: Deadline, **options: Any) -> Answer:
        return self.request(method, path)


ITEMS = ItemTable()
for _relpath in RELPATHS:
    ITEMS.add(_relpath, 1, "0" * 32, 1_500_000_000, 1.5)
LOCAL = LocalDataset(
    UPLOAD_BODY,
    b"",
    "md5sum_hexdigest",
    ITEMS,
    lambda item: Path(item.relpath),
    [],
    {},
    {},
)


class Answers(NamedTuple):
    """What reads one kind of answer."""

    answer: Any
    read: Callable[[Resolver], object]
    versions: Mapping[str, Any] | None = OURS


def upload(resolver: Resolver) -> object:
    head = {key: value for key, value in UPLOAD_BODY.items() if key != "items"}
    urls = resolver.uploads.start(BASE_URI, head, UPLOAD_BODY["items"])  # type: ignore[arg-type]
    for entry in urls.items.values():
        requests.Request("PUT", entry.url, headers=dict(entry.headers))
    return urls.items


def metadata(resolver: Resolver) -> None:
    found = resolver.metadata(LARGE)
    json.dumps([*found.tags, *found.annotations])
    "".join(found.tags).encode()


ANSWERS = {
    "listing": Answers([ENTRY, {**ENTRY, "name": "b"}], lambda r: r.datasets(BASE_URI)),
    "uuid": Answers([ENTRY], lambda r: r.dataset_by_uuid(UUID_1, BASE_URI)),
    "dataset": Answers(ENTRY, lambda r: r.dataset(URI)),
    "user": Answers(
        {
            "username": "me",
            "is_admin": False,
            "search_permissions_on_base_uris": [BASE_URI],
            "register_permissions_on_base_uris": [BASE_URI],
        },
        lambda r: r.user(),
    ),
    "versions": Answers(
        {"versions": {**OURS, "dserverfs.server.metadata": "1"}},
        lambda r: r.capabilities().metadata_writes,
        None,
    ),
    "readme": Answers({"readme": "text"}, lambda r: r.readme(DATASET)),
    "parsed readme": Answers({"readme": {"a": [1]}}, lambda r: r.readme(DATASET)),
    "tags and annotations": Answers(
        {"tags": ["a"], "annotations": {"n": {"value": 1}}}, metadata, UPSTREAM
    ),
    "signed metadata": Answers(
        {
            **SIGNED_TO,
            "uri": URI,
            "admin_metadata_url": URL,
            "manifest_url": URL,
            "readme_url": URL,
            "overlay_urls": {"o": URL},
            "annotation_urls": {"a": URL},
            "tags": ["t"],
            "item_urls": {FIRST: URL},
            "block_hashes_url": URL,
        },
        lambda r: [r.block_hashes_url(DATASET), r.metadata_urls(DATASET)],
    ),
    "signed items": Answers(
        {**SIGNED_TO, "item_urls": dict.fromkeys(IDENTIFIERS, URL), "block_hashes_url": URL},
        lambda r: r.item_url(DATASET, FIRST, lambda count: IDENTIFIERS),
    ),
    "signed dataset": Answers(
        {**SIGNED_TO, "item_urls": dict.fromkeys(IDENTIFIERS, URL)},
        lambda r: r.item_url(DATASET, FIRST, lambda count: IDENTIFIERS),
        UPSTREAM,
    ),
    "signed item": Answers(
        {**SIGNED_TO, "url": URL},
        lambda r: r.item_url(LARGE, FIRST, lambda count: IDENTIFIERS),
        UPSTREAM,
    ),
    "upload": Answers(
        {
            **SIGNED_TO,
            "uuid": UUID_1,
            "uri": URI,
            "upload_urls": {
                "readme": URL,
                "items": {**dict.fromkeys(IDENTIFIERS, UPLOAD_URL), "f" * 40: {"in_parts": True}},
            },
            "stored": [FIRST],
            "block_hashes_url": {"url": URL, "headers": {"a": "b"}},
        },
        upload,
    ),
    "place of block hashes": Answers(
        {**SIGNED_TO, "uri": URI, "url": URL, "headers": {}},
        lambda r: r.uploads.place_of_block_hashes(URI),
    ),
    "parts": Answers(
        {"stored": False, "part_bytes": 5 << 20, "etags": {"1": "e"}},
        lambda r: r.uploads.begin_parts(URI, FIRST),
    ),
    "part": Answers(
        {"urls": {"1": {"url": URL, "headers": {"a": "b"}}}},
        lambda r: r.uploads.sign_part(URI, FIRST, 1, "0" * 32),
    ),
    "registered manifest": Answers(MANIFEST, lambda r: has_same_items(r, LOCAL, LARGE)),
}


@pytest.mark.parametrize("kind", ANSWERS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_only_errors_of_ours_come_of_an_answer(kind: str, data: st.DataObject) -> None:
    answer, read, versions = ANSWERS[kind]
    content = data.draw(mutated(answer))
    total = json.dumps({"total": data.draw(st.sampled_from(HOSTILE))})
    transport = cast("ServerTransport", Answering(content, versions, {"X-Pagination": total}))
    resolver = Resolver(transport, Storage())

    with only_errors_of_ours():
        read(resolver)


@pytest.mark.parametrize("entry", [{"url": URL, "headers": {}}, {"in_parts": True}])
def test_identifier_that_is_no_text_is_an_answer_that_is_none(entry: dict[str, Any]) -> None:
    answer, read, versions = ANSWERS["upload"]
    items = {"readme": answer["upload_urls"]["readme"], "items": {"\ud800": entry}}
    content = json.dumps({**answer, "upload_urls": items}).encode()
    transport = cast("ServerTransport", Answering(content, versions, {}))

    with pytest.raises(ProtocolError):
        read(Resolver(transport, Storage()))


@pytest.mark.parametrize("kind", sorted(ANSWERS.keys() - {"tags and annotations"}))
def test_the_answer_itself_is_read(kind: str) -> None:
    answer, read, versions = ANSWERS[kind]
    transport = cast("ServerTransport", Answering(json.dumps(answer).encode(), versions, {}))

    assert read(Resolver(transport, Storage())) is not None


@settings(max_examples=75, deadline=None)
@given(content=mutated(MANIFEST))
def test_only_errors_of_ours_come_of_a_manifest(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("index") / "index"
    with only_errors_of_ours():
        manifest_indexing.build([content], path)
        index = ManifestIndex(path).open()
        for row in index.rows_from(0, 1000):
            row.name.encode("utf-8")
        index.close()


XML = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>m</Message></Error>"
STATUSES = st.sampled_from([200, 204, 206, 302, 400, 401, 403, 404, 409, 412, 416, 418, 500, 501])
SAID = st.sampled_from(
    [
        "bytes 0-4/5",
        "bytes 0-4/*",
        "bytes */5",
        "bytes 0-4/" + "9" * 3000,
        "-1",
        "5",
        "9" * 3000,
        "",
    ]
)
BODIES = st.sampled_from([b"", b"12345", XML, b"<Code>" + b"x" * 5000, b"\xff\x00\x1b[2J" * 100])


@pytest.fixture(scope="module")
def store() -> Iterator[FaultyStore]:
    with faulty_store(b"12345") as store:
        yield store


@settings(max_examples=30, deadline=None)
@given(status=STATUSES, body=BODIES, content_range=SAID, etag=st.sampled_from(["", "x", '"\x80"']))
def test_only_errors_of_ours_come_of_a_store(
    store: FaultyStore, status: int, body: bytes, content_range: str, etag: str
) -> None:
    def answer(handler: Handler) -> None:
        store.etag = etag
        handler.answer(status, body, {"Content-Range": content_range})

    storage = Storage()
    reads: list[Callable[[], object]] = [
        lambda: storage.read_object(store.url, Deadline(10)),
        lambda: storage.look(store.url, Deadline(10)),
        lambda: storage.read_range(
            store.url,
            ByteRange(0, 5, 5),
            block_size=5,
            etag=None,
            deadline=Deadline(10),
            on_etag=lambda etag: None,
            on_block=lambda block: None,
        ),
    ]
    for read in reads:
        store.faults = [answer]
        with only_errors_of_ours():
            read()
    storage.close()
