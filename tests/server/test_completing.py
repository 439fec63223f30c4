"""Uploads are completed by what the store has, also where a listing of it lacks something."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.server_app import AppClient, put_all
from tests.support.servers import ServerHandle, encoded, upload_body

CONTENTS = {f"dir/{number}.txt": b"%d" % number for number in range(5)}


@pytest.fixture(scope="module")
def client(server: ServerHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    client = AppClient(server, tmp_path_factory.mktemp("completing"))
    yield client
    client.close()


def announced(client: AppClient) -> Any:
    answer = client.post(f"/signed-urls/upload/{encoded(client.base_uri)}", upload_body(CONTENTS))
    assert answer.status_code == 200
    return answer.json


def completed(client: AppClient, uri: str) -> Any:
    return client.post("/signed-urls/upload-complete", {"uri": uri})


def test_items_that_a_listing_lacks_are_asked_for(
    client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = announced(client)
    put_all(begun, CONTENTS)
    monkeypatch.setattr(type(client.store), "iter_objects", lambda *_: iter(()))

    done = completed(client, begun["uri"])

    assert done.status_code == 200, done.json
    manifest = client.get(f"/manifests/{encoded(begun['uri'])}").json
    assert {item["relpath"] for item in manifest["items"].values()} == CONTENTS.keys()


def test_items_that_are_not_there_are_missing_after_one_question(client: AppClient) -> None:
    begun = announced(client)
    before = client.requests["HeadObject"]

    refused = completed(client, begun["uri"])

    assert refused.status_code == 422
    assert all(relpath in refused.json["message"] for relpath in CONTENTS)
    assert client.requests["HeadObject"] == before + 1
