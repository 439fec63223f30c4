from __future__ import annotations

import datetime
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from dserverfs.model import identifier_of
from tests.serving import (
    ServerHandle,
    begin,
    complete,
    encoded,
    new_uuid,
    put_items,
    upload,
    upload_body,
)

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


def test_upload_answers_urls_and_the_headers_they_pin(server: ServerHandle) -> None:
    announced = upload_body(CONTENTS)
    body = begin(server, announced)

    assert body["uuid"] == announced["uuid"]
    assert body["base_uri"] == server.backend_uri
    assert body["uri"] == f"{server.backend_uri}/{announced['uuid']}"
    assert body["expiry_seconds"] == 14400
    assert body["stored"] == []
    items = body["upload_urls"]["items"]
    assert set(items) == {identifier_of(relpath) for relpath in CONTENTS}
    item = items[identifier_of("a.txt")]
    assert item["relpath"] == "a.txt"
    assert item["headers"] == {
        "Content-MD5": "LBdDo5EwX782ffjk8Gn5+Q==",
        "x-amz-meta-handle": "YS50eHQ=",
        "x-amz-meta-checksum": "2c1743a391305fbf367df8e4f069f9f9",
    }
    signed = "X-Amz-SignedHeaders=content-md5%3Bhost%3Bx-amz-meta-checksum%3Bx-amz-meta-handle"
    assert signed in item["url"]


def test_an_item_put_without_its_headers_or_with_other_bytes_is_refused(
    server: ServerHandle,
) -> None:
    item = begin(server, upload_body(CONTENTS))["upload_urls"]["items"][identifier_of("a.txt")]

    bare = requests.put(item["url"], data=b"alpha", timeout=30)
    wrong = requests.put(item["url"], data=b"alphA", headers=item["headers"], timeout=30)

    assert bare.status_code == 403
    assert (wrong.status_code, "BadDigest" in wrong.text) == (400, True)


def test_a_changed_url_is_refused(server: ServerHandle, uri: str) -> None:
    body = server.get(f"/signed-urls/dataset/{encoded(uri)}").json()
    url = body["item_urls"][identifier_of("a.txt")]

    assert fetch(url.replace(identifier_of("a.txt"), identifier_of("empty"))).status_code == 403
    assert fetch(url.replace("Expires=3600", "Expires=36000")).status_code == 403
    assert fetch(url.partition("?")[0]).status_code == 403


def test_complete_registers(server: ServerHandle) -> None:
    body = upload_body(CONTENTS, name="fresh")
    begun = begin(server, body)
    put_items(begun, CONTENTS, b"word: antidisestablishment")

    done = complete(server, begun["uri"])

    assert done.json() == {
        "uri": begun["uri"],
        "status": "registered",
        "name": "fresh",
        "uuid": body["uuid"],
    }
    dataset = server.get(f"/uris/{encoded(begun['uri'])}").json()
    assert dataset["number_of_items"] == 3
    assert dataset["size_in_bytes"] == sum(map(len, CONTENTS.values()))
    assert dataset["frozen_at"] == 1700000000.5
    assert abs(dataset["created_at"] - time.time()) < 60
    readme = server.get(f"/readmes/{encoded(begun['uri'])}").json()
    assert readme == {"readme": "word: antidisestablishment"}


def test_complete_keeps_a_creation_date(server: ServerHandle) -> None:
    uri = upload(server, CONTENTS, created_at=1234567890.25)

    body = server.get(f"/signed-urls/dataset/{encoded(uri)}").json()
    assert server.get(f"/uris/{encoded(uri)}").json()["created_at"] == 1234567890.25
    assert fetch(body["admin_metadata_url"]).json()["created_at"] == 1234567890.25


