"""The freezer with a server that is scripted: what is on the disk at each step, and after each
failure; what is tried again, by whom, and what only a person can settle."""

from __future__ import annotations

import errno
import sqlite3
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from dserverfs.base.errors import (
    Cancelled,
    Conflict,
    IntegrityError,
    ItemChanged,
    LocalDiskError,
    NotAuthenticated,
    PermissionDenied,
    Unreachable,
    UsageError,
)
from dserverfs.writing import freeze_job
from dserverfs.writing.staging import sealing
from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.staging.states import Move, State
from tests.support.freezing import (
    BASE_URI,
    WAIT_S,
    FreezeBench,
    freeze_bench,
    refuse_to_note,
    seal,
    state_on_disk,
)
from tests.support.mount_daemons import wait_for


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FreezeBench:
    """One that freezes nothing by itself."""
    return freeze_bench(tmp_path / "staging", monkeypatch)


# One that succeeds


def test_disk_says_before_each_step_how_far_it_is(bench: FreezeBench) -> None:
    result = bench.freezer.freeze(bench.staged).result(WAIT_S)
    bench.settle()

    assert bench.server.steps == [
        ("announce", bench.server.steps[0][1]),  # it is sealed meanwhile
        ("send", bench.server.steps[1][1]),
        ("complete", State.COMPLETING),
        ("answer", State.COMPLETING),
        ("registered", State.COMPLETING),
        ("learn", State.COMPLETING),
        ("adopt", State.FROZEN),
    ]
    assert result == freeze_job.FreezeResult(f"{BASE_URI}/{bench.staged.id}", [])
    assert bench.server.taken == {"file"}
    assert bench.staged.frozen_as is not None
    assert bench.staged.frozen_below == "data"
    assert bench.staged.is_gone
    assert not bench.staged.directory.exists()
    assert not bench.is_watched()
    assert bench.freezer.progress(bench.staged) is None
    assert bench.freezer.notes() == {}


def test_progress_is_that_of_its_upload_while_it_lasts(bench: FreezeBench) -> None:
    seen = []
    bench.server.plans["complete"] = lambda: seen.append(bench.freezer.progress(bench.staged))

    bench.freeze()

    assert [progress.items_done for progress in seen if progress] == [1]


def test_surprises_are_told_with_the_result_and_kept(bench: FreezeBench) -> None:
    bench.server.surprise = "it is shown as another"
    bench.server.name = "first-name"
    notes = ["it is shown as another", "its name is first-name, as when it was frozen first"]

    result = bench.freezer.freeze(bench.staged, by_itself=True).result(WAIT_S)
    bench.settle()

    assert result.notes == notes
    noted = bench.freezer.notes()[result.uri]
    assert noted == freeze_job.Noted("first-name", notes, by_itself=True)


def test_asked_for_twice_it_is_one_job(bench: FreezeBench) -> None:
    release = threading.Event()
    bench.server.plans["announce"] = lambda: [release.wait(WAIT_S)].clear()

    first, second = bench.freezer.freeze(bench.staged), bench.freezer.freeze(bench.staged)
    release.set()

    assert first is second
    assert first.result(WAIT_S)
    bench.settle()
    assert bench.server.names_of_steps().count("announce") == 1


