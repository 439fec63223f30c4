"""The hashes of a dataset's blocks, sent after its items: of which files, whatever happens."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import pytest
import urllib3

from dserverfs.base.errors import Cancelled, ItemChanged, NotFound, ProtocolError, Unsupported
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import UUID, Dataset
from dserverfs.client import Client
from dserverfs.remote.routes import Capabilities, Routes
from dserverfs.writing.staging import sealing
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.upload import item_upload
from tests.support.block_hashes import object_of
from tests.support.dtool_datasets import content_of
from tests.support.faulty_put_front import Fault, refuse, spoil
from tests.support.local_uploads import Site, local_dataset
from tests.support.servers import ServerHandle

pytest_plugins = ["tests.support.upload_fixtures"]

CONTENTS = {
    "large": content_of("large", 3 * BLOCK_SIZE + 17),
    "nested/two": content_of("nested/two", 2 * BLOCK_SIZE),
    "one and a byte": content_of("one and a byte", BLOCK_SIZE + 1),
    "one": content_of("one", BLOCK_SIZE),
    "small": b"small",
    "empty": b"",
}
SMALL = {"one": CONTENTS["one"], "empty": b""}


def registered(client: Client, dataset: LocalDataset, base_uri: str) -> Dataset:
    return client.resolver.dataset_by_uuid(UUID(dataset.admin_metadata["uuid"]), base_uri)


def stored(client: Client, dataset: Dataset) -> bytes | None:
    """Return the block hashes that the server has of a dataset."""
    url = client.resolver.block_hashes_url(dataset)
    return None if url is None else urllib3.request("GET", url.url).data


def of_site(site: Site, dataset: LocalDataset) -> bytes | None:
    return stored(site.client, registered(site.client, dataset, site.base_uri))


def test_they_are_those_of_the_files(site: Site, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "items", CONTENTS)

    site.uploader.upload(dataset, site.base_uri)

    assert of_site(site, dataset) == object_of(CONTENTS)


def test_dataset_without_large_items_has_none(site: Site, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "items", SMALL)

    site.uploader.upload(dataset, site.base_uri)

    assert of_site(site, dataset) is None
    assert not [put for put in site.front.puts if "block-hashes" in put.path]


def test_server_that_does_not_take_them_gets_none(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = local_dataset(tmp_path / "items", CONTENTS)
    start = site.client.resolver.uploads.start
    monkeypatch.setattr(
        site.client.resolver.uploads,
        "start",
        lambda *arguments: start(*arguments)._replace(block_hashes=None),
    )

    site.uploader.upload(dataset, site.base_uri)

    assert of_site(site, dataset) is None


def test_server_that_was_replaced_by_one_that_does_not_take_them_has_the_dataset(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = local_dataset(tmp_path / "items", CONTENTS)
    start = site.client.resolver.uploads.start
    answers = []

    def answer(*arguments):  # type: ignore[no-untyped-def]
        answers.append(start(*arguments))
        return answers[-1] if len(answers) == 1 else answers[-1]._replace(block_hashes=None)

    monkeypatch.setattr(site.client.resolver.uploads, "start", answer)
    site.front.faults = [*[None] * (len(CONTENTS) + 1), refuse(403, "AccessDenied")]

    site.uploader.upload(dataset, site.base_uri)

    assert len(answers) == 2
    assert of_site(site, dataset) is None


@pytest.mark.parametrize("fault", [spoil, refuse(503, "SlowDown"), refuse(403, "Expired")])
def test_fault_of_the_store_is_survived_as_that_of_an_item(
    site: Site, tmp_path: Path, fault: Fault
) -> None:
    dataset = local_dataset(tmp_path / "items", CONTENTS)
    site.front.faults = [*[None] * (len(CONTENTS) + 1), fault]

    site.uploader.upload(dataset, site.base_uri)

    assert of_site(site, dataset) == object_of(CONTENTS)


def test_file_that_is_not_the_announced_one_any_more_is_told(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody but the store looks at what is sent, and it has these items already."""
    dataset = local_dataset(tmp_path / "items", CONTENTS)
    with pytest.raises(Cancelled):
        site.uploader.upload(dataset, site.base_uri, before_complete=cancel)
    (tmp_path / "items/large").write_bytes(CONTENTS["large"][:-1] + b"?")

    with pytest.raises(ItemChanged) as failure:
        site.uploader.upload(dataset, site.base_uri)

    assert failure.value.relpath == "large"
    assert not site.is_registered(dataset)


@contextlib.contextmanager
def file_of(content: bytes) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        yield file


