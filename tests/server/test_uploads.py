"""Pending uploads: seen, resumed and deleted by whoever began them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dtoolcore
import pytest

from dserverfs.base.model import identifier_of
from dserverfs.server.store.bucket import ObjectStore
from tests.support.server_store import set_dtool_s3, storage_of
from tests.support.servers import (
    ServerHandle,
    begin,
    complete,
    encoded,
    new_uuid,
    put_items,
    upload,
    upload_body,
)

CONTENTS = {"a.txt": b"alpha", "b/é.txt": b"beta"}


def keys_of(server: ServerHandle, uri: str) -> list[str]:
    storage = storage_of(server)
    store = ObjectStore(storage)
    uuid = uri.rpartition("/")[2]
    found = [
        stored.key
        for prefix in (uuid, f"dtool-{uuid}")
        for stored in store.iter_objects(storage.bucket, prefix)
    ]
    store.client.close()
    return found


def test_pending_upload_is_listed_and_described(server: ServerHandle) -> None:
    overlay = {identifier_of(relpath): 1 for relpath in CONTENTS}
    body = upload_body(
        CONTENTS, name="begun", tags=["t"], annotations={"n": [1]}, overlays={"o": overlay}
    )
    uri = begin(server, body)["uri"]
    put_items(begin(server, body), {"a.txt": CONTENTS["a.txt"]})

    (listed,) = [
        each for each in server.get("/signed-urls/uploads").json()["uploads"] if each["uri"] == uri
    ]
    described = server.get(f"/signed-urls/upload/{encoded(uri)}").json()

    assert listed.items() <= described.items()
    assert (listed["name"], listed["number_of_items"], listed["size_in_bytes"]) == ("begun", 2, 9)
    assert listed["uuid"] == body["uuid"]
    assert described["stored"] == [identifier_of("a.txt")]
    assert described["items"][identifier_of("b/é.txt")]["relpath"] == "b/é.txt"
    assert (described["tags"], described["annotations"]) == (["t"], {"n": [1]})
    assert described["overlays"] == {"o": overlay}


def test_upload_is_pending_until_it_is_complete(server: ServerHandle) -> None:
    uri = upload(server, CONTENTS)

    uploads = server.get("/signed-urls/uploads").json()["uploads"]
    assert uri not in [each["uri"] for each in uploads]
    for method in ("GET", "DELETE"):
        assert server.request(method, f"/signed-urls/upload/{encoded(uri)}").status_code == 404
    assert server.get(f"/signed-urls/dataset/{encoded(uri)}").status_code == 200


def test_deleted_upload_leaves_nothing_and_can_be_begun_again(server: ServerHandle) -> None:
    body = upload_body(CONTENTS)
    begun = begin(server, body)
    put_items(begun, CONTENTS)
    uri = begun["uri"]
    assert len(keys_of(server, uri)) == 4  # two items, README, registration

    answer = server.request("DELETE", f"/signed-urls/upload/{encoded(uri)}")

    assert answer.json() == {"uri": uri, "status": "deleted"}
    assert keys_of(server, uri) == []
    assert complete(server, uri).status_code == 400
    again = begin(server, body)
    assert again["stored"] == []
    put_items(again, CONTENTS)
    assert complete(server, uri).status_code == 200


def test_pending_upload_is_nobody_elses(server: ServerHandle) -> None:
    other = f"user-{new_uuid()[:8]}"
    base_uri = server.add_base_uri(register=[server.username, other])
    uri = begin(server, upload_body(CONTENTS), base_uri)["uri"]
    path, token = f"/signed-urls/upload/{encoded(uri)}", server.token_for(other)

    assert server.get("/signed-urls/uploads", token=token).json() == {"uploads": []}
    assert server.get(path, token=token).status_code == 409
    assert server.request("DELETE", path, token=token).status_code == 409
    assert server.get(path).status_code == 200


def test_frozen_dataset_is_not_deleted_by_way_of_an_upload(
    server: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = upload(server, CONTENTS)
    server.request("DELETE", f"/uris/{encoded(uri)}").raise_for_status()  # of the index only
    begin(server, upload_body(CONTENTS, uuid=uri.rpartition("/")[2]))
    before = keys_of(server, uri)

    answer = server.request("DELETE", f"/signed-urls/upload/{encoded(uri)}")

    assert answer.status_code == 409
    assert keys_of(server, uri) == before
    assert complete(server, uri).status_code == 200


def test_dtool_does_not_take_a_pending_upload_for_a_dataset(
    server: ServerHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a bucket with few objects: dtool-s3 lists all there are, one by one.
    base_uri = server.add_base_uri(search=[server.username], register=[server.username])
    storage = dataclasses.replace(storage_of(server), bucket=base_uri.removeprefix("s3://"))
    set_dtool_s3(monkeypatch, storage, tmp_path)
    frozen = upload(server, CONTENTS, base_uri=base_uri)
    begin(server, upload_body(CONTENTS), base_uri)

    broker = dtoolcore._get_storage_broker(base_uri, None)

    assert broker.list_dataset_uris(base_uri, None) == [frozen]


@pytest.mark.parametrize("is_announced_again", [False, True])
def test_registration_key_that_a_power_cut_took_is_there_again_after_the_freeze(
    server: ServerHandle, is_announced_again: bool
) -> None:
    storage = storage_of(server)
    body = upload_body(CONTENTS)
    registration = f"dtool-{body['uuid']}"
    begun = begin(server, body)
    put_items(begun, CONTENTS)
    store = ObjectStore(storage)
    store.delete(storage.bucket, [registration])

    if is_announced_again:
        again = begin(server, body)
        assert again["stored"] == sorted(map(identifier_of, CONTENTS))
        assert paths_in(again).isdisjoint(paths_in(begun))
    done = complete(server, begun["uri"])

    assert done.status_code == 200, done.text
    prefix = store.read(storage.bucket, registration, limit_in_bytes=100).decode()
    for relpath, content in CONTENTS.items():
        key = f"{prefix}{body['uuid']}/data/{identifier_of(relpath)}"
        assert store.read(storage.bucket, key, limit_in_bytes=100) == content
    store.client.close()


def paths_in(begun: Mapping[str, Any]) -> set[str]:
    """Return where the items go."""
    return {item["url"].partition("?")[0] for item in begun["upload_urls"]["items"].values()}
