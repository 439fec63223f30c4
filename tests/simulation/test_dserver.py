"""The simulated dserver answers as the real one does: the same questions to both.

The real one is the app of `dserverfs serve` on a real store. What a real server says in
words of its own is not compared; its statuses, members and values are.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
import urllib3

from dserverfs.base.model import identifier_of
from tests.simulation.dserver import API, Dserver, Person
from tests.simulation.store import Request
from tests.support.block_hashes import object_of
from tests.support.server_app import AppClient
from tests.support.servers import ServerHandle, encoded, new_uuid, upload_body

PUT_BYTES, PART_BYTES = 6 * 1024**2, 5 * 1024**2  # S3 takes no smaller parts
CONTENTS = {"a.txt": b"alpha", "dir/é ü.bin": bytes(range(256)), "empty": b""}


class Got(NamedTuple):
    """An answer; `json` of a server's, `content` of a store's."""

    status: int
    json: Any
    content: bytes
    headers: Mapping[str, str]


class Side(Protocol):
    """One of the two servers, with one user who may search and register in `base_uri`."""

    base_uri: str

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Got:
        """Return the server's answer; with a `token` in place of the user's own."""

    def at(self, method: str, url: str, content: bytes = b"", **headers: str) -> Got:
        """Return the store's answer."""


class Simulated:
    def __init__(self) -> None:
        self.base_uri = "s3://one"
        self._dserver = Dserver(time.time, max_put_bytes=PUT_BYTES, part_bytes=PART_BYTES)
        self._dserver.people["token"] = Person("grumpy", {self.base_uri}, {self.base_uri})

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Got:
        headers = {"authorization": f"Bearer {token or 'token'}"}
        content = b"" if body is None else json.dumps(body).encode()
        answer = self._dserver.answer(Request(method, f"{API}{path}", headers, content))
        return Got(answer.status, json.loads(answer.body), b"", answer.headers)

    def at(self, method: str, url: str, content: bytes = b"", **headers: str) -> Got:
        sent = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        answer = self._dserver.answer(Request(method, url, sent, content))
        return Got(answer.status, None, answer.body, answer.headers)


class Real:
    def __init__(self, app: AppClient) -> None:
        self.base_uri = app.base_uri
        self._app = app
        self._pool = urllib3.PoolManager()

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Got:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        username = "grumpy" if token is None else None
        answer = self._app.request(method, path, body, username=username, headers=headers)
        return Got(answer.status_code, answer.json, b"", answer.headers)

    def at(self, method: str, url: str, content: bytes = b"", **headers: str) -> Got:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self._pool.request(method, url, body=content or None, headers=sent, retries=False)
        return Got(answer.status, None, answer.data, answer.headers)

    def close(self) -> None:
        self._pool.clear()
        self._app.close()


@pytest.fixture(scope="module")
def real(server: ServerHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    directory: Path = tmp_path_factory.mktemp("real")
    side = Real(AppClient(server, directory, max_put_bytes=PUT_BYTES))
    yield side
    side.close()


@pytest.fixture(params=["simulated", "real"])
def side(request: pytest.FixtureRequest) -> Side:
    if request.param == "simulated":
        return Simulated()
    found: Side = request.getfixturevalue("real")
    return found


def announce(side: Side, contents: Mapping[str, bytes], **others: Any) -> Any:
    body = upload_body(contents, **others)
    begun = side.ask("POST", f"/signed-urls/upload/{encoded(side.base_uri)}", body)
    assert begun.status == 200, begun
    return begun.json


def put_all(side: Side, begun: Any, contents: Mapping[str, bytes], readme: bytes) -> None:
    for item in begun["upload_urls"]["items"].values():
        if not item.get("in_parts"):
            put = side.at("PUT", item["url"], contents[item["relpath"]], **_named(item["headers"]))
            assert put.status == 200
    assert side.at("PUT", begun["upload_urls"]["readme"], readme).status == 200


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("-", "_"): value for name, value in headers.items()}


def publish(side: Side, readme: bytes = b"about: it\n", **others: Any) -> str:
    begun = announce(side, CONTENTS, **others)
    put_all(side, begun, CONTENTS, readme)
    done = side.ask("POST", "/signed-urls/upload-complete", {"uri": begun["uri"]})
    assert done.status == 200, done
    uri: str = begun["uri"]
    return uri


