"""Items that a derived dataset has in common with its source: the store copies them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from dserverfs.base.model import identifier_of
from dserverfs.server.database import derived
from dserverfs.server.store.layout import DatasetKeys
from tests.support.server_app import AppClient, put_all
from tests.support.servers import ServerHandle, encoded, new_uuid, upload_body

SOURCE = {"same": b"same", "sub/same": b"s" * 5000, "changed": b"before", "moved": b"moved"}
DERIVED = {
    **{"same": b"same", "sub/same": b"s" * 5000, "changed": b"behind"},
    **{"new": b"same", "elsewhere": b"moved"},
}
SAME = {identifier_of("same"), identifier_of("sub/same")}


@pytest.fixture(scope="module")
def client(server: ServerHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    client = AppClient(server, tmp_path_factory.mktemp("derived"))
    client.add_user("only-registers")
    client.grant("only-registers", search=False, register=True)
    yield client
    client.close()


@pytest.fixture(scope="module")
def source(client: AppClient) -> str:
    return client.upload(SOURCE)


def announce(client: AppClient, of: object, username: str = "grumpy", **others: Any) -> Any:
    """Announce a dataset that was derived from that one; return the answer."""
    body = upload_body(DERIVED, annotations={"source_dataset_uuid": of}, **others)
    path = f"/signed-urls/upload/{encoded(client.base_uri)}"
    begun = client.request("POST", path, body, username=username)
    assert begun.status_code == 200, begun.text
    return begun.json


def objects(client: AppClient, uri: str) -> Mapping[str, bytes]:
    """Return what the store has of the items of a dataset, by their identifiers."""
    bucket, prefix = client.storage.bucket, DatasetKeys("", uri[-36:]).items
    return {
        stored.key.removeprefix(prefix): client.store.read(bucket, stored.key, limit_in_bytes=10**6)
        for stored in client.store.iter_objects(bucket, prefix)
    }


def by_identifier(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    return {identifier_of(relpath): content for relpath, content in contents.items()}


def test_items_of_the_source_need_no_upload(client: AppClient, source: str) -> None:
    copies = client.requests["CopyObject"]

    begun = announce(client, source[-36:])
    copies = client.requests["CopyObject"] - copies
    items = begun["upload_urls"]["items"]
    left = {key: item for key, item in items.items() if key not in begun["stored"]}
    put_all({"upload_urls": {**begun["upload_urls"], "items": left}}, DERIVED, b"")

    done = client.post("/signed-urls/upload-complete", {"uri": begun["uri"]})

    assert (set(begun["stored"]), copies) == (SAME, 2)
    assert done.status_code == 200, done.text
    assert objects(client, begun["uri"]) == by_identifier(DERIVED)
    assert objects(client, source) == by_identifier(SOURCE)


def test_copy_is_stored_as_if_it_had_been_sent(client: AppClient, source: str) -> None:
    uri = announce(client, source[-36:])["uri"]

    for identifier in SAME:
        copied, sent = (
            client.store.metadata(
                client.storage.bucket, DatasetKeys("", each[-36:]).item(identifier)
            )
            for each in (uri, source)
        )
        assert copied == sent
        assert copied["checksum"]


NOBODY_S = "0f0f0f0f-0f0f-4f0f-8f0f-0f0f0f0f0f0f"


@pytest.mark.parametrize("uuid", [NOBODY_S, "../x", "", None, 5, ["a"]])
def test_source_that_is_none_changes_nothing(client: AppClient, uuid: object) -> None:
    assert announce(client, uuid)["stored"] == []


def test_who_may_not_read_the_source_gets_nothing_of_it(client: AppClient, source: str) -> None:
    assert announce(client, source[-36:], "only-registers")["stored"] == []


def test_item_that_the_store_lost_is_left_to_the_client(client: AppClient) -> None:
    lossy = client.upload(SOURCE)
    client.store.delete(
        client.storage.bucket, [DatasetKeys("", lossy[-36:]).item(identifier_of("same"))]
    )

    assert announce(client, lossy[-36:])["stored"] == [identifier_of("sub/same")]


def test_what_takes_too_long_is_left_to_the_client(
    client: AppClient, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived, "COPY_S", -1.0)

    assert announce(client, source[-36:])["stored"] == []


def test_item_that_is_too_large_for_one_copy_is_left_to_the_client(
    client: AppClient, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = dataclasses.replace(client.storage, max_put_bytes=4999)
    monkeypatch.setattr(client.store, "storage", storage)

    assert announce(client, source[-36:])["stored"] == [identifier_of("same")]


def test_what_is_there_is_not_copied_again(client: AppClient, source: str) -> None:
    same = {"uuid": new_uuid()}
    announce(client, source[-36:], **same)
    copies = client.requests["CopyObject"]

    again = announce(client, source[-36:], **same)

    assert set(again["stored"]) == SAME
    assert client.requests["CopyObject"] == copies
