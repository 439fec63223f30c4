"""What a mount's edits leave behind, and what the next one makes of it."""

from __future__ import annotations

import contextlib
import os
import uuid as uuid_module
from dataclasses import replace
from pathlib import Path

import pytest

from dserverfs.base.hashes import MD5, digest
from dserverfs.base.model import Dataset
from dserverfs.writing.edits import journal
from dserverfs.writing.edits.journal import EditSession, Note, UnsentEdit, all_unsent, root_of
from dserverfs.writing.edits.local_file import UNFINISHED
from tests.support.editing import BEFORE, README, WAIT_S, Bench, away, wait_until
from tests.support.power_cuts import Disk, PowerCut

pytest_plugins = ["tests.support.resolver_fixtures", "tests.support.edit_fixtures"]


# After the end


def test_nothing_is_left_of_a_mount(bench: Bench) -> None:
    bench.make(".scratch", b"x")
    bench.write(README, b"new: 1\n")

    bench.edits.close()

    assert list(bench.staging.glob(".edits/*/*")) == [root_of(bench.staging, "server") / "lock"]


@pytest.mark.expects_log("could not be sent")
def test_what_was_not_sent_is_kept_told_of_and_sent_by_the_next_mount(bench: Bench) -> None:
    bench.writes.error = away()
    bench.write(README, b"new: 1\n")
    bench.make(".scratch", b"x")
    bench.edits.close()
    ((server, unsent),) = all_unsent(bench.staging)
    assert (server, unsent.note.path, unsent.note.reason) == (
        "server",
        README,
        "the server is away",
    )
    assert unsent.local.read_bytes() == b"new: 1\n"
    assert unsent.note.dataset == bench.dataset
    assert unsent.note.md5 == digest(MD5, b"new: 1\n")

    bench.writes.error = None
    bench.mount()
    bench.edits.flush(WAIT_S)

    assert bench.has("readme") == "new: 1\n"
    assert list(all_unsent(bench.staging)) == []
    assert bench.local_files() == []


@pytest.mark.expects_log("could not be sent")
def test_mount_of_other_datasets_leaves_it_to_others(bench: Bench) -> None:
    bench.writes.error = away()
    bench.write(README, b"new: 1\n")
    bench.edits.close()

    bench.another().open(lambda dataset: False).close()

    assert [unsent.note.path for _, unsent in all_unsent(bench.staging)] == [README]


def test_mount_that_lives_keeps_its_own(bench: Bench) -> None:
    handle = bench.open(README)
    bench.edits.write(handle, b"new: 1\n", 0)

    bench.another().open(lambda dataset: True).close()

    bench.edits.release(handle)
    bench.edits.flush(WAIT_S)
    assert bench.has("readme") == "new: 1\n"


@pytest.mark.expects_log(UNFINISHED)
def test_what_was_being_written_is_shown_by_the_next_mount_and_not_sent(bench: Bench) -> None:
    handle = bench.open(README)
    bench.edits.write(handle, b"hal", 0)
    bench.edits.close()

    bench.mount()
    bench.edits.flush(0.1)

    assert bench.shows(README) == b"hal"
    assert bench.puts() == 0
    (unsent,) = bench.edits.unsent()
    assert unsent.note.reason == UNFINISHED
    bench.edits.release(bench.reads(README))
    bench.edits.flush(0.1)
    assert bench.puts() == 0
    bench.fill(bench.open(README, os.O_WRONLY | os.O_APPEND), b"f\n")
    assert bench.has("readme") == "half\n"


def test_what_the_kernel_closed_without_telling_is_sent_at_the_end(bench: Bench) -> None:
    handle = bench.open(README)
    bench.edits.write(handle, b"new: 1\n", 0)

    bench.edits.take_as_closed()
    bench.edits.close()

    assert bench.has("readme") == "new: 1\n"
    assert list(all_unsent(bench.staging)) == []


def test_crash_leaves_what_was_complete_to_the_next_mount(bench: Bench) -> None:
    session = journal.EditSession(root_of(bench.staging, "server"))
    session.open()
    kept, temporary = session.new_file(), session.new_file()
    kept.write_bytes(b"new: 1\n")
    session.note(kept, journal.Note(bench.dataset, README, True, 1.0))
    lost = session.new_file()
    session.note(lost, journal.Note(bench.dataset, README, True, 1.0))
    lost.unlink()
    session._lock.release()  # as a process that is killed does

    bench.mount()
    bench.edits.flush(WAIT_S)

    assert bench.has("readme") == "new: 1\n"
    assert not temporary.exists()
    assert not kept.parent.exists()


@pytest.mark.expects_log(UNFINISHED)
@pytest.mark.parametrize("left", [b"", b"new: 1", b"new: 2\n"])
def test_content_that_a_power_cut_spoilt_is_shown_and_not_sent(bench: Bench, left: bytes) -> None:
    session = journal.EditSession(root_of(bench.staging, "server"))
    session.open()
    spoilt = session.new_file(left)
    complete = journal.Note(bench.dataset, README, True, 1.0, md5=digest(MD5, b"new: 1\n"))
    session.note(spoilt, complete)
    session._lock.release()  # as a process that is killed does

    bench.mount()
    bench.edits.flush(0.1)

    assert bench.has("readme") == BEFORE.decode()
    assert bench.shows(README) == left
    assert [unsent.note.reason for unsent in bench.edits.unsent()] == [UNFINISHED]