def test_abilities_have_the_same_names(side: Side) -> None:
    names = side.ask("GET", "/config/versions").json["versions"]

    ours = {"dserverfs_signed_urls", "dserverfs_multipart", "dserverfs_metadata"}
    assert {
        *ours,
        "dserverfs_block_hashes",
        "dservercore",
        "dserver_signed_url_plugin",
    } <= names.keys()


def test_user_and_rights(side: Side) -> None:
    me = side.ask("GET", "/me").json

    assert me["username"] == "grumpy"
    assert me["search_permissions_on_base_uris"] == [side.base_uri]
    assert me["register_permissions_on_base_uris"] == [side.base_uri]


def test_wrong_token_is_refused_with_msg(side: Side) -> None:
    answer = side.ask("GET", "/me", token="no.such.token")

    assert answer.status in (401, 422)
    assert "msg" in answer.json


def test_dataset_is_listed_and_described_as_announced(side: Side) -> None:
    uri = publish(side, tags=["red"], annotations={"stars": 5}, overlays={})
    uuid = uri.rpartition("/")[2]

    listed = side.ask("POST", "/uris?page=1&page_size=100", {"base_uris": [side.base_uri]})
    by_uri = {entry["uri"]: entry for entry in listed.json}
    entry = by_uri[uri]
    assert (entry["uuid"], entry["name"], entry["base_uri"]) == (uuid, "a-dataset", side.base_uri)
    assert (entry["number_of_items"], entry["size_in_bytes"]) == (3, 261)
    assert entry["frozen_at"] == 1700000000.5
    assert json.loads(listed.headers["X-Pagination"])["total"] == len(listed.json)
    assert side.ask("GET", f"/uris/{encoded(uri)}").json["uri"] == uri
    assert [each["uri"] for each in side.ask("GET", f"/uuids/{uuid}").json] == [uri]
    manifest = side.ask("GET", f"/manifests/{encoded(uri)}").json
    assert manifest["hash_function"] == "md5sum_hexdigest"
    assert manifest["items"][identifier_of("a.txt")] == {
        "hash": hashlib.md5(b"alpha").hexdigest(),
        "relpath": "a.txt",
        "size_in_bytes": 5,
        "utc_timestamp": 1600000000.25,
    }
    assert side.ask("GET", f"/readmes/{encoded(uri)}").json["readme"] == "about: it\n"
    assert side.ask("GET", f"/tags/{encoded(uri)}").json["tags"] == ["red"]
    assert side.ask("GET", f"/annotations/{encoded(uri)}").json["annotations"] == {"stars": 5}


def test_what_is_not_there_or_not_allowed(side: Side) -> None:
    unknown = f"{side.base_uri}/{new_uuid()}"
    elsewhere = f"s3://not-{new_uuid()}/{new_uuid()}"

    for route in ("uris", "manifests", "readmes", "tags", "annotations", "signed-urls/dataset"):
        assert side.ask("GET", f"/{route}/{encoded(unknown)}").status == 404, route
        refused = side.ask("GET", f"/{route}/{encoded(elsewhere)}")
        assert refused.status == 403, route
        assert refused.json["code"] == 403
    assert side.ask("PUT", f"/readmes/{encoded(unknown)}", {"readme": ""}).status == 404
    assert side.ask("PUT", f"/readmes/{encoded(elsewhere)}", {"readme": ""}).status == 403
    body = upload_body(CONTENTS)
    assert side.ask("POST", f"/signed-urls/upload/{encoded('s3://not-there')}", body).status == 403


def test_upload_that_is_not_whole_is_not_completed(side: Side) -> None:
    begun = announce(side, CONTENTS)

    refused = side.ask("POST", "/signed-urls/upload-complete", {"uri": begun["uri"]})

    assert refused.status == 422
    assert "a.txt" in refused.json["message"]
    assert side.ask("GET", f"/uris/{encoded(begun['uri'])}").status == 404


def test_announcing_again_tells_what_is_stored(side: Side) -> None:
    body = upload_body(CONTENTS)
    path = f"/signed-urls/upload/{encoded(side.base_uri)}"
    begun = side.ask("POST", path, body).json
    put_all(side, begun, CONTENTS, b"")

    again = side.ask("POST", path, body).json

    assert begun["stored"] == []
    assert again["stored"] == sorted(map(identifier_of, CONTENTS))


