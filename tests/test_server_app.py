"""The app in this process, on the store of a running server: what it asks of the store."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dservercore.utils
import pytest
import urllib3
from flask import Flask

from dserverfs.server import accounts, app
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.objects import ObjectStore
from dserverfs.server.storage import Storage
from dserverfs.server.web import TOKEN_LIFE
from tests.serving import ServerHandle, encoded, new_uuid, upload_body
from tests.stores import storage_of


class Client:
    """A client of an app without a server, which counts what the app asks of the store."""

    def __init__(self, directory: Path, storage: Storage) -> None:
        data = DataDirectory(directory)
        self.store = ObjectStore(storage)
        self.requests: Counter[str] = Counter()
        self.store.client.meta.events.register("before-call.s3", self._count)
        self.app: Flask = app.create(
            database=data.database,
            private_key_pem=data.private_key_pem(),
            secret_key=data.secret_key(),
            store=self.store,
        )
        self.base_uri = storage.base_uri
        with self.app.app_context():
            dservercore.utils.register_users([{"username": "grumpy"}])
            dservercore.utils.register_base_uri(self.base_uri)
            kinds = ("users_with_search_permissions", "users_with_register_permissions")
            dservercore.utils.register_permissions(
                self.base_uri, {kind: ["grumpy"] for kind in kinds}
            )
            self._token = accounts.new_token("grumpy", TOKEN_LIFE)
        self._client = self.app.test_client()

    def post(self, path: str, body: Any) -> Any:
        return self._client.post(path, json=body, headers=self._headers)

    def get(self, path: str) -> Any:
        return self._client.get(path, headers=self._headers)

    def close(self) -> None:
        self.store.client.close()
        with self.app.app_context():
            dservercore.sql_db.engine.dispose()

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"}

    def _count(self, model: Any, **_: Any) -> None:
        self.requests[model.name] += 1


@pytest.fixture
def client(server: ServerHandle, tmp_path: Path) -> Iterator[Client]:
    bucket = f"bucket-{new_uuid()}"
    client = Client(tmp_path, dataclasses.replace(storage_of(server), bucket=bucket, prefix="u/x/"))
    yield client
    client.close()


def put_all(begun: Any, contents: dict[str, bytes]) -> None:
    with urllib3.PoolManager(maxsize=8) as pool, ThreadPoolExecutor(8) as executor:

        def put(item: Any) -> int:
            answer = pool.request(
                "PUT", item["url"], body=contents[item["relpath"]], headers=item["headers"]
            )
            return answer.status

        assert set(executor.map(put, begun["upload_urls"]["items"].values())) == {200}


def test_2000_items_are_completed_without_a_request_for_each(client: Client) -> None:
    contents = {f"dir{i % 7}/{i}.txt": b"%d" % i for i in range(2000)}
    body = upload_body(contents)
    begun = client.post(f"/signed-urls/upload/{encoded(client.base_uri)}", body).json
    put_all(begun, contents)
    client.requests.clear()

    done = client.post("/signed-urls/upload-complete", {"uri": begun["uri"]})
    asked = dict(client.requests)
    client.requests.clear()
    signed = client.get(f"/signed-urls/dataset/{encoded(begun['uri'])}")

    assert done.status_code == 200
    # Items in 2 pages; overlays, annotations and tags in one each.
    assert asked == {"ListObjectsV2": 5, "GetObject": 1, "PutObject": 6}
    assert len(signed.json["item_urls"]) == 2000
    assert client.requests == {"ListObjectsV2": 3}


def test_a_prefix_is_before_every_key_but_the_registration(client: Client) -> None:
    body = upload_body({"a.txt": b"a"}, tags=["t"], annotations={"n": 1})
    begun = client.post(f"/signed-urls/upload/{encoded(client.base_uri)}", body).json
    put_all(begun, {"a.txt": b"a"})
    client.post("/signed-urls/upload-complete", {"uri": begun["uri"]})

    bucket = client.store.storage.bucket
    keys = {stored.key for stored in client.store.iter_objects(bucket, "")}
    registration = f"dtool-{body['uuid']}"
    assert registration in keys
    assert client.store.read(bucket, registration, limit_in_bytes=100) == b"u/x/"
    assert all(key.startswith(f"u/x/{body['uuid']}/") for key in keys - {registration})


def test_orphans_of_an_earlier_announcement_are_deleted(client: Client) -> None:
    path = f"/signed-urls/upload/{encoded(client.base_uri)}"
    first = upload_body({"a.txt": b"a", "b.txt": b"b"}, tags=["old"])
    put_all(client.post(path, first).json, {"a.txt": b"a", "b.txt": b"b"})
    second = upload_body({"a.txt": b"a"}, uuid=first["uuid"])
    begun = client.post(path, second).json

    client.post("/signed-urls/upload-complete", {"uri": begun["uri"]})

    prefix = f"u/x/{first['uuid']}/data/"
    stored = list(client.store.iter_objects(client.store.storage.bucket, prefix))
    assert len(stored) == 1


def test_a_store_that_is_gone_is_502_and_the_upload_stays(
    server: ServerHandle, tmp_path: Path
) -> None:
    gone = dataclasses.replace(storage_of(server), endpoint="http://127.0.0.1:9")
    client = Client(tmp_path, gone)
    client.store = client.app.extensions["dserverfs_store"] = ObjectStore(gone, attempts=1)

    answer = client.post(
        f"/signed-urls/upload/{encoded(client.base_uri)}", upload_body({"a": b"a"})
    )

    assert answer.status_code == 502
    assert "the store does not answer" in answer.json["message"]
    client.close()


def test_an_etag_that_is_no_md5_is_checked_by_the_metadata(client: Client) -> None:
    body = upload_body({"a.txt": b"abc"})
    begun = client.post(f"/signed-urls/upload/{encoded(client.base_uri)}", body).json
    (item,) = begun["upload_urls"]["items"].values()
    key = item["url"].partition("?")[0].partition(f"{client.store.storage.bucket}/")[2]
    bucket = client.store.storage.bucket
    metadata = {"checksum": item["headers"]["x-amz-meta-checksum"]}
    multipart = client.store.client.create_multipart_upload(
        Bucket=bucket, Key=key, Metadata=metadata
    )
    place = {"Bucket": bucket, "Key": key, "UploadId": multipart["UploadId"]}
    part = client.store.client.upload_part(**place, PartNumber=1, Body=b"abc")
    parts = [{"PartNumber": 1, "ETag": part["ETag"]}]
    client.store.client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})
    (stored,) = client.store.iter_objects(bucket, key)

    done = client.post("/signed-urls/upload-complete", {"uri": begun["uri"]})

    assert stored.etag != metadata["checksum"]
    assert done.status_code == 200