# The first step notes that something is about to be written, which has not returned then.
@pytest.mark.parametrize(
    ("step", "sent"),
    [(0, False), pytest.param(1, False, marks=pytest.mark.expects_log(UNFINISHED))]
    + [(step, True) for step in range(2, 6)],
)
def test_kill_at_any_step_leaves_what_was_written_to_the_next_mount(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: int, sent: bool
) -> None:
    bench.edits.require(bench.dataset, README)  # the server's answers are kept on the disk, too
    disk, killed = Disk(monkeypatch), bench.edits
    disk.cut_at(step)
    with contextlib.suppress(PowerCut):
        bench.write(README, b"new: 1\n")
    assert len(disk.steps) == step
    disk.keep_everything()
    killed._local._session._lock.release()

    bench.mount()
    bench.edits.flush(WAIT_S)

    assert bench.shows(README) == (b"new: 1\n" if step else BEFORE)
    assert bench.has("readme") == ("new: 1\n" if sent else BEFORE.decode())
    assert [unsent.note.path for unsent in bench.edits.unsent()] == ([README] if step == 1 else [])


@pytest.mark.expects_log("cannot be read")
def test_note_that_cannot_be_read_stays(bench: Bench) -> None:
    session = journal.EditSession(root_of(bench.staging, "server"))
    session.open()
    kept = session.new_file()
    kept.with_name(f"{kept.name}.json").write_text("{")
    session._lock.release()

    bench.mount()

    assert kept.exists()


def test_facts_of_what_is_not_sent_survive_json(bench: Bench) -> None:
    note = journal.Note(bench.dataset, README, False, 12.5, "why")

    assert journal.Note.from_json(note.to_json()) == note
    assert UnsentEdit.of(Path(__file__), note).size_in_bytes == Path(__file__).stat().st_size


# Power cuts


def test_what_is_sent_is_on_the_disk_before_the_server_is_asked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    steps_when_asked: list[list[str]] = []
    bench.writes.asked = lambda: steps_when_asked.append(list(disk.steps))

    bench.write(README, b"new: 1\n")

    (steps,) = steps_when_asked
    # The quick notes of what is being written, then content, note, its name.
    assert steps[-4:] == ["sync file", "sync file", "replace", "sync directory"]


def test_change_is_on_the_disk_while_another_one_waits_for_the_server(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.writes.may_go_on.clear()
    first = bench.open(README)
    bench.edits.write(first, b"new: 1\n", 0)
    bench.edits.release(first)
    assert bench.writes.reached.wait(WAIT_S)
    second = bench.open(".dtool/annotations/n.json")
    bench.edits.write(second, b"6", 0)
    disk = Disk(monkeypatch)

    bench.edits.release(second)

    wait_until(lambda: disk.steps[-4:] == ["sync file", "sync file", "replace", "sync directory"])
    bench.writes.may_go_on.set()
    bench.edits.flush(WAIT_S)
    assert (bench.has("readme"), bench.has("annotations")) == ("new: 1\n", {"n": 6})


def session_with_an_edit(staging: Path) -> tuple[EditSession, Path, Note]:
    """Return a session with one change that is being written: its file and the note of it."""
    dataset = Dataset.from_json(
        {"uri": "s3://b/u", "base_uri": "s3://b", "uuid": str(uuid_module.uuid4()), "name": "n"}
        | {"creator_username": "c", "created_at": 1.0, "frozen_at": 1.0}
    )
    session = EditSession(root_of(staging, "server"))
    session.open()
    local, note = session.new_file(), Note(dataset, README, is_complete=False, changed_at=1.0)
    session.note(local, note)
    local.write_bytes(b"new: 1\n")
    return session, local, note


@pytest.mark.parametrize("step", range(5))
def test_power_cut_while_a_change_is_secured_loses_nothing_that_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    disk = Disk(monkeypatch)
    session, local, written = session_with_an_edit(tmp_path)
    disk.settle()
    disk.cut_at(step)

    with contextlib.suppress(PowerCut):
        session.secure(local, replace(written, is_complete=True), lambda: True)
    secured = len(disk.steps) == 4
    disk.lose_what_is_not_synced()

    session.close()
    later = EditSession(root_of(tmp_path, "server"))
    later.open()
    ((path, note),) = later.take_over(lambda note: True)
    assert note.is_complete or not secured
    assert disk.has_content_of(path) or not note.is_complete
    later.close()


@pytest.mark.parametrize("step", range(6))
def test_power_cut_while_a_change_is_taken_over_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    disk = Disk(monkeypatch)
    killed, local, written = session_with_an_edit(tmp_path)
    killed.secure(local, replace(written, is_complete=True), lambda: True)
    killed.close()
    disk.settle()
    next_one = EditSession(root_of(tmp_path, "server"))
    next_one.open()
    disk.cut_at(step)

    with contextlib.suppress(PowerCut):
        next_one.take_over(lambda note: True)
    assert len(disk.steps) == min(step, 5)
    disk.lose_what_is_not_synced()

    next_one.close()
    later = EditSession(root_of(tmp_path, "server"))
    later.open()
    ((path, note),) = later.take_over(lambda note: True)
    assert note.is_complete
    assert path.read_bytes() == b"new: 1\n"
    later.close()
