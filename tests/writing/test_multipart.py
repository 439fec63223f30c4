"""Items too large for one PUT: signed parts, resumed, verified, and never half an item."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from dserverfs.base.errors import (
    Cancelled,
    Conflict,
    ItemChanged,
    ProtocolError,
    TooLarge,
    Unreachable,
)
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import Item, identifier_of
from dserverfs.base.progress import Progress
from dserverfs.client import Client
from dserverfs.writing.upload.uploader import Uploader
from tests.support.dtool_datasets import content_of
from tests.support.faulty_put_front import (
    Detour,
    Fault,
    Handler,
    PutFront,
    cut_after,
    put_front,
    refuse,
    spoil,
)
from tests.support.local_uploads import local_dataset, stored
from tests.support.mounts import client_of
from tests.support.patience import LATE_S
from tests.support.server_app import AppClient
from tests.support.servers import ServerHandle, encoded

MIB = 1024 * 1024
PART = 5 * MIB
LARGE = {"large.bin": content_of("large.bin", 2 * PART + 12345), "small": b"small"}
IDENTIFIER = identifier_of("large.bin")


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """Say nothing."""


@dataclasses.dataclass
class Limited:
    """A server whose store takes 6 MiB in one PUT, and parts of 5 MiB."""

    app: AppClient
    client: Client
    front: PutFront
    uploader: Uploader

    def parts(self) -> list[str]:
        """Return the numbers of the parts that arrived, in order."""
        return sorted(
            put.path.partition("partNumber=")[2].partition("&")[0]
            for put in self.front.puts
            if "partNumber=" in put.path
        )

    def begun(self, dataset: LocalDataset) -> list[str]:
        """Return the keys of what the store has parts of."""
        answer = self.app.store.client.list_multipart_uploads(Bucket=self.app.storage.bucket)
        keys = [upload["Key"] for upload in answer.get("Uploads", ())]
        return [key for key in keys if key.startswith(dataset.admin_metadata["uuid"])]


@pytest.fixture(scope="module")
def app(server: ServerHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    directory = tmp_path_factory.mktemp("limited")
    app = AppClient(server, directory, max_put_bytes=6 * MIB, part_bytes=PART)
    yield app
    app.close()


@pytest.fixture
def limited(app: AppClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Limited]:
    monkeypatch.setattr("dserverfs.base.retry.MAX_WAIT_S", 0.02)
    server = make_server("127.0.0.1", 0, app.app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    uri = f"dserver://127.0.0.1:{server.server_port}/s3/{app.storage.bucket}"
    try:
        with (
            put_front() as front,
            client_of(uri, app.token("grumpy"), tmp_path / "cache") as client,
        ):
            storage = Detour(front, stall_timeout_s=2.0)
            yield Limited(app, client, front, Uploader(client.resolver, storage))
            storage.close()
    finally:
        server.shutdown()
        server.server_close()
        thread.join(LATE_S)


def test_large_item_arrives_in_parts_and_dtool_s3_finds_what_it_needs(
    limited: Limited, tmp_path: Path
) -> None:
    dataset = local_dataset(tmp_path / "items", LARGE)
    seen: list[Progress] = []

    limited.uploader.upload(dataset, limited.app.base_uri, on_progress=seen.append)

    assert limited.parts() == ["1", "2", "3"]
    assert stored(limited.client, dataset, limited.app.base_uri) == LARGE
    assert limited.begun(dataset) == []
    total = sum(map(len, LARGE.values()))
    assert seen[-1] == (total, total, 2, 2)
    key = f"{dataset.admin_metadata['uuid']}/data/{IDENTIFIER}"
    assert limited.app.store.metadata(limited.app.storage.bucket, key) == {
        "handle": "bGFyZ2UuYmlu",
        "checksum": hashlib.md5(LARGE["large.bin"]).hexdigest(),
    }
    for put in limited.front.puts:
        if "partNumber=" in put.path:
            assert {name.lower() for name in put.headers} == {
                *("host", "user-agent", "content-length", "content-md5")
            }


@pytest.mark.parametrize(
    "faults",
    [
        [refuse(503, "SlowDown")] * 3,
        [refuse(403, "AccessDenied")],
        [cut_after(MIB)] * 3,
        [spoil] * 3,
    ],
)
def test_part_arrives_after_a_fault(limited: Limited, tmp_path: Path, faults: list[Fault]) -> None:
    dataset = local_dataset(tmp_path / "items", LARGE)
    limited.front.faults = [*faults]

    limited.uploader.upload(dataset, limited.app.base_uri)

    assert limited.front.faults == []
    assert stored(limited.client, dataset, limited.app.base_uri) == LARGE


def test_parts_that_are_stored_are_not_sent_again(limited: Limited, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "items", LARGE)
    stop = threading.Event()

    def one_part(handler: Handler) -> None:
        if "partNumber=1&" not in handler.path:
            refuse(503, "SlowDown", {"Retry-After": "60"})(handler)
        else:
            handler.answer(*handler.ask_store(handler.take()))
            stop.set()

    limited.front.faults = [one_part] * 10_000  # however often the others are tried until then
    with pytest.raises(Cancelled):
        limited.uploader.upload(dataset, limited.app.base_uri, stop=stop)
    limited.front.faults = []
    limited.front.puts.clear()
    limited.uploader.upload(dataset, limited.app.base_uri)

    # A PUT that was under way when the first upload ended may come late.
    assert set(limited.parts()) == {"2", "3"}
    assert stored(limited.client, dataset, limited.app.base_uri) == LARGE


def test_completion_whose_answer_is_lost_is_found_out(
    limited: Limited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = local_dataset(tmp_path / "items", LARGE)
    routes = limited.client.resolver.uploads
    complete = routes.complete_parts

    def lossy(*arguments: Any) -> None:
        complete(*arguments)
        raise Unreachable("the answer was lost")

    monkeypatch.setattr(routes, "complete_parts", lossy)

    limited.uploader.upload(dataset, limited.app.base_uri)

    assert stored(limited.client, dataset, limited.app.base_uri) == LARGE


def test_item_whose_whole_hash_is_another_is_never_made(limited: Limited, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "items", LARGE)
    path = tmp_path / "items/large.bin"
    with path.open("r+b") as file:
        file.seek(PART + 17)
        file.write(b"other")

    with pytest.raises(ItemChanged) as failure:
        limited.uploader.upload(dataset, limited.app.base_uri)

    assert failure.value.relpath == "large.bin"
    uri = f"{limited.app.base_uri}/{dataset.admin_metadata['uuid']}"
    answer = limited.app.post("/signed-urls/upload-complete", {"uri": uri})
    assert answer.status_code == 422
    assert "large.bin" in answer.json["message"]


def test_item_announced_with_another_hash_begins_anew(limited: Limited, tmp_path: Path) -> None:
    first = local_dataset(tmp_path / "one", LARGE)
    limited.front.faults = [refuse(400, "EntityTooLarge")] * 9
    with pytest.raises(ProtocolError):
        limited.uploader.upload(first, limited.app.base_uri)
    before = limited.begun(first)
    limited.front.faults = []
    other = {**LARGE, "large.bin": LARGE["large.bin"][::-1]}
    second = local_dataset(tmp_path / "two", other, uuid=first.admin_metadata["uuid"])

    limited.uploader.upload(second, limited.app.base_uri)

    assert len(before) == 1
    assert limited.begun(second) == []
    assert stored(limited.client, second, limited.app.base_uri) == other


def test_parts_of_what_is_registered_without_them_are_deleted(
    limited: Limited, tmp_path: Path
) -> None:
    first = local_dataset(tmp_path / "one", LARGE)
    limited.front.faults = [refuse(400, "EntityTooLarge")] * 9
    with pytest.raises(ProtocolError):
        limited.uploader.upload(first, limited.app.base_uri)
    limited.front.faults = []
    second = local_dataset(tmp_path / "two", {"a": b"a"}, uuid=first.admin_metadata["uuid"])

    limited.uploader.upload(second, limited.app.base_uri)

    assert limited.begun(second) == []


def test_parts_of_an_upload_that_is_deleted_are_deleted(limited: Limited, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "one", LARGE)
    limited.front.faults = [refuse(400, "EntityTooLarge")] * 9
    with pytest.raises(ProtocolError):
        limited.uploader.upload(dataset, limited.app.base_uri)
    assert len(limited.begun(dataset)) == 1

    uri = encoded(f"{limited.app.base_uri}/{dataset.admin_metadata['uuid']}")
    assert limited.app.request("DELETE", f"/signed-urls/upload/{uri}").status_code == 200

    assert limited.begun(dataset) == []


def test_server_without_the_route_refuses_large_items_beforehand(
    limited: Limited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = local_dataset(tmp_path / "items", LARGE)
    assert limited.uploader.max_item_bytes() == 5 * 1024**4
    monkeypatch.setattr(limited.client.resolver.uploads, "takes_parts", lambda: False)
    assert limited.uploader.max_item_bytes() == 5 * 1024**3
    monkeypatch.setattr("dserverfs.writing.upload.uploader.MAX_PUT_BYTES", 6 * MIB)

    with pytest.raises(TooLarge, match=r"^large\.bin: has"):
        limited.uploader.upload(dataset, limited.app.base_uri)

    assert limited.front.puts == []


# The routes


def test_routes_refuse_what_was_not_begun_or_announced(limited: Limited) -> None:
    app = limited.app
    uuid = "11111111-2222-4333-8444-555555555555"
    uri = f"{app.base_uri}/{uuid}"
    about = {"uri": uri, "identifier": IDENTIFIER}

    assert app.post("/signed-urls/upload-parts", about).status_code == 400
    assert app.post("/signed-urls/upload-parts", {"uri": uri}).status_code == 422
    other = {"uri": f"s3://elsewhere/{uuid}", "identifier": IDENTIFIER}
    assert app.post("/signed-urls/upload-parts", other).status_code == 403
    large = Item(IDENTIFIER, "large.bin", 11 * MIB, "0" * 32, 0)
    _announce(app, uuid, large)
    unknown = {"uri": uri, "identifier": "f" * 40}
    assert app.post("/signed-urls/upload-parts", unknown).status_code == 404
    assert (
        app.post("/signed-urls/upload-parts/sign", {**about, "parts": {"1": "0" * 32}})
        .json["message"]
        .endswith("was not begun")
    )
    assert app.post("/signed-urls/upload-parts", about).json == {
        "stored": False,
        "part_bytes": PART,
        "etags": {},
    }
    wrong: list[Any] = [{"0": "0" * 32}, {"4": "0" * 32}, {"x": "0" * 32}, {"1": "zz"}, {}, []]
    for parts in wrong:
        answer = app.post("/signed-urls/upload-parts/sign", {**about, "parts": parts})
        assert answer.status_code in (400, 422), parts
    answer = app.post("/signed-urls/upload-parts/complete", {**about, "etags": ["0" * 32] * 3})
    assert answer.status_code == 422
    assert "1, 2, 3" in answer.json["message"]


def _announce(app: AppClient, uuid: str, item: Item) -> None:
    body = {
        "uuid": uuid,
        "name": "large",
        "creator_username": "grumpy",
        "frozen_at": 1700000000.5,
        "hash_function": "md5sum_hexdigest",
        "items": [
            {
                "relpath": item.relpath,
                "size_in_bytes": item.size_in_bytes,
                "hash": item.hash,
                "utc_timestamp": 0.0,
            }
        ],
    }
    path = f"/signed-urls/upload/{app.base_uri.replace('://', '%3A%2F%2F')}"
    answer = app.post(path, body)
    assert answer.status_code == 200, answer.text
    assert answer.json["upload_urls"]["items"][item.identifier]["in_parts"] is True


def test_conflict_is_what_it_is(limited: Limited, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "one", LARGE)
    limited.uploader.upload(dataset, limited.app.base_uri)
    other = local_dataset(tmp_path / "two", {"a": b"a"}, uuid=dataset.admin_metadata["uuid"])

    with pytest.raises(Conflict):
        limited.uploader.upload(other, limited.app.base_uri)
