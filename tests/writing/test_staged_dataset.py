"""One staged dataset: what it counts, who may change it, and what is on the disk of that."""

from __future__ import annotations

import errno
import json
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from dserverfs.base.errors import (
    Conflict,
    Frozen,
    ProtocolError,
)
from dserverfs.base.model import Dataset
from dserverfs.writing.staging import dataset
from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.dataset import (
    MAX_STATE_BYTES,
    StagedDataset,
    delete_tree,
    read_record,
    write_record,
)
from dserverfs.writing.staging.states import Move, State
from tests.support.power_cuts import Disk
from tests.support.staging_areas import BASE, Clock, another, only

pytest_plugins = ["tests.support.staging_fixtures"]


# What it counts


def test_changes_and_closes_are_each_another_number(staged: StagedDataset) -> None:
    numbers = [staged.changes]
    with staged.changing():
        staged.writer_opened()
        numbers.append(staged.changes)
    numbers.append(staged.changes)
    assert staged.writers == 1
    staged.writer_closed()
    numbers.append(staged.changes)

    assert staged.writers == 0
    assert numbers[0] == numbers[1]
    assert len(set(numbers)) == 3
    assert not staged.seal(numbers[0], staged.id)
    assert staged.record.state is State.OPEN


def test_change_that_fails_is_a_change(staged: StagedDataset) -> None:
    before = staged.changes

    with pytest.raises(OSError, match="half"), staged.changing():
        raise OSError("half of it")

    assert staged.changes != before


def test_pauses_are_those_between_changes_of_what_has_content(
    staged: StagedDataset, clock: Clock
) -> None:
    def change() -> None:
        with staged.changing():
            pass

    clock.now_s += 500
    change()  # a directory, made for later
    clock.now_s += 300
    with staged.changing():
        staged.writer_opened()
    assert staged.longest_pause_s == 0
    clock.now_s += 7
    staged.writer_closed()
    clock.now_s += 3
    change()

    assert staged.longest_pause_s == 7
    assert staged.quiet_s() == 0
    clock.now_s += 5
    assert staged.quiet_s() == 5
    assert staged.settles_in_s(20.0) == 4 * 7 - 5
    assert staged.settles_in_s(90.0) == 85


def test_it_is_over_when_it_is_gone_or_frozen(staging: Staging) -> None:
    discarded, became, registered = (
        staging.create(BASE, name, "alice") for name in ("a", "b", "c")
    )
    assert not discarded.is_over
    discarded.discard()
    became.frozen_as = Dataset.from_json(
        {"uri": "s3://b/u", "base_uri": BASE, "uuid": str(uuid.uuid4()), "name": "n"}
        | {"creator_username": "c", "created_at": 1.0, "frozen_at": 1.0}
    )
    for move in (Move.SEAL, Move.UPLOAD, Move.COMPLETE):
        registered.move(move)
        assert not registered.is_over
    registered.move(Move.REGISTER)

    assert all(staged.is_over for staged in (discarded, became, registered))
    assert discarded.is_gone
    assert not became.is_gone


def test_uuid_is_that_which_was_sealed(staged: StagedDataset) -> None:
    sealed_as = str(uuid.UUID(int=7))
    assert staged.uuid == staged.id

    assert staged.seal(staged.changes, sealed_as)

    assert staged.uuid == sealed_as
    assert read_record(staged.directory).uuid == sealed_as


# Who may change it


def test_only_its_owner_changes_it(staging: Staging, staged: StagedDataset) -> None:
    anothers = only(another(staging))
    before = read_record(staged.directory)

    changes: list[Callable[[], object]] = [
        lambda: anothers.move(Move.SEAL),
        lambda: anothers.set_manual(True),
        lambda: anothers.rename("two"),
        anothers.require_writable,
        anothers.discard,
    ]
    for change in changes:
        with pytest.raises(Conflict, match=f"process {os.getpid()}"):
            change()
    anothers.disarm("why")
    anothers.explain("why")

    assert anothers.record == before == read_record(staged.directory)


def test_what_another_process_changed_is_read_again_but_not_what_is_owned(
    staging: Staging, staged: StagedDataset
) -> None:
    anothers = only(another(staging))
    staged.explain("a reason")
    anothers.reload()
    assert anothers.record.reason == "a reason"

    write_record(staged.directory, anothers.record.moved(Move.SEAL))
    staged.reload()
    assert staged.record.state is State.OPEN


@pytest.mark.expects_log("it was open when its mount ended")
def test_owner_that_takes_over_disarms_what_was_armed_alone(staging: Staging) -> None:
    armed = staging.create(BASE, "armed", "alice")
    told = staging.create(BASE, "told", "alice", unarmed="half of a copy is missing")
    for staged in (armed, told):
        staged.disown()

        staged.own()

    assert not armed.record.armed
    assert told.record.reason == "half of a copy is missing"


