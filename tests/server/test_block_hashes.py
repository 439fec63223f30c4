"""The hashes of a dataset's blocks: taken with the upload or later, checked, signed, never changed.

By the app in this process; its store is a real one.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import urllib3
from dservercore.extensions import sql_db

from dserverfs.base.block_hashes import HEAD_BYTES
from dserverfs.base.errors import Unreachable
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.server.database import bucket_index, stored_block_hashes
from dserverfs.server.database.stored_metadata import StoredMetadata
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.layout import DatasetKeys
from tests.support.block_hashes import object_of
from tests.support.server_app import AppClient, put_all
from tests.support.servers import ServerHandle, encoded, upload_body

CONTENTS = {
    "a/large": b"x" * (BLOCK_SIZE + 7),
    "one more": b"y" * (BLOCK_SIZE + 1),
    "small": b"small",
}
SMALL = {"small": b"small", "exact": b"x" * BLOCK_SIZE}


RIGHT = object_of(CONTENTS)


@pytest.fixture(scope="module")
def client(server: ServerHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    client = AppClient(server, tmp_path_factory.mktemp("block-hashes"))
    yield client
    client.close()


def at(method: str, url: str, content: bytes | None = None) -> urllib3.BaseHTTPResponse:
    return urllib3.request(method, url, body=content, retries=False)


def put(url: str, content: bytes) -> None:
    assert at("PUT", url, content).status == 200


def announce(client: AppClient, body: Any) -> Any:
    begun = client.post(f"/signed-urls/upload/{encoded(client.base_uri)}", body)
    assert begun.status_code == 200, begun.text
    return begun.json


def begin(client: AppClient, contents: Mapping[str, bytes] = CONTENTS, **others: Any) -> Any:
    """Announce a dataset and put its items; return the answer."""
    begun = announce(client, upload_body(contents, **others))
    put_all(begun, contents, b"")
    return begun


def complete(client: AppClient, uri: str) -> Any:
    return client.post("/signed-urls/upload-complete", {"uri": uri})


def publish(client: AppClient, content: bytes | None = RIGHT) -> str:
    """Freeze a dataset, with these block hashes or none."""
    begun = begin(client)
    if content is not None:
        put(begun["block_hashes_url"]["url"], content)
    done = complete(client, begun["uri"])
    assert done.status_code == 200, done.text
    uri: str = begun["uri"]
    return uri


def served(client: AppClient, uri: str) -> bytes | None:
    """Return what a reader of the dataset gets; None if there is no URL."""
    items = client.post(f"/signed-urls/items/{encoded(uri)}", {"identifiers": []}).json
    body = client.get(f"/signed-urls/dataset/{encoded(uri)}?items=false").json
    url = body.get("block_hashes_url")
    assert (url is None) == ("block_hashes_url" not in items)
    return None if url is None else at("GET", url).data


def keys(client: AppClient, uri: str) -> list[str]:
    """Return the keys of all that is stored of the block hashes."""
    prefix = DatasetKeys("", uri.rpartition("/")[2]).all
    found = (
        stored.key.removeprefix(prefix)
        for stored in client.store.iter_objects(client.storage.bucket, prefix)
    )
    return [key for key in found if "block-hashes" in key]


def test_ability_is_named(client: AppClient) -> None:
    assert "dserverfs_block_hashes" in client.get("/config/versions").json["versions"]


def test_what_is_uploaded_is_served_by_ranges(client: AppClient) -> None:
    uri = publish(client)

    body = client.get(f"/signed-urls/dataset/{encoded(uri)}").json
    head = urllib3.request(
        "GET", body["block_hashes_url"], headers={"Range": f"bytes=0-{HEAD_BYTES - 1}"}
    )
    assert served(client, uri) == RIGHT
    assert (head.status, head.data) == (206, RIGHT[:HEAD_BYTES])
    assert keys(client, uri) == ["block-hashes"]


def test_dataset_is_registered_without_them(client: AppClient) -> None:
    uri = publish(client, None)

    assert served(client, uri) is None
    assert keys(client, uri) == []


def test_items_of_one_block_have_none(client: AppClient) -> None:
    begun = begin(client, SMALL)

    assert "block_hashes_url" not in begun
    assert complete(client, begun["uri"]).status_code == 200
    assert served(client, begun["uri"]) is None


def test_they_are_what_one_put_holds(client: AppClient, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for limit in (len(RIGHT), len(RIGHT) - 1):
        storage = dataclasses.replace(client.storage, max_put_bytes=limit)
        monkeypatch.setattr(client.store, "storage", storage)
        taken.append("block_hashes_url" in announce(client, upload_body(CONTENTS)))

    assert taken == [True, False]


def changed_head(at: int, form: str, value: int) -> bytes:
    head = bytearray(RIGHT[:HEAD_BYTES])
    struct.pack_into(form, head, at, value)
    return bytes(head) + RIGHT[HEAD_BYTES:]


WRONG = {
    "empty": (b"", "have 0 bytes"),
    "short": (RIGHT[:-1], f"have {len(RIGHT) - 1} bytes"),
    "long": (RIGHT + b"0", f"have {len(RIGHT) + 1} bytes"),
    "none": (b"0" * len(RIGHT), "are none"),
    "of another format": (changed_head(16, ">I", 2), "of format 2"),
    "of another block size": (changed_head(20, ">I", 4096), "of blocks of 4096 bytes"),
    "of another number": (changed_head(24, ">Q", 1), "are 1, and it has 4 blocks"),
    "of another manifest": (changed_head(40, ">I", 0), "of another manifest"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_not_the_dataset_s_is_refused_in_one_line(client: AppClient, kind: str) -> None:
    content, reason = WRONG[kind]
    begun = begin(client)
    put(begun["block_hashes_url"]["url"], content)

    refused = complete(client, begun["uri"])
    left = keys(client, begun["uri"])
    put(begun["block_hashes_url"]["url"], RIGHT)
    done = complete(client, begun["uri"])

    assert refused.status_code == 422
    assert reason in refused.json["message"]
    assert refused.json["message"].startswith(f"{begun['uri']} cannot be completed: its block")
    assert left == ["uploaded/block-hashes"]
    assert done.status_code == 200, done.text
    assert served(client, begun["uri"]) == RIGHT


def test_url_of_an_upload_changes_nothing_after_the_freeze(client: AppClient) -> None:
    begun = begin(client)
    url = begun["block_hashes_url"]["url"]
    put(url, RIGHT)
    assert complete(client, begun["uri"]).status_code == 200

    put(url, b"forged")
    reading = client.get(f"/signed-urls/dataset/{encoded(begun['uri'])}").json["block_hashes_url"]

    assert at("PUT", reading, b"forged").status == 403
    assert served(client, begun["uri"]) == RIGHT


def test_what_was_put_for_another_announcement_is_not_in_the_way(client: AppClient) -> None:
    """A client that makes none carries on with the upload of one that does."""
    more = {**CONTENTS, "b/large": b"z" * (2 * BLOCK_SIZE)}
    first = upload_body(CONTENTS)
    put(announce(client, first)["block_hashes_url"]["url"], RIGHT)
    begun = begin(client, more, uuid=first["uuid"])

    done = complete(client, begun["uri"])

    assert done.status_code == 200, done.text
    assert served(client, begun["uri"]) is None


def test_object_of_a_completion_that_stopped_half_way_is_replaced_or_removed(
    client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {**CONTENTS, "b/large": b"z" * (2 * BLOCK_SIZE)}
    first = upload_body(CONTENTS)
    begun = announce(client, first)
    put_all(begun, CONTENTS, b"")
    put(begun["block_hashes_url"]["url"], RIGHT)
    with monkeypatch.context() as patch:

        def put_nothing(*_: object) -> None:
            raise Unreachable("the store is away")

        patch.setattr(StoredMetadata, "put_admin_metadata", put_nothing)
        assert complete(client, begun["uri"]).status_code == 502
    assert keys(client, begun["uri"]) == ["block-hashes", "uploaded/block-hashes"]

    begun = begin(client, more, uuid=first["uuid"])
    done = complete(client, begun["uri"])

    assert done.status_code == 200, done.text
    assert (served(client, begun["uri"]), keys(client, begun["uri"])) == (None, [])


def test_what_was_put_before_a_power_cut_counts_as_missing(
    client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = begin(client)
    put(begun["block_hashes_url"]["url"], RIGHT)
    monkeypatch.setattr(
        ObjectStore, "is_unsure", lambda store, bucket, key: key.endswith("/block-hashes")
    )

    done = complete(client, begun["uri"])

    assert done.status_code == 200, done.text
    assert served(client, begun["uri"]) is None


def test_they_go_along_when_an_upload_moves(client: AppClient) -> None:
    """As after a power cut that took its registration key."""
    begun = begin(client)
    put(begun["block_hashes_url"]["url"], RIGHT)
    uuid = begun["uri"].rpartition("/")[2]
    client.store.delete(client.storage.bucket, [DatasetKeys("", uuid).registration])
    client.stores.forget(begun["uri"])

    done = complete(client, begun["uri"])

    assert done.status_code == 200, done.text
    assert served(client, begun["uri"]) == RIGHT


# Of a dataset that is frozen already


def ask_to_add(client: AppClient, uri: str) -> Any:
    return client.post(f"/signed-urls/block-hashes/{encoded(uri)}", {})


def add(client: AppClient, uri: str) -> Any:
    return client.post("/signed-urls/block-hashes-complete", {"uri": uri})


def test_they_are_added_later(client: AppClient, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = publish(client, None)
    asked = ask_to_add(client, uri)
    put(asked.json["url"], RIGHT)
    before = served(client, uri)
    synced: list[bytes | None] = []
    monkeypatch.setattr(ObjectStore, "sync", lambda store: synced.append(served(client, uri)))

    done = add(client, uri)

    assert asked.json.keys() == {"uri", "expiry_seconds", "expiry_timestamp", "url", "headers"}
    assert before is None
    assert done.json == {"uri": uri, "status": "stored"}
    assert synced == [None]  # not served before it is on the disk
    assert served(client, uri) == RIGHT
    assert keys(client, uri) == ["block-hashes"]


def test_those_that_are_there_stay(client: AppClient) -> None:
    uri = publish(client, None)
    url = ask_to_add(client, uri).json["url"]
    put(url, RIGHT)
    assert add(client, uri).status_code == 200

    put(url, RIGHT[:HEAD_BYTES] + bytes(len(RIGHT) - HEAD_BYTES))

    assert [ask_to_add(client, uri).status_code, add(client, uri).status_code] == [409, 409]
    assert served(client, uri) == RIGHT


@pytest.mark.parametrize("kind", ["empty", "short", "of another manifest"])
def test_what_is_not_the_dataset_s_is_not_added(client: AppClient, kind: str) -> None:
    content, reason = WRONG[kind]
    uri = publish(client, None)
    put(ask_to_add(client, uri).json["url"], content)

    refused = add(client, uri)

    assert refused.status_code == 422
    assert reason in refused.json["message"]
    assert served(client, uri) is None


def test_nothing_is_added_where_nothing_was_put_or_is_to_be_hashed(client: AppClient) -> None:
    large, small = publish(client, None), begin(client, SMALL)["uri"]
    assert complete(client, small).status_code == 200

    answers = [add(client, large), add(client, small), ask_to_add(client, small)]

    assert [answer.status_code for answer in answers] == [422, 422, 422]
    assert "not uploaded" in answers[0].json["message"]
    assert "no item of more than one block" in answers[1].json["message"]


def test_one_that_a_stop_half_way_left_is_served_when_it_is_added_again(
    client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = publish(client, None)
    put(ask_to_add(client, uri).json["url"], RIGHT)
    with monkeypatch.context() as patch:

        def sync(store: ObjectStore) -> None:
            raise Unreachable("the disk fails")

        patch.setattr(ObjectStore, "sync", sync)
        assert add(client, uri).status_code == 502
    assert served(client, uri) is None
    put(ask_to_add(client, uri).json["url"], RIGHT)

    assert add(client, uri).status_code == 200
    assert served(client, uri) == RIGHT


def test_index_of_a_bucket_finds_them(client: AppClient) -> None:
    """As of a backup that was restored: the database has never heard of them."""
    with_hashes, without = publish(client), publish(client, None)
    small = begin(client, SMALL)["uri"]
    assert complete(client, small).status_code == 200
    with client.app.app_context():
        stored_block_hashes.note(with_hashes, is_stored=False)
        stored_block_hashes.note(without, is_stored=True)
        sql_db.session.commit()

        bucket_index.index(client.stores, client.base_uri)

    assert [served(client, uri) for uri in (with_hashes, without, small)] == [RIGHT, None, None]


def test_dataset_that_is_deleted_and_uploaded_again_has_those_of_the_last_upload(
    client: AppClient,
) -> None:
    uri = publish(client)
    body = upload_body(CONTENTS, uuid=uri.rpartition("/")[2])
    assert client.request("DELETE", f"/uris/{encoded(uri)}").status_code == 200
    client.store.delete(client.storage.bucket, [DatasetKeys("", body["uuid"]).block_hashes])

    put_all(announce(client, body), CONTENTS, b"")
    assert complete(client, uri).status_code == 200

    assert served(client, uri) is None


def test_dataset_that_is_deleted_and_uploaded_again_keeps_those_that_it_has(
    client: AppClient,
) -> None:
    uri = publish(client)
    body = upload_body(CONTENTS, uuid=uri.rpartition("/")[2])
    assert client.request("DELETE", f"/uris/{encoded(uri)}").status_code == 200

    begun = announce(client, body)
    put(begun["block_hashes_url"]["url"], RIGHT[:HEAD_BYTES] + bytes(len(RIGHT) - HEAD_BYTES))
    assert complete(client, uri).status_code == 200

    assert served(client, uri) == RIGHT


def test_those_that_the_store_lost_are_added_again(client: AppClient) -> None:
    uri = publish(client)
    client.store.delete(
        client.storage.bucket, [DatasetKeys("", uri.rpartition("/")[2]).block_hashes]
    )

    put(ask_to_add(client, uri).json["url"], RIGHT)

    assert add(client, uri).status_code == 200
    assert served(client, uri) == RIGHT