def cancel() -> None:
    raise Cancelled("the mount ends")


# Of a dataset that is registered without them


def frozen_without(
    site: Site, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[LocalDataset, str]:
    dataset = local_dataset(directory, CONTENTS)
    with monkeypatch.context() as patch:
        patch.setattr(item_upload.Sender, "send_block_hashes", lambda sender: None)
        return dataset, site.uploader.upload(dataset, site.base_uri)


@pytest.mark.parametrize("fault", [None, spoil, refuse(403, "Expired")])
def test_they_are_added_to_what_is_registered(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault | None
) -> None:
    dataset, uri = frozen_without(site, tmp_path / "items", monkeypatch)
    site.front.faults = [fault]

    for _ in range(2):  # that they are there already is success
        with file_of(object_of(CONTENTS)) as file:
            site.uploader.add_block_hashes(uri, file)

    assert of_site(site, dataset) == object_of(CONTENTS)


def test_answer_that_is_lost_when_they_were_added_is_success(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, uri = frozen_without(site, tmp_path / "items", monkeypatch)
    complete = site.client.resolver.uploads.complete_block_hashes

    def complete_twice(uri: str) -> None:
        complete(uri)
        complete(uri)

    monkeypatch.setattr(site.client.resolver.uploads, "complete_block_hashes", complete_twice)
    with file_of(object_of(CONTENTS)) as file:
        site.uploader.add_block_hashes(uri, file)

    assert of_site(site, dataset) == object_of(CONTENTS)


def test_what_cannot_be_added_is_told(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, uri = frozen_without(site, tmp_path / "items", monkeypatch)

    with (
        pytest.raises(ProtocolError, match="its block hashes have"),
        file_of(object_of(SMALL)) as file,
    ):
        site.uploader.add_block_hashes(uri, file)
    with pytest.raises(NotFound), file_of(object_of(CONTENTS)) as file:
        site.uploader.add_block_hashes(f"{uri[:-8]}00000000", file)
    monkeypatch.setattr(Routes, "capabilities", lambda routes: Capabilities(True, True))
    with pytest.raises(Unsupported), file_of(object_of(CONTENTS)) as file:
        site.uploader.add_block_hashes(uri, file)


# Of what is staged, by those who hash it


def stage(client: Client, base_uri: str, contents: Mapping[str, bytes]) -> StagedDataset:
    staged = client.staging.create(base_uri, f"staged-{uuid.uuid4()}", "grumpy")
    for relpath, content in contents.items():
        path = staged.tree / relpath
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return staged


def seal(staged: StagedDataset) -> LocalDataset:
    described = sealing.describe(staged, None, threading.Event())
    assert described is not None
    described.keep()
    return described.dataset


def fail_to_read(*_: object) -> bytes:
    raise AssertionError("read again")


def test_files_are_not_read_again_for_them(
    client: Client, server: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = stage(client, server.backend_uri, CONTENTS)
    monkeypatch.setattr(item_upload.Sender, "_read_blocks", fail_to_read)

    client.freezer.freeze(staged).result(60)

    assert staged.frozen_as is not None
    assert stored(client, staged.frozen_as) == object_of(CONTENTS)


def test_nor_by_the_process_that_carries_on(
    client: Client, server: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = stage(client, server.backend_uri, CONTENTS)
    seal(staged)
    monkeypatch.setattr(item_upload.Sender, "_read_blocks", fail_to_read)
    local = sealing.load(staged)

    client.uploader.upload(local, server.backend_uri)

    assert stored(client, registered(client, local, server.backend_uri)) == object_of(CONTENTS)


FORGETTING = {
    "by version 0.1.0": "DROP TABLE block_hash",
    "by it, after this one": "UPDATE block_hash SET ctime_ns = ctime_ns - 1",
    "damaged": "UPDATE block_hash SET blocks = zeroblob(length(blocks))",
    "short": "UPDATE block_hash SET blocks = substr(blocks, 33)",
    "no bytes": "UPDATE block_hash SET blocks = 'text'",
}


@pytest.mark.parametrize("way", FORGETTING)
def test_what_was_hashed_without_them_is_hashed_again(
    client: Client, server: ServerHandle, way: str
) -> None:
    staged = stage(client, server.backend_uri, CONTENTS)
    seal(staged)
    with contextlib.closing(sqlite3.connect(staged.directory / "hashes")) as database:
        database.execute(FORGETTING[way])
        database.commit()
    local = sealing.load(staged)

    client.uploader.upload(local, server.backend_uri)

    assert stored(client, registered(client, local, server.backend_uri)) == object_of(CONTENTS)