def test_one_that_cannot_be_read_is_owned_by_nobody(
    staging: Staging, staged: StagedDataset
) -> None:
    staged.disown()
    (staged.directory / "state").write_text("{")

    with pytest.raises(ProtocolError):
        staged.own()

    assert not staged.is_owned


def test_what_is_gone_is_not_written(staged: StagedDataset) -> None:
    staged.discard()

    with pytest.raises(Frozen, match="not staged any more"):
        staged.require_writable()
    assert list(staged.directory.parent.glob("[!n]*")) == [], "but for names.lock"
    assert list(staged.directory.parent.glob(".*")) == []
    assert not staged.is_owned


@pytest.mark.parametrize("state", [State.SEALED, State.UPLOADING])
def test_write_stops_the_upload_it_makes_useless_and_no_later_one(
    staged: StagedDataset, state: State
) -> None:
    stop, later = threading.Event(), threading.Event()
    staged.move(Move.SEAL)
    if state is State.UPLOADING:
        staged.move(Move.UPLOAD)

    with staged.stopped_by_writes(stop):
        with staged.changing():
            pass
        assert stop.is_set()
    stop.clear()
    staged.move(Move.SEAL)
    with staged.changing():
        pass
    assert not stop.is_set()
    with staged.stopped_by_writes(later), staged.changing():
        pass
    assert not later.is_set(), "it was open, and so nothing was useless"


# What is on the disk


def test_disk_that_cannot_note_a_reason_keeps_it_in_memory(
    staged: StagedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(directory: Path, record: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(dataset, "write_record", fail)

    staged.explain("why")
    assert staged.record.reason == "why"
    with pytest.raises(OSError, match="Input/output error"):
        staged.move(Move.SEAL)
    assert staged.record.state is State.OPEN


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "tree").rmdir(), "No such file"),
        (lambda d: ((d / "tree").rmdir(), (d / "tree").write_text("")), "no directory"),
        (lambda d: ((d / "tree").rmdir(), (d / "tree").symlink_to("/tmp")), "no directory"),
        (lambda d: swap(d, "server", "elsewhere"), "another one's"),
        (lambda d: swap(d, "base_uri", "s3://other"), "another one's"),
        (lambda d: swap(d, "id", str(uuid.UUID(int=1))), "another one's"),
        (lambda d: (d / "state").write_bytes(bytes(MAX_STATE_BYTES + 1)), "larger than any"),
    ],
)
def test_directory_that_is_no_staged_dataset_is_not_read_as_one(
    staged: StagedDataset, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(staged.directory)

    with pytest.raises((ProtocolError, OSError), match=message):
        read_record(staged.directory)


def swap(directory: Path, key: str, value: str) -> None:
    path = directory / "state"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def test_state_of_the_largest_size_is_read(staged: StagedDataset) -> None:
    path = staged.directory / "state"
    path.write_bytes(path.read_bytes().ljust(MAX_STATE_BYTES))

    assert read_record(staged.directory) == staged.record


@pytest.mark.parametrize(
    ("number", "reason", "is_kept"),
    [
        (errno.ENOSPC, "short", True),
        (errno.EDQUOT, "short", True),
        (errno.ENOSPC, "x" * 6000, False),  # would need another block
        (errno.EIO, "short", False),
    ],
)
def test_full_disk_has_the_state_overwritten_where_there_is_room_in_its_block(
    staged: StagedDataset, monkeypatch: pytest.MonkeyPatch, number: int, reason: str, is_kept: bool
) -> None:
    disk = Disk(monkeypatch)

    def fail(path: Path, content: bytes) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(dataset, "write_durably", fail)
    before = read_record(staged.directory)
    size = (staged.directory / "state").stat().st_size

    if is_kept:
        staged.move(Move.SEAL, reason=reason)
        assert disk.steps == ["sync file"]
        assert read_record(staged.directory).reason == reason
        staged.move(Move.WRITE)  # which is shorter
        assert (staged.directory / "state").stat().st_size >= size
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            staged.move(Move.SEAL, reason=reason)
        assert staged.record == before

    assert staged.record == read_record(staged.directory)


def test_disk_that_fails_when_it_is_overwritten_is_told_as_full(
    staged: StagedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(dataset, "write_durably", full)
    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(OSError, match="No space left"):
        staged.move(Move.SEAL)
    assert staged.record.state is State.OPEN


def test_tree_is_deleted_though_another_process_is_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tree"
    (path / "a").mkdir(parents=True)
    rmtree, races = dataset.shutil.rmtree, iter([True, True, False])  # type: ignore[attr-defined]

    def raced(path: Path) -> None:
        if next(races):
            raise FileNotFoundError(path)
        rmtree(path)

    monkeypatch.setattr(dataset.shutil, "rmtree", raced)  # type: ignore[attr-defined]

    delete_tree(path)

    assert not path.exists()


@pytest.mark.expects_log("cannot be deleted")
def test_tree_that_cannot_be_deleted_stays_and_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(dataset.shutil, "rmtree", refuse)  # type: ignore[attr-defined]

    delete_tree(tmp_path)

    assert len(caplog.records) == 1