def test_what_is_registered_is_announced_and_completed_no_more(side: Side) -> None:
    uri = publish(side)
    body = upload_body(CONTENTS, uuid=uri.rpartition("/")[2])

    refused = side.ask("POST", f"/signed-urls/upload/{encoded(side.base_uri)}", body)

    assert refused.status == 409
    assert side.ask("POST", "/signed-urls/upload-complete", {"uri": uri}).status == 400


def test_store_takes_what_the_url_pins_and_nothing_else(side: Side) -> None:
    begun = announce(side, CONTENTS)
    item = begun["upload_urls"]["items"][identifier_of("a.txt")]
    headers = _named(item["headers"])

    wrong = side.at("PUT", item["url"], b"other", **headers)
    unpinned = {**headers, "Content_MD5": base64.b64encode(hashlib.md5(b"other").digest()).decode()}
    other_head = side.at("PUT", item["url"], b"other", **unpinned)
    other_url = side.at(
        "PUT", item["url"].replace(identifier_of("a.txt"), "0" * 40), b"alpha", **headers
    )

    assert (wrong.status, b"<Code>BadDigest" in wrong.content) == (400, True)
    assert (other_head.status, other_url.status) == (403, 403)
    assert b"<Code>SignatureDoesNotMatch" in other_url.content


def test_items_are_read_by_ranges(side: Side) -> None:
    uri = publish(side)
    identifier = identifier_of("dir/é ü.bin")
    answer = side.ask("POST", f"/signed-urls/items/{encoded(uri)}", {"identifiers": [identifier]})
    url = answer.json["item_urls"][identifier]

    part = side.at("GET", url, Range="bytes=10-19")
    etag = part.headers["ETag"]
    assert (part.status, part.content) == (206, bytes(range(10, 20)))
    assert part.headers["Content-Range"] == "bytes 10-19/256"
    assert etag.strip('"') == hashlib.md5(bytes(range(256))).hexdigest()
    assert side.at("GET", url, Range="bytes=250-999").content == bytes(range(250, 256))
    assert side.at("GET", url, Range="bytes=256-300").status == 416
    assert side.at("GET", url, If_Match=etag).status == 200
    assert side.at("GET", url, If_Match='"0"').status == 412
    assert side.at("GET", url.replace("ignature=", "ignature=0")).status == 403
    unknown = side.ask("POST", f"/signed-urls/items/{encoded(uri)}", {"identifiers": ["0" * 40]})
    assert unknown.status == 404


def test_signed_metadata_is_what_is_stored(side: Side) -> None:
    uri = publish(side, tags=["red", "blue"], annotations={"stars": 5}, overlays={})

    body = side.ask("GET", f"/signed-urls/dataset/{encoded(uri)}?items=false").json

    assert "item_urls" not in body
    assert body["tags"] == ["blue", "red"]
    assert json.loads(side.at("GET", body["admin_metadata_url"]).content)["type"] == "dataset"
    assert side.at("GET", body["readme_url"]).content == b"about: it\n"
    assert json.loads(side.at("GET", body["annotation_urls"]["stars"]).content) == 5
    assert len(json.loads(side.at("GET", body["manifest_url"]).content)["items"]) == 3
    whole = side.ask("GET", f"/signed-urls/dataset/{encoded(uri)}").json
    assert whole["item_urls"].keys() == set(map(identifier_of, CONTENTS))
    assert whole["expiry_seconds"] == 3600


def test_metadata_changes_at_server_and_store(side: Side) -> None:
    uri = publish(side)
    at = encoded(uri)

    assert side.ask("PUT", f"/readmes/{at}", {"readme": "new"}).status == 200
    assert side.ask("POST", f"/tags/{at}/red").json["tags"] == ["red"]
    assert side.ask("POST", f"/tags/{at}/red").json["tags"] == ["red"]
    assert side.ask("POST", f"/tags/{at}/blue").json["tags"] == ["blue", "red"]
    assert side.ask("DELETE", f"/tags/{at}/red").json["tags"] == ["blue"]
    assert side.ask("DELETE", f"/tags/{at}/red").json["tags"] == ["blue"]
    changed = side.ask("PUT", f"/annotations/{at}/n", {"value": [1, None]})
    assert changed.json["annotations"] == {"n": [1, None]}
    assert side.ask("GET", f"/readmes/{at}").json["readme"] == "new"
    body = side.ask("GET", f"/signed-urls/dataset/{at}?items=false").json
    assert side.at("GET", body["readme_url"]).content == b"new"
    assert json.loads(side.at("GET", body["annotation_urls"]["n"]).content) == [1, None]
    assert side.ask("DELETE", f"/annotations/{at}/n").json["annotations"] == {}
    assert side.ask("PUT", f"/names/{at}", {"name": "other"}).json == {"name": "other"}
    assert side.ask("GET", f"/uris/{at}").json["name"] == "other"


