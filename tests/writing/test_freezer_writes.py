"""The freezer and those who write meanwhile: at any moment it is one or the other, and told so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.errors import Cancelled, Frozen, ItemChanged, PermissionDenied, Unreachable
from dserverfs.writing.staging.states import Move, State
from tests.support.freezing import FreezeBench, freeze_bench, state_on_disk
from tests.support.mount_daemons import wait_for

AWAY, NO_RIGHT = Unreachable("the server is away"), PermissionDenied("no register right")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FreezeBench:
    """One that freezes nothing by itself."""
    return freeze_bench(tmp_path / "staging", monkeypatch)


def test_one_that_is_written_to_while_it_is_sent_stays_open_and_armed(bench: FreezeBench) -> None:
    bench.server.plans["send"] = lambda: bench.write()

    failure = bench.freeze()

    assert isinstance(failure, (Cancelled, ItemChanged))
    assert state_on_disk(bench.staged) == bench.staged.record
    assert (bench.staged.record.state, bench.staged.record.armed) == (State.OPEN, True)
    assert bench.staged.record.reason is None
    assert "complete" not in bench.server.names_of_steps()
    assert (bench.staged.tree / "file").read_bytes() == b"other"
    bench.server.plans.clear()
    assert bench.freeze() is None


@pytest.mark.parametrize("move", [Move.UPLOAD, Move.COMPLETE], ids=lambda move: move.value)
@pytest.mark.parametrize("was_sealed", [False, True], ids=["open", "sealed before"])
def test_write_just_before_a_move_is_told_as_a_write(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch, move: Move, was_sealed: bool
) -> None:
    if was_sealed:
        bench.server.plans["announce"] = AWAY
        bench.freeze()
        bench.server.plans.clear()
        assert bench.staged.record.state is State.SEALED
    staged, moved = bench.staged, bench.staged.move
    is_planned = True

    def written_first(to: Move, **options: Any) -> None:
        nonlocal is_planned
        if to is move and is_planned:
            is_planned = False
            bench.write()
        moved(to, **options)

    monkeypatch.setattr(staged, "move", written_first)

    failure = bench.freeze()

    assert isinstance(failure, Cancelled)
    assert "was written to" in str(failure)
    assert (staged.record.state, staged.record.armed) == (State.OPEN, True)
    assert (staged.tree / "file").read_bytes() == b"other"
    assert bench.freeze() is None


@pytest.mark.parametrize(
    ("move", "error"), [(Move.POSTPONE, AWAY), (Move.FAIL, NO_RIGHT)], ids=["away", "refused"]
)
def test_write_just_before_a_failure_is_noted_reopens_it(
    bench: FreezeBench,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    move: Move,
    error: Exception,
) -> None:
    staged, moved = bench.staged, bench.staged.move

    def written_first(to: Move, **options: Any) -> None:
        if to is move:
            bench.write()
        moved(to, **options)

    def refused() -> None:
        wait_for(lambda: bench.staged.record.state is State.UPLOADING, "it is sealed")
        raise error

    monkeypatch.setattr(staged, "move", written_first)
    bench.server.plans["send"] = refused

    assert bench.freeze() is error
    assert (staged.record.state, staged.record.armed) == (State.OPEN, True)
    assert not [each for each in caplog.records if each.levelname == "ERROR"]
    bench.server.plans.clear()
    assert bench.freeze() is None


@pytest.mark.parametrize("error", [AWAY, NO_RIGHT], ids=lambda error: type(error).__name__)
def test_write_counts_more_than_what_it_makes_of_the_upload(
    bench: FreezeBench, error: Exception
) -> None:
    """The upload of what was changed fails with whatever it was at."""

    def written_and_refused() -> None:
        wait_for(lambda: bench.staged.record.state is State.UPLOADING, "it is sealed")
        bench.write()
        raise error

    bench.server.plans["send"] = written_and_refused

    assert bench.freeze() is error
    assert (bench.staged.record.state, bench.staged.record.armed) == (State.OPEN, True)
    assert bench.staged.record.reason is None


def test_write_after_the_server_was_asked_is_refused(bench: FreezeBench) -> None:
    refused: list[BaseException] = []

    def write() -> None:
        try:
            bench.write()
        except Frozen as error:
            refused.append(error)

    bench.server.plans["complete"] = write

    assert bench.freeze() is None
    assert len(refused) == 1