def test_complete_names_a_missing_item_and_can_be_repeated(server: ServerHandle) -> None:
    begun = begin(server, upload_body(CONTENTS))
    put_items(begun, {"a.txt": b"alpha", "empty": b""})

    refused = complete(server, begun["uri"])
    again = complete(server, begun["uri"])
    put_items(begun, CONTENTS)
    done = complete(server, begun["uri"])

    assert refused.status_code == 422
    assert "dir/é ü.bin not uploaded" in refused.json()["message"]
    assert "a.txt" not in refused.json()["message"]
    assert again.status_code == 422
    assert done.status_code == 200


def test_complete_twice_is_400(server: ServerHandle, uri: str) -> None:
    answer = complete(server, uri)

    assert answer.status_code == 400
    assert "no pending upload" in answer.json()["message"]


@pytest.mark.parametrize(
    ("body", "status"), [({}, 422), ({"uri": 1}, 422), ({"uri": "x"}, 403), ([], 422)]
)
def test_complete_refuses_other_bodies(server: ServerHandle, body: Any, status: int) -> None:
    assert server.post("/signed-urls/upload-complete", body).status_code == status


def test_bodies_that_are_no_json_are_400(server: ServerHandle) -> None:
    for data in (b"", b"{", b"\xff", b"[" * 100_000):
        answer = requests.post(
            f"{server.url}/signed-urls/upload-complete",
            data=data,
            headers={"Authorization": f"Bearer {server.token}"},
            timeout=30,
        )
        assert answer.status_code == 400


def test_upload_refuses_hostile_items_with_a_message(server: ServerHandle) -> None:
    body = upload_body({"../../etc/passwd": b"x"})

    answer = server.post(f"/signed-urls/upload/{encoded(server.backend_uri)}", body)

    assert answer.status_code == 400
    assert "etc/passwd" in answer.json()["message"]


def test_an_upload_begun_again_says_what_is_stored(server: ServerHandle) -> None:
    body = upload_body(CONTENTS)
    put_items(begin(server, body), {"a.txt": b"alpha"})

    again = begin(server, body)

    assert again["stored"] == [identifier_of("a.txt")]
    assert set(again["upload_urls"]["items"]) == {identifier_of(name) for name in CONTENTS}


def test_an_upload_begun_again_replaces_what_was_announced(server: ServerHandle) -> None:
    first = upload_body(
        {"a.txt": b"alpha", "gone.txt": b"gone"}, tags=["old"], annotations={"old": 1}
    )
    put_items(begin(server, first), {"a.txt": b"alpha", "gone.txt": b"gone"})
    second = upload_body({"a.txt": b"ALPHA"}, uuid=first["uuid"], name="renamed", tags=["new"])
    begun = begin(server, second)

    stale = complete(server, begun["uri"])
    put_items(begun, {"a.txt": b"ALPHA"})
    done = complete(server, begun["uri"])

    assert begun["stored"] == []
    assert "a.txt stored with another content or size" in stale.json()["message"]
    assert done.json()["name"] == "renamed"
    body = server.get(f"/signed-urls/dataset/{encoded(begun['uri'])}").json()
    assert list(body["item_urls"]) == [identifier_of("a.txt")]
    assert (body["tags"], body["annotation_urls"]) == (["new"], {})
    orphan = body["item_urls"][identifier_of("a.txt")]
    assert fetch(orphan).content == b"ALPHA"


def test_upload_of_a_registered_dataset_is_409(server: ServerHandle, uri: str) -> None:
    body = upload_body(CONTENTS, uuid=uri.rpartition("/")[2])

    answer = server.post(f"/signed-urls/upload/{encoded(server.backend_uri)}", body)

    assert answer.status_code == 409
    assert "exists already" in answer.json()["message"]


def test_upload_of_a_uuid_pending_elsewhere_is_409(server: ServerHandle) -> None:
    base_uri = server.add_base_uri(search=[server.username], register=[server.username])
    body = upload_body(CONTENTS)
    begin(server, body)

    answer = server.post(f"/signed-urls/upload/{encoded(base_uri)}", body)

    assert answer.status_code == 409
    assert server.backend_uri in answer.json()["message"]


