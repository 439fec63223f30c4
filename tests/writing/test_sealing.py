"""Sealing beside the upload: what is sent early, and what waits for the disk."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.base import durable_files
from dserverfs.base.errors import ItemChanged, ProtocolError
from dserverfs.base.model import UUID, DserverURI
from dserverfs.client import Client
from dserverfs.writing.staging import sealing
from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.staging.states import State
from tests.support.mount_daemons import wait_for
from tests.support.servers import ServerHandle

pytest_plugins = ["tests.support.upload_fixtures"]


class Disk:
    """Stands before syncfs(2): a disk that is slow, or broken."""

    def __init__(self) -> None:
        self.is_ready = threading.Event()
        self.error: OSError | None = None
        self._sync = durable_files.sync_file_system

    def sync(self, tree: Path) -> None:
        assert self.is_ready.wait(60)
        if self.error is not None:
            raise self.error
        self._sync(tree)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    monkeypatch.setattr(sealing, "sync_file_system", disk.sync)
    yield disk
    disk.is_ready.set()


@pytest.fixture
def staged(client: Client, server: ServerHandle) -> StagedDataset:
    base_uri = DserverURI.parse(server.base_uri).base_uri
    assert base_uri is not None
    staged = client.staging.create(base_uri, "sealed-and-sent", "somebody")
    (staged.tree / "file").write_bytes(b"content")
    return staged


def is_sent(client: Client, staged: StagedDataset) -> bool:
    progress = client.freezer.progress(staged)
    return progress is not None and progress.items_done == 1


def is_registered(client: Client, staged: StagedDataset) -> bool:
    return bool(client.resolver.datasets_by_uuid(UUID(staged.id)))


def test_items_are_sent_while_the_disk_is_at_work_and_registered_when_it_is_done(
    client: Client, staged: StagedDataset, disk: Disk
) -> None:
    freezing = client.freezer.freeze(staged)
    wait_for(lambda: is_sent(client, staged), "the item is sent")

    before = (staged.record.state, freezing.done(), is_registered(client, staged))
    disk.is_ready.set()

    assert before == (State.OPEN, False, False)
    assert freezing.result(60).uri.endswith(staged.id)
    assert is_registered(client, staged)


@pytest.mark.expects_log("frozen only by command: not frozen: .*Input/output error")
def test_disk_that_fails_leaves_it_staged_unregistered_and_unarmed(
    client: Client, staged: StagedDataset, disk: Disk
) -> None:
    disk.error = OSError(errno.EIO, "Input/output error")

    freezing = client.freezer.freeze(staged)
    wait_for(lambda: is_sent(client, staged), "the item is sent")
    disk.is_ready.set()

    with pytest.raises(OSError, match="Input/output error"):
        freezing.result(60)
    wait_for(lambda: client.freezer.progress(staged) is None, "the job is over")
    assert not is_registered(client, staged)
    assert (staged.record.state, staged.record.armed) == (State.OPEN, False)
    assert (staged.tree / "file").read_bytes() == b"content"


def test_write_before_the_disk_is_done_is_in_the_dataset_when_it_is_frozen_again(
    client: Client, staged: StagedDataset, disk: Disk
) -> None:
    freezing = client.freezer.freeze(staged)
    wait_for(lambda: is_sent(client, staged), "the item is sent")
    with staged.changing():
        (staged.tree / "file").write_bytes(b"other content")
    disk.is_ready.set()
    with pytest.raises(ItemChanged):
        freezing.result(60)
    wait_for(lambda: client.freezer.progress(staged) is None, "the job is over")
    unregistered = not is_registered(client, staged)

    client.freezer.freeze(staged).result(60)

    assert unregistered
    registered = client.resolver.dataset(f"{staged.record.base_uri}/{staged.id}")
    items = json.loads(b"".join(client.resolver.manifest_pieces(registered)))["items"]
    assert [item["size_in_bytes"] for item in items.values()] == [len(b"other content")]


def test_what_another_process_owns_is_carried_on_with_when_that_has_ended(
    client: Client, staged: StagedDataset
) -> None:
    described = sealing.describe(staged, None, threading.Event())
    assert described is not None
    described.keep()
    staged.disown()
    owner = Staging(client.staging.directory, staged.record.server).open()
    (owned,) = owner.datasets(staged.record.base_uri)
    owned.own()
    client.freezer.open()

    client.freezer.resume(staged)
    was_left_alone = not staged.is_owned
    owner.close()

    wait_for(lambda: is_registered(client, staged), "it is frozen")
    assert was_left_alone


def test_what_was_sealed_is_read_again_also_as_an_earlier_version_wrote_it(
    staged: StagedDataset,
) -> None:
    for number in range(3):
        (staged.tree / f"ü{number}").write_bytes(b"x" * number)
    described = sealing.describe(staged, None, threading.Event())
    assert described is not None
    described.keep()
    path = staged.directory / "sealed"
    wanted = list(described.dataset.items.dated())

    now = sealing.load(staged)
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({name: kept[name] for name in sorted(kept)}))
    then = sealing.load(staged)

    assert len(wanted) == 4
    assert list(now.items.dated()) == list(then.items.dated()) == wanted
    assert now.admin_metadata == then.admin_metadata == described.dataset.admin_metadata


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_half_of_what_was_sealed_is_an_error(staged: StagedDataset, lines: int) -> None:
    described = sealing.describe(staged, None, threading.Event())
    assert described is not None
    described.keep()
    path = staged.directory / "sealed"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))

    with pytest.raises(ProtocolError, match="sealed: cannot be read"):
        sealing.load(staged)