@pytest.mark.expects_log("frozen, which cannot be noted")
def test_disk_that_cannot_note_that_it_is_frozen_does_not_undo_it(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_note(monkeypatch, Move.REGISTER)

    assert bench.freeze() is None
    assert not bench.staged.directory.exists()


@pytest.mark.expects_log("frozen, but what was staged cannot be put away")
def test_frozen_one_that_cannot_be_put_away_is_frozen_and_the_next_mount_puts_it_away(
    bench: FreezeBench,
) -> None:
    bench.server.plans["adopt"] = RuntimeError("no such table")
    assert bench.freeze() is None
    assert state_on_disk(bench.staged).state is State.FROZEN
    bench.server.plans.clear()
    bench.server.steps.clear()

    staged = bench.crash()
    bench.mount().resume(staged)
    bench.freeze()

    assert bench.server.names_of_steps() == ["registered", "learn", "adopt"]
    assert not staged.directory.exists()


@pytest.mark.expects_log("it was open when its mount ended")
def test_one_that_nobody_owns_is_owned_while_it_is_frozen(bench: FreezeBench) -> None:
    bench.staged.disown()

    assert bench.freeze() is None
    assert bench.server.registered_uuids == {bench.staged.id: 1}


def test_one_that_another_process_owns_is_left_to_that(bench: FreezeBench) -> None:
    (anothers,) = Staging(bench.staging.directory, "server").open().datasets(BASE_URI)
    before = state_on_disk(bench.staged)

    failure = bench.freezer.freeze(anothers).exception(WAIT_S)
    bench.settle()

    assert isinstance(failure, Conflict)
    assert bench.server.steps == []
    assert state_on_disk(bench.staged) == before


def test_upload_that_ends_before_it_is_complete_shows_nothing_as_frozen(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.server.registered_uuids[bench.staged.id] = 1
    monkeypatch.setattr(bench.server, "upload", lambda *arguments, **options: "s3://bucket/x")

    assert isinstance(bench.freeze(), UsageError)
    assert "learn" not in bench.server.names_of_steps()
    assert bench.staged.frozen_as is None
    assert state_on_disk(bench.staged).state is State.FAILED


# One that fails

AWAY, NO_TOKEN = Unreachable("the server is away"), NotAuthenticated("the token is refused")
NO_RIGHT, OTHER = PermissionDenied("no register right"), Conflict("has other items")
WRONG, CHANGED = IntegrityError("not the same"), ItemChanged("file: was changed", relpath="file")
ENDING, ODD = Cancelled("the mount is ending"), UsageError("cannot be sent")
OURS, BROKEN = ZeroDivisionError("a fault"), OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("error", "after_announcing", "after_completing", "is_tried_again"),
    [
        (AWAY, State.SEALED, State.COMPLETING, True),
        (NO_TOKEN, State.SEALED, State.COMPLETING, True),
        (NO_RIGHT, State.FAILED, State.FAILED, False),
        (OTHER, State.FAILED, State.FAILED, False),
        (WRONG, State.FAILED, State.FAILED, False),
        (CHANGED, State.FAILED, State.FAILED, False),
        (ODD, State.FAILED, State.FAILED, False),
        pytest.param(
            *(OURS, State.FAILED, State.FAILED, False),
            marks=pytest.mark.expects_log("a fault of ours while freezing"),
        ),
        (BROKEN, State.FAILED, State.FAILED, False),
        (ENDING, State.UPLOADING, State.COMPLETING, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
@pytest.mark.parametrize("step", ["announce", "complete"])
def test_what_a_failure_leaves(
    bench: FreezeBench,
    error: BaseException,
    after_announcing: State,
    after_completing: State,
    is_tried_again: bool | None,
    step: str,
) -> None:
    bench.server.plans[step] = error
    wanted = after_announcing if step == "announce" else after_completing

    assert bench.freeze() is error

    kept = state_on_disk(bench.staged)
    assert kept == bench.staged.record
    assert kept.state is wanted
    assert kept.reason == (None if error is ENDING else str(error))
    assert (bench.staged.tree / "file").read_bytes() == b"content"
    assert bench.staged.frozen_as is None
    assert bench.is_watched()
    assert bench.freezer.progress(bench.staged) is None
    wait_s = bench.due_in_s()
    if is_tried_again is None:
        assert wait_s is not None
        assert wait_s <= 0  # by the next mount, whose freezer is not ending
    else:
        assert (wait_s is not None and wait_s > 1) == is_tried_again


@pytest.mark.parametrize("error", [AWAY, NO_RIGHT, ODD], ids=lambda error: type(error).__name__)
def test_failure_of_one_that_is_registered_is_tried_again_whatever_it_is(
    bench: FreezeBench, error: BaseException
) -> None:
    seal(bench.staged)
    for move in (Move.UPLOAD, Move.COMPLETE, Move.REGISTER):
        bench.staged.move(move)
    bench.server.plans["registered"] = error

    assert bench.freeze() is error

    assert state_on_disk(bench.staged).state is State.FROZEN
    wait_s = bench.due_in_s()
    assert wait_s is not None
    assert wait_s > 1
    assert (bench.staged.tree / "file").exists()


def test_file_that_is_not_what_was_known_of_it_is_hashed_anew(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[StagedDataset] = []
    monkeypatch.setattr(sealing, "forget_hashes", forgotten.append)
    bench.server.plans["announce"] = CHANGED
    bench.freeze()
    bench.server.plans["announce"] = NO_RIGHT
    bench.freeze()

    assert forgotten == [bench.staged]


@pytest.mark.parametrize("state", [State.FAILED, State.SEALED, State.COMPLETING])
def test_what_is_not_frozen_is_frozen_by_the_command_once_nothing_is_in_the_way(
    bench: FreezeBench, state: State
) -> None:
    bench.server.plans = {
        State.FAILED: {"announce": NO_RIGHT},
        State.SEALED: {"announce": AWAY},
        State.COMPLETING: {"answer": AWAY},  # it was registered, and the answer was lost
    }[state]  # type: ignore[assignment]
    bench.freeze()
    assert state_on_disk(bench.staged).state is state
    bench.server.plans.clear()

    assert bench.freeze() is None
    assert bench.server.registered_uuids == {bench.staged.id: 1}
    assert not bench.staged.directory.exists()


@pytest.mark.expects_log("frozen only by command: not frozen: .*Input/output error")
def test_failure_of_the_sealing_ends_the_upload_and_is_the_one_that_is_told(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tree: Path) -> None:
        raise BROKEN

    monkeypatch.setattr(sealing, "sync_file_system", fail)

    def send() -> None:
        assert bench.freezer._jobs[bench.staged.directory].stop.wait(WAIT_S)
        raise ENDING

    bench.server.plans["send"] = send

    assert bench.freeze() is BROKEN
    assert bench.server.names_of_steps() == ["announce", "send"]
    assert (bench.staged.record.state, bench.staged.record.armed) == (State.OPEN, False)


# Those who begin it, and what is in its way


def test_what_is_open_for_writing_is_waited_for_shortly(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def monotonic() -> float:
        looks.append(5.0)
        return 5.0 if len(looks) == 1 else 5.0 + freeze_job.LATE_CLOSE_S

    monkeypatch.setattr(freeze_job, "time", SimpleNamespace(monotonic=monotonic))
    with bench.staged.changing():
        bench.staged.writer_opened()
    freezing = bench.freezer.freeze(bench.staged)
    wait_for(lambda: len(looks) > 3, "it is waited for")
    bench.staged.writer_closed()

    assert freezing.result(WAIT_S)
    bench.settle()


def test_what_stays_open_for_writing_is_not_frozen(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze_job, "LATE_CLOSE_S", 0.05)
    with bench.staged.changing():
        bench.staged.writer_opened()

    failure = bench.freeze()

    assert isinstance(failure, UsageError)
    assert "open for writing in it: 1 file" in str(failure)
    assert not bench.server.steps
    record = bench.staged.record
    assert (record.state, record.armed, record.reason) == (State.OPEN, True, str(failure))


def test_empty_one_is_frozen_only_by_the_command(bench: FreezeBench) -> None:
    (bench.staged.tree / "file").unlink()

    refused = bench.freeze(by_itself=True)

    assert isinstance(refused, UsageError)
    assert bench.staged.record.reason == str(refused)
    assert bench.staged.record.armed
    assert bench.freeze() is None
    assert bench.server.registered_uuids == {bench.staged.id: 0}


@pytest.mark.expects_log("frozen only by command: data/ is there beside file")
def test_what_a_person_has_to_decide_disarms_it(bench: FreezeBench) -> None:
    bench.write("README.yml", b"{}")
    (bench.staged.tree / "data").mkdir()
    bench.write("data/x", b"x")

    failure = bench.freeze(by_itself=True)

    assert isinstance(failure, UsageError)
    assert not state_on_disk(bench.staged).armed
    assert bench.staged.record.reason == str(failure)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        sqlite3.OperationalError("database or disk is full"),
    ],
)
@pytest.mark.parametrize("is_cause", [False, True])
def test_full_disk_is_told_as_one_and_tried_again(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch, error: Exception, is_cause: bool
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        if is_cause:
            raise RuntimeError("the table cannot be made") from error
        raise error

    monkeypatch.setattr(sealing, "describe", fail)

    failure = bench.freeze()

    assert isinstance(failure, LocalDiskError)
    assert str(bench.staging.directory) in str(failure)
    record = bench.staged.record
    assert (record.state, record.armed, record.reason) == (State.OPEN, True, str(failure))
    assert bench.freezer._schedule._retry_at_s


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "Permission denied"),
        pytest.param(
            sqlite3.OperationalError("database is locked"),
            marks=pytest.mark.expects_log("a fault of ours while freezing"),
        ),
        pytest.param(
            ValueError("the table is full"),
            marks=pytest.mark.expects_log("a fault of ours while freezing"),
        ),
    ],
)
@pytest.mark.expects_log("frozen only by command: not frozen: ")
def test_any_other_failure_of_the_disk_waits_for_a_person(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(sealing, "describe", fail)

    assert bench.freeze() is error
    assert not state_on_disk(bench.staged).armed
    assert bench.staged.record.reason == f"not frozen: {error}"


def test_one_that_the_server_has_already_has_to_be_the_same(bench: FreezeBench) -> None:
    bench.server.registered_uuids[bench.staged.id] = 1
    bench.server.plans["same"] = Conflict("it has another README")

    assert isinstance(bench.freeze(), Conflict)
    assert bench.staged.record.state is State.FAILED
    assert bench.staged.directory.exists()

    bench.server.plans.clear()
    result = bench.freezer.freeze(bench.staged).result(WAIT_S)
    bench.settle()
    assert result.notes == ["the server had it already, with the same content"]
    assert bench.server.taken == set()


def test_mount_that_never_freezes_by_itself_only_tells_the_caller(bench: FreezeBench) -> None:
    """A WARNING of what the waiting caller is told would fail this test."""
    bench.server.plans["announce"] = AWAY

    assert bench.freeze() is AWAY
