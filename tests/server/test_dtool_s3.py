"""What this server stores, read by dtool-s3 straight from the bucket."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import dtoolcore
import dtoolcore.compare
import pytest
import requests

from dserverfs.base.model import identifier_of
from tests.support.block_hashes import object_of
from tests.support.server_store import set_dtool_s3, storage_of
from tests.support.servers import ServerHandle, begin, complete, encoded, put_items, upload_body

CONTENTS = {
    "a.txt": b"alpha",
    "dir/é ü.bin": bytes(range(256)) * 100,
    "empty": b"",
    "large": bytes(range(256)) * 8192,
}


@pytest.fixture(scope="module")
def base_uri(server: ServerHandle) -> str:
    """A base URI of a bucket with few objects: dtool-s3 lists all there are, one by one."""
    return server.add_base_uri(search=[server.username], register=[server.username])


@pytest.fixture(autouse=True)
def s3_settings(
    server: ServerHandle, base_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = dataclasses.replace(storage_of(server), bucket=base_uri.removeprefix("s3://"))
    set_dtool_s3(monkeypatch, storage, tmp_path)


@pytest.fixture(scope="module")
def uri(server: ServerHandle, base_uri: str) -> str:
    body = upload_body(
        CONTENTS,
        name="read-by-dtool",
        created_at=1600000000.125,
        tags=["one", "t.wo"],
        annotations={"stars": 5},
        overlays={"length": {identifier_of(name): len(name) for name in CONTENTS}},
    )
    begun = begin(server, body, base_uri)
    put_items(begun, CONTENTS, "über: dtool\n".encode())
    hashes = requests.put(begun["block_hashes_url"]["url"], object_of(CONTENTS), timeout=60)
    done = complete(server, begun["uri"])
    assert (hashes.status_code, done.status_code) == (200, 200), done.text
    uri: str = begun["uri"]
    return uri


def test_dtool_s3_reads_the_dataset(server: ServerHandle, uri: str) -> None:
    urls = server.get(f"/signed-urls/dataset/{encoded(uri)}").json()
    assert requests.get(urls["block_hashes_url"], timeout=30).content == object_of(CONTENTS)
    dataset = dtoolcore.DataSet.from_uri(uri)

    assert dataset.name == "read-by-dtool"
    assert dataset._admin_metadata["creator_username"] == "grumpy"
    assert dataset._admin_metadata["created_at"] == 1600000000.125
    assert dataset._admin_metadata["frozen_at"] == 1700000000.5
    assert dataset.get_readme_content() == "über: dtool\n"
    assert sorted(dataset.list_tags()) == ["one", "t.wo"]
    assert dataset.list_annotation_names() == ["stars"]
    assert dataset.get_annotation("stars") == 5
    assert dataset.list_overlay_names() == ["length"]
    assert dataset.get_overlay("length")[identifier_of("empty")] == 5
    assert set(dataset.identifiers) == {identifier_of(name) for name in CONTENTS}
    for relpath, content in CONTENTS.items():
        path = dataset.item_content_abspath(identifier_of(relpath))
        assert Path(path).read_bytes() == content


def test_dtool_s3_lists_the_dataset(base_uri: str, uri: str) -> None:
    broker = dtoolcore._get_storage_broker(base_uri, None)

    assert broker.list_dataset_uris(base_uri, None) == [uri]


def test_dtool_verifies_the_dataset_against_the_stored_items(
    server: ServerHandle, uri: str
) -> None:
    dataset = dtoolcore.DataSet.from_uri(uri)
    manifest = dataset.generate_manifest()

    for identifier, item in dataset._manifest["items"].items():
        stored = manifest["items"][identifier]
        assert (stored["hash"], stored["relpath"]) == (item["hash"], item["relpath"])
        assert stored["size_in_bytes"] == item["size_in_bytes"]


def test_dtool_copies_the_dataset_to_disk(server: ServerHandle, uri: str, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()

    copied = dtoolcore.copy(uri, f"file://{tmp_path}/copies")

    dataset = dtoolcore.DataSet.from_uri(uri)
    copy = dtoolcore.DataSet.from_uri(copied)
    assert dtoolcore.compare.diff_identifiers(dataset, copy) == []
    assert dtoolcore.compare.diff_content(dataset, copy) == []
    assert copy.get_readme_content() == "über: dtool\n"
