from __future__ import annotations

import datetime
import json
import time
from typing import Any

import pytest
import requests

from dserverfs.base.model import identifier_of
from tests.support.servers import ServerHandle, begin, encoded, new_uuid, upload, upload_body

CONTENTS = {"a.txt": b"alpha", "dir/é ü.bin": bytes(range(256)) * 100, "empty": b""}


def fetch(url: str, **headers: str) -> requests.Response:
    return requests.get(url, headers=headers, timeout=30)


@pytest.fixture(scope="module")
def uri(server: ServerHandle) -> str:
    overlay = {identifier_of(relpath): len(relpath) for relpath in CONTENTS}
    return upload(
        server,
        CONTENTS,
        readme=b"project: signed URLs\n",
        name="signed",
        tags=["first", "sec.ond"],
        annotations={"stars": 5, "nested": {"a": [None]}},
        overlays={"lengths": overlay},
    )


def test_dataset_answers_urls_for_everything(server: ServerHandle, uri: str) -> None:
    answer = server.get(f"/signed-urls/dataset/{encoded(uri)}")

    body = answer.json()
    assert answer.status_code == 200
    assert set(body) == {
        "uri",
        "expiry_seconds",
        "expiry_timestamp",
        "admin_metadata_url",
        "manifest_url",
        "readme_url",
        "item_urls",
        "overlay_urls",
        "annotation_urls",
        "tags",
    }
    assert body["uri"] == uri
    assert body["tags"] == ["first", "sec.ond"]
    assert fetch(body["readme_url"]).text == "project: signed URLs\n"
    for relpath, content in CONTENTS.items():
        assert fetch(body["item_urls"][identifier_of(relpath)]).content == content
    manifest = fetch(body["manifest_url"]).json()
    assert manifest["hash_function"] == "md5sum_hexdigest"
    assert {item["relpath"] for item in manifest["items"].values()} == set(CONTENTS)
    assert fetch(body["annotation_urls"]["stars"]).json() == 5
    assert fetch(body["annotation_urls"]["nested"]).json() == {"a": [None]}
    assert fetch(body["overlay_urls"]["lengths"]).json()[identifier_of("a.txt")] == 5
    assert fetch(body["admin_metadata_url"]).json()["type"] == "dataset"


def test_dataset_says_when_its_urls_end(server: ServerHandle, uri: str) -> None:
    before = time.time()
    body = server.get(f"/signed-urls/dataset/{encoded(uri)}").json()

    end = datetime.datetime.fromisoformat(body["expiry_timestamp"])
    assert body["expiry_seconds"] == 3600
    assert end.utcoffset() == datetime.timedelta(0)
    assert before - 1 <= end.timestamp() - 3600 <= time.time()
    assert "X-Amz-Expires=3600" in body["readme_url"]


def test_dataset_leaves_out_item_urls_on_request(server: ServerHandle, uri: str) -> None:
    body = server.get(f"/signed-urls/dataset/{encoded(uri)}?items=false").json()

    assert "item_urls" not in body
    assert fetch(body["manifest_url"]).status_code == 200


def test_dataset_takes_a_uri_that_is_not_encoded(server: ServerHandle, uri: str) -> None:
    assert server.get(f"/signed-urls/dataset/{uri}").json()["uri"] == uri


def test_item_answers_one_url_that_serves_ranges(server: ServerHandle, uri: str) -> None:
    identifier = identifier_of("dir/é ü.bin")
    body = server.get(f"/signed-urls/item/{encoded(uri)}/{identifier}").json()

    part = fetch(body["url"], Range="bytes=10-19")
    assert set(body) == {"uri", "identifier", "expiry_seconds", "expiry_timestamp", "url"}
    assert (part.status_code, part.content) == (206, bytes(range(10, 20)))


def test_items_answers_urls_for_a_batch(server: ServerHandle, uri: str) -> None:
    wanted = [identifier_of("a.txt"), identifier_of("empty")]

    body = server.post(f"/signed-urls/items/{encoded(uri)}", {"identifiers": wanted}).json()

    assert set(body) == {"uri", "expiry_seconds", "expiry_timestamp", "item_urls"}
    assert set(body["item_urls"]) == set(wanted)
    assert fetch(body["item_urls"][wanted[0]]).content == b"alpha"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"identifiers": ["0" * 40]}, 404),
        ({"identifiers": ["0" * 40] * 1001}, 400),
        ({"identifiers": "x"}, 422),
        ({"identifiers": [1]}, 422),
        ({}, 422),
        ([], 422),
    ],
)
def test_items_refuses_batches(server: ServerHandle, uri: str, body: Any, status: int) -> None:
    answer = server.post(f"/signed-urls/items/{encoded(uri)}", body)

    assert answer.status_code == status
    assert answer.json()["code"] == status
    assert answer.json()["message"]