def test_large_items_go_in_parts(side: Side) -> None:
    content = bytes(PUT_BYTES + 1)
    begun = announce(side, {"large": content})
    identifier = identifier_of("large")
    subject = {"uri": begun["uri"], "identifier": identifier}
    assert begun["upload_urls"]["items"][identifier]["in_parts"] is True

    parts = side.ask("POST", "/signed-urls/upload-parts", subject).json
    size = parts["part_bytes"]
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    md5s = {str(n): hashlib.md5(piece).hexdigest() for n, piece in enumerate(pieces, 1)}
    signed = side.ask("POST", "/signed-urls/upload-parts/sign", {**subject, "parts": md5s}).json
    early = side.ask("POST", "/signed-urls/upload-parts/complete", {**subject, "etags": ["x"]})
    etags = []
    for number, piece in enumerate(pieces, 1):
        place = signed["urls"][str(number)]
        answer = side.at("PUT", place["url"], piece, **_named(place["headers"]))
        etags.append(answer.headers["ETag"])
    again = side.ask("POST", "/signed-urls/upload-parts", subject).json
    done = side.ask("POST", "/signed-urls/upload-parts/complete", {**subject, "etags": etags})

    assert parts["stored"] is False
    assert early.status == 422
    assert {n: etag.strip('"') for n, etag in again["etags"].items()} == md5s
    assert done.json == {"stored": True}
    assert side.ask("POST", "/signed-urls/upload-parts", subject).json == {"stored": True}


BLOCKS = {"two": bytes(range(256)) * 8192, "small": b"small"}


def test_block_hashes_go_with_the_upload(side: Side) -> None:
    right = object_of(BLOCKS)
    begun = announce(side, BLOCKS)
    put_all(side, begun, BLOCKS, b"")
    place = begun["block_hashes_url"]
    assert side.at("PUT", place["url"], right[:-1], **_named(place["headers"])).status == 200
    refused = side.ask("POST", "/signed-urls/upload-complete", {"uri": begun["uri"]})
    assert side.at("PUT", place["url"], right, **_named(place["headers"])).status == 200

    done = side.ask("POST", "/signed-urls/upload-complete", {"uri": begun["uri"]})

    answer = side.ask("GET", f"/signed-urls/dataset/{encoded(begun['uri'])}?items=false").json
    items = side.ask("POST", f"/signed-urls/items/{encoded(begun['uri'])}", {"identifiers": []})
    part = side.at("GET", items.json["block_hashes_url"], Range="bytes=64-127")
    assert (refused.status, done.status) == (422, 200)
    assert (part.status, part.content) == (206, right[64:128])
    assert side.at("PUT", answer["block_hashes_url"], right).status == 403


def test_block_hashes_are_added_once_to_what_has_large_items(side: Side) -> None:
    begun, small = announce(side, BLOCKS), publish(side)
    put_all(side, begun, BLOCKS, b"")
    uri = begun["uri"]
    side.ask("POST", "/signed-urls/upload-complete", {"uri": uri})
    at, done = f"/signed-urls/block-hashes/{encoded(uri)}", "/signed-urls/block-hashes-complete"
    asked = side.ask("POST", at, {})
    early = side.ask("POST", done, {"uri": uri})
    assert side.at("PUT", asked.json["url"], object_of(BLOCKS)).status == 200

    added = side.ask("POST", done, {"uri": uri})

    assert "block_hashes_url" not in announce(side, CONTENTS)
    assert (asked.status, asked.json["headers"], early.status) == (200, {}, 422)
    assert added.json == {"uri": uri, "status": "stored"}
    assert [side.ask("POST", at, {}).status, side.ask("POST", done, {"uri": uri}).status] == [
        409
    ] * 2
    assert side.ask("POST", f"/signed-urls/block-hashes/{encoded(small)}", {}).status == 422
    answer = side.ask("GET", f"/signed-urls/dataset/{encoded(uri)}").json
    assert side.at("GET", answer["block_hashes_url"]).content == object_of(BLOCKS)
