"""From the announcement of a dataset to its freeze, by signed URLs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from dserverfs.base.model import identifier_of
from tests.support.servers import (
    ServerHandle,
    begin,
    complete,
    encoded,
    put_items,
    upload,
    upload_body,
)

CONTENTS = {"a.txt": b"alpha", "dir/é ü.bin": bytes(range(256)) * 100, "empty": b""}


def fetch(url: str, **headers: str) -> requests.Response:
    return requests.get(url, headers=headers, timeout=30)


@pytest.fixture(scope="module")
def uri(server: ServerHandle) -> str:
    return upload(server, CONTENTS)


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
    assert "a.txt not uploaded" in stale.json()["message"]
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


def test_urls_of_an_upload_change_nothing_after_the_freeze(server: ServerHandle) -> None:
    """They are good for four hours, however soon the dataset is frozen."""
    begun = begin(server, upload_body(CONTENTS))
    put_items(begun, CONTENTS, b"frozen: yes")
    complete(server, begun["uri"]).raise_for_status()
    urls = server.get(f"/signed-urls/dataset/{encoded(begun['uri'])}").json()

    requests.put(begun["upload_urls"]["readme"], data=b"forged: yes", timeout=30)
    for item in begun["upload_urls"]["items"].values():
        other = {**item["headers"], "Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg=="}
        for headers in (item["headers"], other):
            forged = requests.put(item["url"], data=b"forged", headers=headers, timeout=30)
            assert forged.status_code in (400, 403)

    assert fetch(urls["readme_url"]).content == b"frozen: yes"
    assert server.get(f"/readmes/{encoded(begun['uri'])}").json() == {"readme": "frozen: yes"}
    for identifier, url in urls["item_urls"].items():
        relpath = begun["upload_urls"]["items"][identifier]["relpath"]
        assert fetch(url).content == CONTENTS[relpath]


def test_readme_is_uploaded_anew_until_the_freeze(server: ServerHandle) -> None:
    body = upload_body(CONTENTS)
    put_items(begin(server, body), CONTENTS, b"first: yes")
    begun = begin(server, body)
    put_items(begun, {}, b"second: yes")
    complete(server, begun["uri"]).raise_for_status()

    assert server.get(f"/readmes/{encoded(begun['uri'])}").json() == {"readme": "second: yes"}


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