def test_unknown_datasets_and_items_are_404(server: ServerHandle, uri: str) -> None:
    unknown = encoded(f"{server.backend_uri}/{new_uuid()}")

    assert server.get(f"/signed-urls/dataset/{unknown}").status_code == 404
    assert server.get(f"/signed-urls/item/{unknown}/{'0' * 40}").status_code == 404
    assert server.get(f"/signed-urls/item/{encoded(uri)}/{'0' * 40}").status_code == 404
    assert server.get(f"/signed-urls/dataset/{encoded(uri.upper())}").status_code == 403


def test_pending_uploads_are_404(server: ServerHandle) -> None:
    pending = begin(server, upload_body(CONTENTS))["uri"]

    assert server.get(f"/signed-urls/dataset/{encoded(pending)}").status_code == 404
    assert server.get(f"/uris/{encoded(pending)}").status_code == 404


def routes(uri: str) -> list[tuple[str, str, Any]]:
    base_uri, _, _ = uri.rpartition("/")
    return [
        ("GET", f"/signed-urls/dataset/{encoded(uri)}", None),
        ("GET", f"/signed-urls/item/{encoded(uri)}/{identifier_of('a.txt')}", None),
        ("POST", f"/signed-urls/items/{encoded(uri)}", {"identifiers": []}),
        ("POST", f"/signed-urls/upload/{encoded(base_uri)}", upload_body(CONTENTS)),
        ("POST", "/signed-urls/upload-complete", {"uri": uri}),
    ]


@pytest.mark.parametrize("index", range(5))
def test_routes_want_a_token(server: ServerHandle, uri: str, index: int) -> None:
    method, path, body = routes(uri)[index]
    expired = server.token_for(server.username, exp=int(time.time()) - 10)

    assert server.request(method, path, body, token="").status_code == 401
    assert server.request(method, path, body, token=expired).status_code == 401
    assert server.request(method, path, body, token="not.a.token").status_code == 422
    assert server.request(method, path, body, token=server.token + "x").status_code == 422


@pytest.mark.parametrize("index", range(5))
def test_routes_want_permission(server: ServerHandle, uri: str, index: int) -> None:
    method, path, body = routes(uri)[index]
    server.add_base_uri(search=["dopey"], register=["dopey"])
    elsewhere = server.token_for("dopey")
    nobody = server.token_for("nobody")

    assert server.request(method, path, body, token=elsewhere).status_code == 403
    assert server.request(method, path, body, token=nobody).status_code == 403


@pytest.mark.parametrize("index", range(5))
def test_routes_refuse_an_unknown_base_uri(server: ServerHandle, index: int) -> None:
    method, path, body = routes(f"s3://nowhere/{new_uuid()}")[index]

    assert server.request(method, path, body).status_code == 403


def test_searching_does_not_permit_registering(server: ServerHandle) -> None:
    base_uri = server.add_base_uri(search=["sleepy", "happy"], register=["happy"])
    path = f"/signed-urls/upload/{encoded(base_uri)}"
    body = upload_body(CONTENTS)

    assert server.post(path, body, token=server.token_for("sleepy")).status_code == 403
    assert server.post(path, body, token=server.token_for("happy")).status_code == 200


def test_other_backends_are_501(server: ServerHandle) -> None:
    base_uri = "azure://account"
    server.request(
        "PUT",
        f"/base-uris/{encoded(base_uri)}",
        {
            "users_with_search_permissions": [server.username],
            "users_with_register_permissions": [server.username],
        },
    ).raise_for_status()

    answer = server.post(f"/signed-urls/upload/{encoded(base_uri)}", upload_body(CONTENTS))

    assert answer.status_code == 501
    assert "s3://BUCKET" in answer.json()["message"]


def test_a_second_bucket_works(server: ServerHandle) -> None:
    base_uri = server.add_base_uri(search=[server.username], register=[server.username])

    uri = upload(server, CONTENTS, base_uri=base_uri)

    body = server.get(f"/signed-urls/dataset/{encoded(uri)}").json()
    assert uri.startswith(base_uri)
    assert fetch(body["item_urls"][identifier_of("a.txt")]).content == b"alpha"


def test_a_changed_url_is_refused(server: ServerHandle, uri: str) -> None:
    body = server.get(f"/signed-urls/dataset/{encoded(uri)}").json()
    url = body["item_urls"][identifier_of("a.txt")]

    assert fetch(url.replace(identifier_of("a.txt"), identifier_of("empty"))).status_code == 403
    assert fetch(url.replace("Expires=3600", "Expires=36000")).status_code == 403
    assert fetch(url.partition("?")[0]).status_code == 403


def test_the_admin_metadata_is_on_the_object_for_dtool_s3(server: ServerHandle, uri: str) -> None:
    url = server.get(f"/signed-urls/dataset/{encoded(uri)}").json()["admin_metadata_url"]

    answer = fetch(url)

    for name, value in json.loads(answer.content).items():
        assert answer.headers[f"x-amz-meta-{name}"] == str(value)
