"""The freezer and its mount: what happens by itself, and the end."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from dserverfs.base.errors import (
    Cancelled,
    Frozen,
    PermissionDenied,
    Unreachable,
)
from dserverfs.writing import freeze_schedule
from dserverfs.writing.freeze_schedule import LOOK_AGAIN_S
from dserverfs.writing.freezer import JOBS
from dserverfs.writing.staging import sealing
from dserverfs.writing.staging.states import Move, State
from tests.support.freezing import (
    BASE_URI,
    WAIT_S,
    FreezeBench,
    Held,
    freeze_bench,
    refuse_to_note,
    seal,
    state_on_disk,
)
from tests.support.mount_daemons import wait_for

AWAY, NO_RIGHT = Unreachable("the server is away"), PermissionDenied("no register right")
ENDING = Cancelled("the mount is ending")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FreezeBench:
    """One that freezes nothing by itself."""
    return freeze_bench(tmp_path / "staging", monkeypatch)


# The end of a mount


def test_job_that_is_cancelled_by_the_end_leaves_it_staged(bench: FreezeBench) -> None:
    bench.server.plans["send"] = held = Held()
    freezing = bench.freezer.freeze(bench.staged)
    held.wait_until_reached()
    wait_for(lambda: bench.staged.record.state is State.UPLOADING, "it is sealed")
    closing = threading.Thread(target=bench.freezer.close)
    closing.start()
    wait_for(lambda: bench.freezer._closed, "the end has begun")
    held.go_on.set()
    closing.join(WAIT_S)

    assert isinstance(freezing.exception(WAIT_S), Cancelled)
    assert "complete" not in bench.server.names_of_steps()
    assert state_on_disk(bench.staged).state is State.UPLOADING
    assert state_on_disk(bench.staged).reason is None
    with pytest.raises(Cancelled):
        bench.freezer.freeze(bench.staged)


def test_store_that_does_not_answer_does_not_hold_up_the_end(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dserverfs.writing.freezer.CLOSE_GRACE_S", 0.02)
    bench.server.plans["send"] = held = Held()
    bench.freezer.freeze(bench.staged)
    held.wait_until_reached()

    bench.freezer.close()

    assert bench.freezer._working == 1
    held.go_on.set()
    bench.settle()


def test_end_waits_for_what_is_being_put_away(bench: FreezeBench) -> None:
    bench.server.plans["adopt"] = held = Held()
    assert bench.freezer.freeze(bench.staged).result(WAIT_S)
    held.wait_until_reached()
    closing = threading.Thread(target=bench.freezer.close)
    closing.start()
    wait_for(lambda: bench.freezer._closed, "the end has begun")
    held.go_on.set()
    closing.join(WAIT_S)

    assert bench.server.was_told_to_stop
    assert not bench.staged.directory.exists()


def test_end_begins_no_job_that_waits_for_its_turn_and_leaves_no_thread(
    bench: FreezeBench,
) -> None:
    bench.server.plans["announce"] = held = Held()
    bench.freezer.open()
    others = [bench.staging.create(BASE_URI, f"data-{n}", "alice") for n in range(JOBS)]
    jobs = [bench.freezer.freeze(staged) for staged in (bench.staged, *others)]
    for _ in range(JOBS):
        held.wait_until_reached()
    closing = threading.Thread(target=bench.freezer.close)
    closing.start()
    wait_for(lambda: bench.freezer._closed, "the end has begun")
    held.go_on.set()
    closing.join(WAIT_S)

    for job in jobs:  # also those whose turn did not come: somebody may wait for them
        assert isinstance(job.exception(WAIT_S), Cancelled)
    assert all(bench.freezer.progress(staged) is None for staged in others)
    assert not bench.freezer._jobs
    bench.freezer._pool.shutdown(wait=True)
    assert bench.server.names_of_steps().count("announce") == JOBS
    assert bench.freezer._thread is not None
    bench.freezer._thread.join(WAIT_S)
    assert not bench.freezer._thread.is_alive()


def test_end_leaves_no_thread_that_waits_for_a_change(bench: FreezeBench) -> None:
    bench.freezer.open()
    thread = bench.freezer._thread
    assert thread is not None

    bench.freezer.close()

    thread.join(WAIT_S)
    assert not thread.is_alive()


# By itself


def test_armed_one_is_frozen_by_itself_once_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = freeze_bench(tmp_path / "staging", monkeypatch, delay_s=0.01)
    bench.freezer.open()
    bench.freezer.watch(bench.staged)

    wait_for(lambda: not bench.staged.directory.exists(), "it is frozen and put away")
    bench.freezer.close()
    assert len(bench.server.registered_uuids) == 1


@pytest.mark.expects_log("tried again in 0 s: the server is away")
def test_postponed_one_is_tried_again_by_itself_until_it_is_frozen(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze_schedule, "RETRY_S", (0.01, 0.01))
    bench.server.plans["announce"] = AWAY
    bench.freezer.freeze(bench.staged).exception(WAIT_S)
    bench.settle()
    bench.freezer.open()
    wait_for(lambda: bench.server.names_of_steps().count("announce") > 3, "it is tried")
    bench.server.plans.clear()

    wait_for(lambda: not bench.staged.directory.exists(), "it is frozen and put away")
    bench.freezer.close()
    assert len(bench.server.registered_uuids) == 1


@pytest.mark.expects_log("tried again in 0 s", "could not be frozen: no register right")
def test_sealed_one_goes_on_whoever_may_have_written_and_its_failure_is_logged(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze_schedule, "RETRY_S", (0.01, 0.01))
    bench.server.plans["announce"] = AWAY
    bench.staged.written_by.unknown = True
    seal(bench.staged)
    bench.freezer.open()
    bench.freezer.watch(bench.staged)
    wait_for(lambda: bench.staged.record.reason == str(AWAY), "it was tried")

    bench.server.plans["announce"] = NO_RIGHT

    wait_for(lambda: bench.staged.record.state is State.FAILED, "it is refused")
    assert bench.due_in_s() is None
    bench.freezer.close()


@pytest.mark.parametrize("way", ["by itself", "drained"])
def test_empty_one_is_not_frozen_until_something_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    bench = freeze_bench(tmp_path / "staging", monkeypatch, delay_s=0.01)
    bench.write()
    (bench.staged.tree / "file").unlink()
    bench.freezer.watch(bench.staged)
    if way == "by itself":
        bench.freezer.open()
        wait_for(lambda: bench.staged.record.reason, "it was tried")
    else:
        wait_for(lambda: bench.due_in_s() == 0 or bench.staged.quiet_s() > 0.02, "it is due")
        ((_, freezing),) = bench.freezer.drain()
        freezing.exception(WAIT_S)
    bench.settle()

    assert bench.server.steps == []
    assert bench.staged.record.armed
    assert bench.due_in_s() == LOOK_AGAIN_S, "nothing changed since"
    if way == "drained":
        bench.freezer.open()
    bench.write("file", b"content")
    wait_for(lambda: not bench.staged.directory.exists(), "it is frozen and put away")
    bench.freezer.close()


@pytest.mark.expects_log("not frozen: .* is full")
def test_full_disk_is_logged_where_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = freeze_bench(tmp_path / "staging", monkeypatch, delay_s=0.01)

    def full(tree: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sealing, "describe", lambda *arguments, **options: full(tmp_path))
    bench.freezer.open()
    bench.freezer.watch(bench.staged)
    wait_for(lambda: bench.staged.record.reason, "it was tried")
    bench.freezer.close()

    assert bench.staged.record.armed


def test_what_is_frozen_or_gone_is_watched_no_more(bench: FreezeBench) -> None:
    for name in ("frozen", "gone"):
        staged = bench.staging.create(BASE_URI, name, "alice")
        bench.freezer.watch(staged)
        if name == "gone":
            staged.discard()
        else:
            staged.frozen_as = SimpleNamespace()  # type: ignore[assignment]

        assert bench.freezer._due_in_s(staged) is None
        assert staged.directory not in bench.freezer._watched


def test_reason_to_wait_is_that_of_the_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = freeze_bench(tmp_path / "staging", monkeypatch, delay_s=3600.0)

    assert "3600 s after its last change" in str(bench.freezer.waits_for(bench.staged))


@pytest.mark.expects_log("its state cannot be kept")
def test_failure_that_cannot_be_noted_is_told_all_the_same(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_note(monkeypatch, Move.FAIL)
    bench.server.plans["announce"] = NO_RIGHT

    assert bench.freeze() is NO_RIGHT
    assert bench.staged.record.state is State.UPLOADING


def test_dataset_whose_freeze_failed_is_anybodys(bench: FreezeBench) -> None:
    bench.server.plans["announce"] = NO_RIGHT

    assert bench.freeze() is NO_RIGHT

    assert bench.staged.record.state is State.FAILED
    assert not bench.staged.is_owned
    del bench.server.plans["announce"]
    assert bench.freeze() is None


def test_what_is_drained_is_sealed_or_armed_and_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = freeze_bench(tmp_path / "staging", monkeypatch, delay_s=3600.0)
    armed = bench.staged
    manual = bench.staging.create(BASE_URI, "manual", "alice")
    manual.set_manual(True)
    unarmed = bench.staging.create(BASE_URI, "unarmed", "alice", unarmed="copied by half")
    unknown = bench.staging.create(BASE_URI, "unknown", "alice")
    unknown.written_by.unknown = True  # by a process that may still write
    sealed = bench.staging.create(BASE_URI, "sealed", "alice")
    seal(sealed)
    for staged in (armed, manual, unarmed, unknown, sealed):
        bench.freezer.watch(staged)
    bench.server.plans["announce"] = ENDING

    due = bench.freezer.drain()

    assert {staged.record.name for staged, _ in due} == {"data", "sealed"}
    for _, freezing in due:
        freezing.exception(WAIT_S)
    bench.settle()


# Discarding


def test_discarded_one_is_gone_and_not_frozen(bench: FreezeBench) -> None:
    bench.freezer.watch(bench.staged)

    bench.freezer.discard(bench.staged)

    assert not bench.staged.directory.exists()
    assert not bench.is_watched()


def test_discarding_ends_its_job_which_registers_nothing(bench: FreezeBench) -> None:
    bench.server.plans["send"] = lambda: bench.freezer.discard(bench.staged)

    failure = bench.freeze()

    assert failure is not None
    assert bench.server.registered_uuids == {}
    assert not bench.staged.directory.exists()


def test_discarding_ends_an_upload_that_goes_on(bench: FreezeBench) -> None:
    stopped = []

    def discarded() -> None:
        job = bench.freezer._jobs[bench.staged.directory]
        bench.freezer.discard(bench.staged)
        stopped.append(job.stop.is_set())

    bench.server.plans["send"] = discarded

    bench.freeze()

    assert stopped == [True]


def test_one_that_may_be_registered_is_not_discarded(bench: FreezeBench) -> None:
    bench.server.plans["answer"] = AWAY
    bench.freeze()

    with pytest.raises(Frozen):
        bench.freezer.discard(bench.staged)

    assert (bench.staged.tree / "file").exists()
    assert bench.is_watched()


# What the server can take


def test_limit_is_asked_for_until_it_is_known(bench: FreezeBench) -> None:
    bench.server.plans["limit"] = AWAY
    bench.freezer.learn_limit()
    assert bench.freezer.max_item_bytes is None

    bench.server.plans.clear()
    for _ in range(2):
        bench.freezer.learn_limit()

    assert bench.freezer.max_item_bytes == 5000
    assert bench.server.names_of_steps() == ["limit", "limit"]
