"""Whatever other programs answer or leave on the disk, only errors of ours come of it.

Each reader of JSON, or of other text, gets what it expects with some changes: fields that
are missing, of another type, too large, too deep, no text that UTF-8 can hold.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from dserverfs import edit_session, manifest_indexing, staging_state
from dserverfs.errors import DserverfsError, Unreachable
from dserverfs.kept_answers import KeptAnswers
from dserverfs.limits import parse_json
from dserverfs.local_dataset import LocalDataset
from dserverfs.manifest_index import ManifestIndex
from dserverfs.model import (
    UUID,
    BackendURI,
    Dataset,
    DserverURI,
    User,
    identifier_of,
    split_base_uri,
)
from dserverfs.owner_lock import OwnerLock
from dserverfs.resolver import Metadata, Resolver
from dserverfs.retry import Deadline
from dserverfs.server.upload_request import UploadRequest
from dserverfs.settings import Settings
from dserverfs.staged_layout import survey
from dserverfs.storage import Storage
from dserverfs.transport import ServerTransport
from tests.datasets import make_dataset
from tests.mutations import HOSTILE, mutated

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
OURS = {"dservercore": "0.22.0", "dserverfs.server.signed_urls": "1"}
UPSTREAM = {"dservercore": "0.22.0", "dserver_signed_url_plugin": None}


@pytest.fixture(autouse=True, scope="module")
def silent() -> Iterator[None]:
    """Let nobody be told of what is left out."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def require_one_line(error: DserverfsError) -> None:
    assert str(error).isprintable()


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

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.request("GET", path)

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        response = requests.Response()
        response.status_code = 200
        response.url = self.base_url + path
        response.headers.update({"Date": "Tue, 14 Nov 2023 22:13:20 GMT", **self._headers})
        content = self._content
        if path == "/config/versions" and self._versions is not None:
            content = json.dumps({"versions": self._versions}).encode()
        response._content = content
        return response

    def stream(self, path: str, limit: Deadline) -> requests.Response:
        return self.request("GET", path)

    def read_pieces(
        self, response: requests.Response, limit: Deadline, *, max_bytes: int
    ) -> Generator[bytes, None, None]:
        yield response.content

    def request_once(
        self, method: str, path: str, limit: Deadline, **options: Any
    ) -> requests.Response:
        return self.request(method, path)


class Answers(NamedTuple):
    """What reads one kind of answer."""

    answer: Any
    read: Callable[[Resolver], object]
    versions: Mapping[str, Any] | None = OURS


def upload(resolver: Resolver) -> None:
    urls = resolver.uploads.start(BASE_URI, UPLOAD_BODY)
    for entry in urls.items.values():
        requests.Request("PUT", entry.url, headers=dict(entry.headers))


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
        },
        lambda r: r.metadata_urls(DATASET),
    ),
    "signed items": Answers(
        {**SIGNED_TO, "item_urls": dict.fromkeys(IDENTIFIERS, URL)},
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
        },
        upload,
    ),
    "parts": Answers(
        {"stored": False, "part_bytes": 5 << 20, "etags": {"1": "e"}},
        lambda r: r.uploads.begin_parts(URI, FIRST),
    ),
    "part": Answers(
        {"urls": {"1": {"url": URL, "headers": {"a": "b"}}}},
        lambda r: r.uploads.sign_part(URI, FIRST, 1, "0" * 32),
    ),
    "uploads": Answers(
        {
            "uploads": [
                {
                    "uri": URI,
                    "name": "name",
                    "started_at": 1.5,
                    "number_of_items": 1,
                    "size_in_bytes": 1,
                }
            ]
        },
        lambda r: r.uploads.pending(),
    ),
    "registered manifest": Answers(MANIFEST, lambda r: r.uploads.manifest_items(URI)),
}