def test_completion_of_a_uuid_pending_elsewhere_is_409(server: ServerHandle) -> None:
    """And nobody is told where somebody else's is."""
    base_uri = server.add_base_uri(search=["dopey"], register=["dopey"])
    body = upload_body(CONTENTS)
    uri = begin(server, body)["uri"]
    path, token = f"/signed-urls/upload/{encoded(base_uri)}", server.token_for("dopey")
    elsewhere = {"uri": uri.replace(server.backend_uri, base_uri)}

    answers = [
        server.post(path, body, token=token),
        server.post("/signed-urls/upload-complete", elsewhere, token=token),
    ]

    assert [answer.status_code for answer in answers] == [409, 409]
    assert not any(server.backend_uri in answer.text for answer in answers)


def test_an_upload_belongs_to_who_began_it(server: ServerHandle) -> None:
    base_uri = server.add_base_uri(search=["bashful", "doc"], register=["bashful", "doc"])
    path = f"/signed-urls/upload/{encoded(base_uri)}"
    body = upload_body(CONTENTS)
    uri = server.post(path, body, token=server.token_for("bashful")).json()["uri"]

    other = server.token_for("doc")
    answers = [
        server.post(path, body, token=other),
        server.post("/signed-urls/upload-complete", {"uri": uri}, token=other),
    ]

    assert [answer.status_code for answer in answers] == [409, 409]
    assert "bashful" in answers[0].json()["message"]


def test_a_readme_that_is_not_text_is_refused(server: ServerHandle) -> None:
    begun = begin(server, upload_body(CONTENTS))
    put_items(begun, CONTENTS, b"\xff\xfe")

    answer = complete(server, begun["uri"])

    assert answer.status_code == 400
    assert "README.yml" in answer.json()["message"]


def test_a_readme_that_was_not_uploaded_is_empty(server: ServerHandle) -> None:
    begun = begin(server, upload_body({}))

    assert complete(server, begun["uri"]).status_code == 200

    body = server.get(f"/signed-urls/dataset/{encoded(begun['uri'])}").json()
    assert fetch(body["readme_url"]).content == b""
    assert body["item_urls"] == {}


def test_an_item_larger_than_a_chunk_of_the_store_is_complete(server: ServerHandle) -> None:
    content = bytes(range(256)) * 65536  # 16 MiB; SeaweedFS stores 4 MiB each

    uri = upload(server, {"large": content})

    url = server.get(f"/signed-urls/item/{encoded(uri)}/{identifier_of('large')}").json()["url"]
    assert fetch(url).content == content


def test_uploads_at_once_do_not_disturb_each_other(server: ServerHandle) -> None:
    with ThreadPoolExecutor(8) as executor:
        uris = list(executor.map(lambda _: upload(server, CONTENTS), range(16)))

    assert len(set(uris)) == 16
    for uri in uris:
        assert server.get(f"/uris/{encoded(uri)}").status_code == 200


def test_one_upload_begun_and_completed_many_times_at_once_is_registered_once(
    server: ServerHandle,
) -> None:
    body = upload_body(CONTENTS)
    with ThreadPoolExecutor(8) as executor:
        begun = list(executor.map(lambda _: begin(server, body), range(8)))
        put_items(begun[0], CONTENTS)
        done = list(executor.map(lambda _: complete(server, begun[0]["uri"]), range(8)))

    assert sorted(answer.status_code for answer in done) == [200] + [400] * 7


def test_the_admin_metadata_is_on_the_object_for_dtool_s3(server: ServerHandle, uri: str) -> None:
    url = server.get(f"/signed-urls/dataset/{encoded(uri)}").json()["admin_metadata_url"]

    answer = fetch(url)

    for name, value in json.loads(answer.content).items():
        assert answer.headers[f"x-amz-meta-{name}"] == str(value)
