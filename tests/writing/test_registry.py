"""Before what is staged is deleted the store is asked for what the server only says that it has."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.errors import IntegrityError, Unreachable, Unsupported
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.client import Client
from dserverfs.remote.objects import Storage
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.staging.states import State
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mount_daemons import wait_for
from tests.support.server_store import StoredItems
from tests.support.servers import ServerHandle

pytest_plugins = ["tests.support.upload_fixtures"]

CONTENTS = {name: content_of(f"registration {name}", 3000) for name in ("a", "b", "sub/c")}


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return make_dataset(tmp_path, "only-copy", CONTENTS)


@pytest.fixture
def asked(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often the store is asked for an object's size."""
    urls = []
    look = Storage.look

    def noted(self: Storage, url: str, deadline: Any) -> Any:
        urls.append(url)
        return look(self, url, deadline)

    monkeypatch.setattr(Storage, "look", noted)
    return urls


def stage(client: Client, server: ServerHandle, local: Path) -> StagedDataset:
    """Copy a frozen dataset into the staging area, as cp into a mount does."""
    staged = client.staging.create(server.backend_uri, "only-copy", "somebody")
    shutil.copytree(local, staged.tree, dirs_exist_ok=True)
    return staged


def change_in_store(server: ServerHandle, uuid: str, fault: str) -> None:
    """Have the store hold something else than the server has registered."""
    stored, right = StoredItems.of(server, uuid), CONTENTS["sub/c"]
    if fault == "missing":
        stored.delete("sub/c")
    elif fault == "in parts":
        s3, at = stored.client, stored.at("sub/c")
        upload = s3.create_multipart_upload(**at)["UploadId"]
        part = s3.upload_part(**at, UploadId=upload, PartNumber=1, Body=right)
        parts = [{"ETag": part["ETag"], "PartNumber": 1}]
        s3.complete_multipart_upload(**at, UploadId=upload, MultipartUpload={"Parts": parts})
    else:
        body = {"empty": b"", "short": right[:-1], "long": right + b"x", "wrong": bytes(len(right))}
        stored.put("sub/c", body[fault])


def test_what_the_store_took_from_us_is_not_asked_for(
    client: Client, server: ServerHandle, local: Path, asked: list[str]
) -> None:
    staged = stage(client, server, local)

    client.freezer.freeze(staged).result(60)

    assert not asked
    wait_for(lambda: not staged.directory.exists(), "what was staged is deleted")


@pytest.mark.parametrize("fault", ["missing", "empty", "short", "long", "wrong"])
def test_only_copy_stays_if_the_store_has_not_what_the_server_says(
    client: Client, server: ServerHandle, local: Path, fault: str
) -> None:
    first = stage(client, server, local)
    client.freezer.freeze(first).result(60)
    wait_for(lambda: not first.directory.exists(), "what was staged is deleted")
    change_in_store(server, first.uuid, fault)
    staged = stage(client, server, local)

    with pytest.raises(IntegrityError, match="all its files are kept here"):
        client.freezer.freeze(staged).result(60)

    wait_for(lambda: client.freezer.progress(staged) is None, "the job is over")
    assert (staged.tree / "data/sub/c").read_bytes() == CONTENTS["sub/c"]
    assert staged.record.state is State.FAILED


@pytest.mark.parametrize("fault", [None, "in parts"])
def test_copy_of_what_the_store_has_is_deleted(
    client: Client, server: ServerHandle, local: Path, asked: list[str], fault: str | None
) -> None:
    first = stage(client, server, local)
    client.freezer.freeze(first).result(60)
    wait_for(lambda: not first.directory.exists(), "what was staged is deleted")
    if fault is not None:
        change_in_store(server, first.uuid, fault)
    staged = stage(client, server, local)

    client.freezer.freeze(staged).result(60)

    wait_for(lambda: not staged.directory.exists(), "what was staged is deleted")
    assert len(asked) == len(CONTENTS)


def test_items_of_an_upload_that_broke_off_are_asked_for(
    client: Client,
    server: ServerHandle,
    local: Path,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    staged = stage(client, server, local)
    complete = client.resolver.uploads.complete

    def refuse(uri: str, number_of_items: int) -> None:
        raise Unsupported("not now")

    monkeypatch.setattr(client.resolver.uploads, "complete", refuse)
    with pytest.raises(Unsupported):
        client.freezer.freeze(staged).result(60)
    wait_for(lambda: client.freezer.progress(staged) is None, "the job is over")
    monkeypatch.setattr(client.resolver.uploads, "complete", complete)

    client.freezer.freeze(staged).result(60)

    assert len(asked) == len(CONTENTS)


def test_what_was_changed_since_our_own_registration_keeps_nothing_staged(
    client: Client, server: ServerHandle, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = stage(client, server, local)
    is_registered = client.uploader.is_registered

    def unreachable(dataset: LocalDataset, uri: str) -> bool:
        raise Unreachable("not now")

    monkeypatch.setattr(client.uploader, "is_registered", unreachable)
    with pytest.raises(Unreachable):
        client.freezer.freeze(staged).result(60)
    wait_for(lambda: client.freezer.progress(staged) is None, "the job is over")
    monkeypatch.setattr(client.uploader, "is_registered", is_registered)
    registered = client.resolver.dataset_by_uuid(staged.uuid, server.backend_uri)
    client.metadata_writes.put_tag(registered, "by-another")
    assert staged.record.state is State.COMPLETING

    client.freezer.freeze(staged).result(60)

    wait_for(lambda: not staged.directory.exists(), "what was staged is deleted")
    assert "by-another" in client.resolver.metadata(registered).tags
