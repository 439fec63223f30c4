"""Published datasets, read by dtool-http with nothing but their link."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import dservercore.utils
import dtoolcore
import pytest
import requests
from sqlalchemy import text

from dserverfs.base.errors import UsageError
from dserverfs.base.model import Dataset, identifier_of
from dserverfs.remote.api import Resolver
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.metadata_api import MetadataWrites
from dserverfs.remote.objects import Storage
from dserverfs.remote.routes import Routes
from dserverfs.remote.tokens import TokenSource
from dserverfs.server.store.settings import MAX_EXPIRY_SECONDS, ServerSettings
from dserverfs.settings import current
from tests.support.server_app import AppClient
from tests.support.servers import ServerHandle, encoded, new_uuid, upload

CONTENTS = {"a.txt": b"alpha", "dir/é ü.bin": bytes(range(256)) * 100, "empty": b""}


@pytest.fixture(scope="module")
def uri(server: ServerHandle) -> str:
    overlay = {identifier_of(relpath): len(relpath) for relpath in CONTENTS}
    return upload(
        server,
        CONTENTS,
        readme=b"for: everybody\n",
        name="published",
        tags=["one"],
        annotations={"stars": 5},
        overlays={"lengths": overlay},
    )


@pytest.fixture
def writes(server: ServerHandle) -> Iterator[MetadataWrites]:
    transport = ServerTransport(server.url, TokenSource(server.token, None))
    routes, storage = Routes(transport), Storage()
    yield MetadataWrites(routes, Resolver(transport, storage, routes))
    transport.close()
    storage.close()


def dataset_of(server: ServerHandle, uri: str) -> Dataset:
    return Dataset.from_json(server.get(f"/uris/{encoded(uri)}").json())


def test_dtool_http_reads_what_is_published(
    server: ServerHandle,
    uri: str,
    writes: MetadataWrites,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DTOOL_CACHE_DIRECTORY", str(tmp_path))

    link = writes.publish(dataset_of(server, uri))

    dataset = dtoolcore.DataSet.from_uri(link)
    assert dataset.name == "published"
    assert dataset.uuid == uri.rpartition("/")[2]
    assert dataset._admin_metadata["frozen_at"] == 1700000000.5
    assert dataset.get_readme_content() == "for: everybody\n"
    assert dataset.list_tags() == ["one"]
    assert dataset.get_annotation("stars") == 5
    assert dataset.get_overlay("lengths")[identifier_of("empty")] == 5
    for relpath, content in CONTENTS.items():
        path = dataset.item_content_abspath(identifier_of(relpath))
        assert Path(path).read_bytes() == content


def test_published_dataset_is_copied_by_dtool(
    server: ServerHandle,
    uri: str,
    writes: MetadataWrites,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DTOOL_CACHE_DIRECTORY", str(tmp_path / "cache"))
    (tmp_path / "copies").mkdir()

    copied = dtoolcore.copy(writes.publish(dataset_of(server, uri)), f"file://{tmp_path}/copies")

    copy = dtoolcore.DataSet.from_uri(copied)
    assert copy.uuid == uri.rpartition("/")[2]
    assert set(copy.identifiers) == {identifier_of(relpath) for relpath in CONTENTS}


def test_link_and_its_urls_end_together(server: ServerHandle, uri: str) -> None:
    answer = server.post(f"/signed-urls/publish/{encoded(uri)}", {"expiry_seconds": 100}).json()
    manifest = requests.get(answer["url"] + "/http_manifest.json", timeout=30).json()

    assert answer["expiry_seconds"] == 100
    assert answer["url"] == server.url + answer["path"]
    for url in (manifest["readme_url"], *manifest["item_urls"].values()):
        assert 1 <= int(parse_qs(urlsplit(url).query)["X-Amz-Expires"][0]) <= 100
    assert len(manifest["item_urls"]) == 3


def test_link_is_good_for_seven_days_unless_told_otherwise(server: ServerHandle, uri: str) -> None:
    answer = server.post(f"/signed-urls/publish/{encoded(uri)}").json()

    assert answer["expiry_seconds"] == MAX_EXPIRY_SECONDS == 604800


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"expiry_seconds": 0}, 400),
        ({"expiry_seconds": 604801}, 400),
        ({"expiry_seconds": "1"}, 422),
        ([], 422),
    ],
)
def test_other_lifetimes_are_refused(
    server: ServerHandle, uri: str, body: object, status: int
) -> None:
    assert server.post(f"/signed-urls/publish/{encoded(uri)}", body).status_code == status


def test_client_says_which_lifetime_is_refused(
    server: ServerHandle, uri: str, writes: MetadataWrites
) -> None:
    with pytest.raises(UsageError, match="604800"):
        writes.publish(dataset_of(server, uri), 10**9)


def test_link_is_revoked(server: ServerHandle) -> None:
    uri = upload(server, {"a": b"a"})
    path = f"/signed-urls/publish/{encoded(uri)}"
    links = [server.post(path).json()["url"] for _ in range(2)]

    assert server.request("DELETE", path).json() == {"uri": uri, "revoked": 2}

    for link in links:
        assert requests.get(link, timeout=30).status_code == 404
        assert requests.get(link + "/http_manifest.json", timeout=30).status_code == 404


def test_link_of_a_deleted_dataset_is_gone(server: ServerHandle) -> None:
    uri = upload(server, {"a": b"a"})
    link = server.post(f"/signed-urls/publish/{encoded(uri)}").json()["url"]
    server.request("DELETE", f"/uris/{encoded(uri)}").raise_for_status()

    assert requests.get(link + "/http_manifest.json", timeout=30).status_code == 404


@pytest.mark.parametrize("lost", ["search", "register", "user"])
def test_link_ends_with_the_rights_of_its_maker(server: ServerHandle, lost: str) -> None:
    maker, others = f"user-{new_uuid()[:8]}", [server.username]
    base_uri = server.add_base_uri(search=[maker, *others], register=[maker, *others])
    path = encoded(upload(server, CONTENTS, base_uri=base_uri))
    rights = {
        "users_with_search_permissions": [maker, *others],
        "users_with_register_permissions": [maker, *others],
    }

    def read() -> int:
        return server.get(f"{link}/http_manifest.json", token="").status_code

    link = server.post(f"/signed-urls/publish/{path}", token=server.token_for(maker)).json()["path"]
    assert read() == 200

    if lost == "user":
        server.request("DELETE", f"/users/{maker}").raise_for_status()
        server.request("PUT", f"/users/{maker}", {}).raise_for_status()  # another one
        server.request("PUT", f"/base-uris/{encoded(base_uri)}", rights).raise_for_status()
    else:
        rights[f"users_with_{lost}_permissions"] = others
        server.request("PUT", f"/base-uris/{encoded(base_uri)}", rights).raise_for_status()

    assert read() == 404


def test_unknown_dataset_and_unknown_link_are_not_found(server: ServerHandle) -> None:
    gone = encoded(f"{server.backend_uri}/{new_uuid()}")

    assert server.post(f"/signed-urls/publish/{gone}").status_code == 404
    assert server.get("/published/guessed/http_manifest.json", token="").status_code == 404


def test_expired_link_is_not_found_and_links_are_kept_as_hashes(
    server: ServerHandle, tmp_path: Path
) -> None:
    client = AppClient(server, tmp_path)
    uri = client.upload(CONTENTS)
    path = client.post(f"/signed-urls/publish/{encoded(uri)}", {}).json["path"]
    assert client.request("GET", f"{path}/http_manifest.json", username=None).status_code == 200

    with client.app.app_context():
        session = dservercore.sql_db.session
        (row,) = session.execute(text("SELECT * FROM dserverfs_publication")).mappings()
        assert path.rpartition("/")[2] not in json.dumps(dict(row))
        session.execute(
            text("UPDATE dserverfs_publication SET expires_at = :now"), {"now": time.time() - 1}
        )
        session.commit()

    assert client.request("GET", f"{path}/http_manifest.json", username=None).status_code == 404
    client.close()


@pytest.mark.parametrize(("value", "seconds"), [("60", 60), ("99999999", 604800), ("", 604800)])
def test_default_is_dtool_s3s_setting(
    monkeypatch: pytest.MonkeyPatch, value: str, seconds: int
) -> None:
    monkeypatch.setenv("DTOOL_S3_PUBLISH_EXPIRY", value)

    assert ServerSettings(current).publish_expiry_s() == seconds


@pytest.mark.parametrize("value", ["soon", "0", "-5"])
def test_default_that_is_no_time_is_an_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DTOOL_S3_PUBLISH_EXPIRY", value)

    with pytest.raises(UsageError, match="DTOOL_S3_PUBLISH_EXPIRY"):
        ServerSettings(current).publish_expiry_s()