@pytest.mark.parametrize("kind", ANSWERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_only_errors_of_ours_come_of_an_answer(kind: str, data: st.DataObject) -> None:
    answer, read, versions = ANSWERS[kind]
    content = data.draw(mutated(answer))
    total = json.dumps({"total": data.draw(st.sampled_from(HOSTILE))})
    transport = cast("ServerTransport", Answering(content, versions, {"X-Pagination": total}))
    resolver = Resolver(transport, Storage())

    try:
        read(resolver)
    except DserverfsError as error:
        require_one_line(error)


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_answer_itself_is_read(kind: str) -> None:
    answer, read, versions = ANSWERS[kind]
    transport = cast("ServerTransport", Answering(json.dumps(answer).encode(), versions, {}))

    read(Resolver(transport, Storage()))


@settings(max_examples=150, deadline=None)
@given(content=mutated(MANIFEST))
def test_only_errors_of_ours_come_of_a_manifest(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("index") / "index"
    try:
        manifest_indexing.build([content], path)
        index = ManifestIndex(path).open()
    except DserverfsError as error:
        require_one_line(error)
        return
    for row in index.rows_from(0, 1000):
        row.name.encode("utf-8")
    index.close()


RECORD = staging_state.Record("id", "server", BASE_URI, "name", "me", 1.5)
NOTE = edit_session.Note(DATASET, "README.yml", True, 1.5)
TEXTS: dict[str, tuple[Any, Callable[[bytes], object]]] = {
    "state": (
        json.loads(RECORD.to_json()),
        lambda content: staging_state.Record.from_json(content.decode("utf-8", "replace")),
    ),
    "note": (
        json.loads(NOTE.to_json()),
        lambda content: edit_session.Note.from_json(content.decode("utf-8", "replace")),
    ),
    "user": (
        {"username": "me", "search_permissions_on_base_uris": [BASE_URI]},
        lambda content: User.from_json(parse_json(content, "it")),
    ),
    "upload request": (
        UPLOAD_BODY,
        lambda content: UploadRequest.parse(parse_json(content, "it"), max_item_bytes=1 << 40),
    ),
}


@pytest.mark.parametrize("kind", TEXTS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_only_errors_of_ours_come_of_a_text(kind: str, data: st.DataObject) -> None:
    value, read = TEXTS[kind]

    try:
        read(data.draw(mutated(value)))
    except DserverfsError as error:
        require_one_line(error)


def test_fields_of_a_record_have_their_types() -> None:
    values = json.loads(RECORD.to_json())
    wrong: list[Any] = [[], {}, None, True, 10**400]
    for key in sorted(set(values) - {"format", "reason", "uuid", "armed", "manual"}):
        for value in wrong:
            with pytest.raises(DserverfsError):
                staging_state.Record.from_json(json.dumps({**values, key: value}))


@given(text=st.text() | st.text("dserver:/[]@%.s3uid-0123456789abc", max_size=80))
def test_only_errors_of_ours_come_of_a_uri(text: str) -> None:
    for read in (lambda: DserverURI.parse(text), lambda: split_base_uri(text)):
        try:
            str(read())
        except DserverfsError as error:
            require_one_line(error)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("frozen"), "frozen", {"a": b"1", "b/c": b"2"})


FILES = [".dtool/dtool", ".dtool/manifest.json", ".dtool/annotations/answer.json"]


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_only_errors_of_ours_come_of_a_datasets_files(
    frozen: Path, name: str, data: st.DataObject
) -> None:
    path = frozen / name
    before = path.read_bytes()
    path.write_bytes(data.draw(mutated(json.loads(before))))
    try:
        for read in (LocalDataset.read, survey):
            try:
                read(frozen)
            except DserverfsError as error:
                require_one_line(error)
    finally:
        path.write_bytes(before)


@settings(max_examples=60, deadline=None)
@given(
    content=mutated({"DSERVER_TOKEN": "x", "DSERVER_PROTOCOL": "http", "DSERVER_URL": "http://h"})
)
def test_only_errors_of_ours_come_of_the_configuration(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("config") / "dtool.json"
    path.write_bytes(content)
    try:
        found = Settings.load({}, path=path)
        found.base_url("h")
        found.token("h")
        found.trust("h")
    except DserverfsError as error:
        require_one_line(error)


@settings(max_examples=60, deadline=None)
@given(content=mutated({"pid": 1, "host": "h", "machine": "m", "boot": "b"}))
def test_lock_file_with_anything_in_it_is_read(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lock") / "lock"
    path.write_bytes(content)
    lock = OwnerLock(path)

    lock.owner().encode("utf-8")
    lock.acquire()
    lock.release()


class Saying:
    """A resolver that answers until the server is away."""

    server_url = "http://server"

    def __init__(self) -> None:
        self.is_away = False

    def token_subject(self) -> str:
        return "me"

    def _say(self, answer: Any) -> Any:
        if self.is_away:
            raise Unreachable("away")
        return answer

    def user(self) -> User:
        return cast("User", self._say(User("me", False, (BASE_URI,), ())))

    def datasets(self, base_uri: str) -> list[Dataset]:
        return cast("list[Dataset]", self._say([DATASET]))

    def readme(self, dataset: Dataset) -> bytes:
        return cast("bytes", self._say(b"readme"))

    def metadata(self, dataset: Dataset) -> Metadata:
        return cast("Metadata", self._say(Metadata(b"{}", ("t",), {"o": b"{}"}, {"a": b"1"})))


KEPT: dict[str, Callable[[KeptAnswers], object]] = {
    "user": lambda answers: answers.user(),
    "datasets": lambda answers: answers.datasets(BASE_URI),
    "readme": lambda answers: answers.readme(DATASET),
    "metadata": lambda answers: answers.metadata(DATASET),
}


@pytest.mark.parametrize("kind", KEPT)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_only_errors_of_ours_come_of_a_kept_answer(
    kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("kept")
    resolver = Saying()
    answers = KeptAnswers(cast("Resolver", resolver), directory)
    before = KEPT[kind](answers)
    resolver.is_away = True
    assert KEPT[kind](answers) == before
    (path,) = directory.glob("*.answer")
    kept = json.loads(path.read_bytes())
    changed = data.draw(mutated(kept["value"]))
    about = json.dumps(kept["about"]).encode()
    path.write_bytes(b'{"about":%b,"value":%b}' % (about, changed))

    try:
        found = KEPT[kind](answers)
        if isinstance(found, Metadata):
            "".join(found.tags).encode()
    except DserverfsError as error:
        require_one_line(error)
