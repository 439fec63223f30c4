"""Buckets on another S3 server, found by dtool-s3's settings, with what dtool-s3 put there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import dtoolcore
import pytest
import requests

from dserverfs.base.errors import UsageError
from dserverfs.base.model import identifier_of
from dserverfs.cli.main import main
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.seaweedfs import SeaweedFS
from dserverfs.server.store.settings import ServerSettings
from dserverfs.server.store.signals import Signals
from dserverfs.server.store.signing import Storage
from dserverfs.settings import current
from tests.support.server_store import children_of, set_dtool_s3
from tests.support.servers import (
    ServerHandle,
    begin,
    complete,
    encoded,
    new_uuid,
    put_items,
    running_server,
    upload,
    upload_body,
)

CONTENTS = {"a.txt": b"alpha", "dir/é ü.bin": bytes(range(256)) * 100, "empty": b""}


@pytest.fixture(scope="module")
def their_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """Somebody else's S3 server."""
    directory = tmp_path_factory.mktemp("theirs")
    store = SeaweedFS(directory, bucket="first")
    # Not entered: it only waits, and leaves signals to pytest.
    with contextlib.closing(Signals()) as signals, store.running(signals):
        ready = store.wait_ready(signals)
        yield ready.storage
        ready.client.close()


@pytest.fixture
def bucket(
    their_server: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[ObjectStore]:
    """A new bucket there, configured for dtool-s3 in the environment."""
    storage = dataclasses.replace(their_server, bucket=f"theirs-{new_uuid()[:8]}", prefix="u/x/")
    set_dtool_s3(monkeypatch, storage, tmp_path)
    monkeypatch.setenv(f"DTOOL_S3_DATASET_PREFIX_{storage.bucket}", storage.prefix)
    store = ObjectStore(storage)
    store.ensure_bucket(storage.bucket)
    yield store
    store.client.close()


@pytest.fixture
def serve(bucket: ObjectStore, tmp_path: Path) -> Iterator[ServerHandle]:
    """A server that has this bucket only."""
    with running_server(tmp_path / "data", "--bucket", bucket.storage.bucket) as server:
        yield server


def by_dtool(base_uri: str, scratch: Path, *, frozen: bool = True, name: str = "by-dtool") -> str:
    """Make a dataset with dtool and its S3 broker; return its URI."""
    admin = dtoolcore.generate_admin_metadata(name, creator_username="somebody")
    proto = dtoolcore.generate_proto_dataset(admin, base_uri=base_uri)
    proto.create()
    proto.put_readme("made: by dtool-s3\n")
    for relpath, content in CONTENTS.items():
        (scratch / "item").write_bytes(content)
        proto.put_item(str(scratch / "item"), relpath)
    proto.put_tag("theirs")
    proto.put_annotation("stars", 4)
    if frozen:
        proto.freeze()
    uri: str = proto.uri
    return uri


def index(server: ServerHandle) -> int:
    return main(["serve", "--data", str(server.data), "index", server.backend_uri])


def test_dataset_of_dtool_is_indexed_and_read(
    serve: ServerHandle,
    bucket: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = by_dtool(serve.backend_uri, tmp_path)
    monkeypatch.delenv(f"DTOOL_S3_DATASET_PREFIX_{bucket.storage.bucket}")
    at_the_top = by_dtool(serve.backend_uri, tmp_path, name="at-the-top")
    pending = by_dtool(serve.backend_uri, tmp_path, frozen=False)
    bucket.write(bucket.storage.bucket, "dtool-nonsense", b"")

    assert index(serve) == 0

    assert capsys.readouterr().out == f"2 datasets registered in {serve.backend_uri}\n"
    assert children_of(serve) == []  # no store of its own is started
    listed = {entry["uri"]: entry for entry in serve.post("/uris", {"tags": ["theirs"]}).json()}
    assert listed.keys() == {uri, at_the_top}
    assert (listed[uri]["name"], listed[uri]["creator_username"]) == ("by-dtool", "somebody")
    assert listed[uri]["number_of_items"] == 3
    admin = dtoolcore.DataSet.from_uri(uri)._admin_metadata
    assert listed[uri]["frozen_at"] == pytest.approx(admin["frozen_at"], abs=1e-5)
    assert serve.get(f"/annotations/{encoded(uri)}").json() == {"annotations": {"stars": 4}}
    for each in (uri, at_the_top):
        urls = serve.get(f"/signed-urls/dataset/{encoded(each)}").json()
        assert requests.get(urls["readme_url"], timeout=30).text == "made: by dtool-s3\n"
        for relpath, content in CONTENTS.items():
            url = urls["item_urls"][identifier_of(relpath)]
            assert requests.get(url, timeout=30).content == content
            assert f"/{bucket.storage.prefix}" in url or each == at_the_top
    assert serve.get(f"/uris/{encoded(pending)}").status_code == 404


def test_index_reads_anew_tells_what_is_gone_and_leaves_out_what_is_broken(
    serve: ServerHandle,
    bucket: ObjectStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri, broken, gone = (by_dtool(serve.backend_uri, tmp_path) for _ in range(3))
    index(serve)
    capsys.readouterr()
    dtoolcore.DataSet.from_uri(uri).put_tag("later")
    name = bucket.storage.bucket
    bucket.write(name, f"u/x/{broken.rpartition('/')[2]}/manifest.json", b'{"items"')
    bucket.delete(name, [f"dtool-{gone.rpartition('/')[2]}"])

    status = index(serve)

    out, err = capsys.readouterr()
    assert status == 1
    assert out == f"1 dataset registered in {serve.backend_uri}\n"
    assert f"left out: {broken}: " in err
    assert f"no longer there: {gone}\n" in err
    assert serve.get(f"/tags/{encoded(uri)}").json() == {"tags": ["later", "theirs"]}


def test_upload_goes_there_and_is_read_and_changed_by_dtool(
    serve: ServerHandle, bucket: ObjectStore
) -> None:
    uri = upload(serve, CONTENTS, readme=b"by: dserverfs\n", name="uploaded", tags=["ours"])

    dataset = dtoolcore.DataSet.from_uri(uri)
    assert uri in dataset._storage_broker.list_dataset_uris(serve.backend_uri, None)
    assert dataset.get_readme_content() == "by: dserverfs\n"
    for relpath, content in CONTENTS.items():
        path = dataset.item_content_abspath(identifier_of(relpath))
        assert Path(path).read_bytes() == content
    assert serve.post(f"/tags/{encoded(uri)}/more").json() == {"tags": ["more", "ours"]}
    assert sorted(dataset.list_tags()) == ["more", "ours"]
    uuid = uri.rpartition("/")[2]
    keys = [stored.key for stored in bucket.iter_objects(bucket.storage.bucket, "")]
    assert all(key.startswith((f"u/x/{uuid}/", f"dtool-{uuid}")) for key in keys)


def test_upload_begun_before_the_prefix_changed_goes_where_it_began(
    bucket: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = bucket.storage.bucket
    with running_server(tmp_path / "data", "--bucket", name) as server:
        begun = begin(server, upload_body(CONTENTS))
    monkeypatch.setenv(f"DTOOL_S3_DATASET_PREFIX_{name}", "other/")

    with running_server(tmp_path / "data", "--bucket", name) as server:
        put_items(begun, CONTENTS)
        assert complete(server, begun["uri"]).status_code == 200
        dtoolcore.DataSet.from_uri(begun["uri"])._manifest  # noqa: B018 - reads it


def test_dataset_that_is_there_is_not_overwritten_by_an_upload(
    serve: ServerHandle, tmp_path: Path
) -> None:
    uri = by_dtool(serve.backend_uri, tmp_path)
    body = upload_body({"a.txt": b"other"}, uuid=uri.rpartition("/")[2])

    answer = serve.post(f"/signed-urls/upload/{encoded(serve.backend_uri)}", body)

    assert answer.status_code == 409
    assert "serve index" in answer.json()["message"]


def test_base_uris_here_and_elsewhere_are_served_together(
    bucket: ObjectStore,
    their_server: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home, name = tmp_path / "home", bucket.storage.bucket
    (home / ".config" / "dtool").mkdir(parents=True)
    settings = {
        f"DTOOL_S3_ENDPOINT_{name}": their_server.endpoint,
        f"DTOOL_S3_ACCESS_KEY_ID_{name}": their_server.access_key,
        f"DTOOL_S3_SECRET_ACCESS_KEY_{name}": their_server.secret_key,
    }
    (home / ".config/dtool/dtool.json").write_text(json.dumps(settings))
    for key in settings:
        monkeypatch.setenv(f"{key}", settings[key])  # for the command, in this process
    data = str(tmp_path / "data")
    assert main(["serve", "--data", data, "base-uri", "add", f"s3://{name}"]) == 0
    assert main(["serve", "--data", data, "base-uri", "add", "s3://nowhere"]) == 0
    for key in settings:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(home))

    with running_server(tmp_path / "data") as server:
        assert len(children_of(server)) == 1
        for base_uri in (f"s3://{name}", "s3://datasets"):
            username = server.username
            grant = ("permission", "grant", username, base_uri, "--search", "--register")
            assert main(["serve", "--data", data, *grant]) == 0
            uri = upload(server, CONTENTS, base_uri=base_uri)
            url = server.get(f"/signed-urls/dataset/{encoded(uri)}").json()["manifest_url"]
            assert requests.get(url, timeout=30).status_code == 200
            assert url.startswith(their_server.endpoint) == (base_uri == f"s3://{name}")
    capsys.readouterr()


def test_bucket_that_is_not_there_is_an_error(
    bucket: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_dtool_s3(monkeypatch, dataclasses.replace(bucket.storage, bucket="never-made"), tmp_path)

    status = main(["serve", "--data", str(tmp_path / "data"), "base-uri", "add", "s3://never-made"])

    assert status == 1
    assert "bucket never-made is not in the store" in capsys.readouterr().err


# The settings


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_all(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"DTOOL_S3_{name}_b.c", value)

    return set_all


def test_storage_is_that_of_dtool_s3(set_up: Callable[..., None]) -> None:
    set_up(ENDPOINT="https://s3.eu-central-1.amazonaws.com", ACCESS_KEY_ID="i")
    set_up(SECRET_ACCESS_KEY="s", DATASET_PREFIX="u/me/")

    storage = ServerSettings(current).storage("b.c")

    assert storage == Storage(
        "https://s3.eu-central-1.amazonaws.com", "i", "s", "b.c", "u/me/", "eu-central-1"
    )
    assert ServerSettings(current).storage("another") is None


def test_region_is_that_of_the_environment(
    set_up: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(ENDPOINT="https://s3.example.org", ACCESS_KEY_ID="i", SECRET_ACCESS_KEY="s")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "here")

    storage = ServerSettings(current).storage("b.c")

    assert storage is not None
    assert storage.region == "here"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ENDPOINT": "https://s3.example.org"}, "must be set together"),
        ({"ACCESS_KEY_ID": "i", "SECRET_ACCESS_KEY": "s"}, "must be set together"),
        ({"ENDPOINT": "s3.org", "ACCESS_KEY_ID": "i", "SECRET_ACCESS_KEY": "s"}, "https://"),
    ],
)
def test_half_a_setting_is_an_error(
    set_up: Callable[..., None], settings: dict[str, str], said: str
) -> None:
    set_up(**settings)

    with pytest.raises(UsageError, match=said):
        ServerSettings(current).storage("b.c")
