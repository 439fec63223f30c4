"""When a staged dataset is frozen by itself, by a clock that the test moves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dserverfs.writing import freeze_schedule
from dserverfs.writing.freeze_schedule import LOOK_AGAIN_S, RETRY_S, Schedule, is_sealed
from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.dataset import PAUSES, StagedDataset
from dserverfs.writing.staging.states import Move, State
from dserverfs.writing.staging.writers import Running

DELAY_S = 30.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(freeze_schedule, "time", clock)
    return clock


@pytest.fixture
def staged(tmp_path: Path, clock: Clock) -> StagedDataset:
    staging = Staging(tmp_path, "server", clock_s=clock.monotonic).open()
    return staging.create("s3://bucket", "data", "alice")


@pytest.fixture
def schedule() -> Schedule:
    return Schedule(DELAY_S)


def in_state(staged: StagedDataset, state: State) -> None:
    ways = {
        State.SEALED: [Move.SEAL],
        State.UPLOADING: [Move.SEAL, Move.UPLOAD],
        State.COMPLETING: [Move.SEAL, Move.UPLOAD, Move.COMPLETE],
        State.FROZEN: [Move.SEAL, Move.UPLOAD, Move.COMPLETE, Move.REGISTER],
        State.FAILED: [Move.SEAL, Move.FAIL],
    }
    for move in ways.get(state, []):
        staged.move(move)


def written_by(staged: StagedDataset, *names: str, unknown: bool = False) -> None:
    running = [Running(9, name, "is running") for name in names]
    staged.written_by = SimpleNamespace(  # type: ignore[assignment]
        running=lambda asked_by: [] if asked_by == 7 else running, unknown=unknown
    )


@pytest.mark.parametrize("state", State)
def test_only_an_open_one_is_armed_and_only_a_sealed_one_goes_on(
    schedule: Schedule, staged: StagedDataset, state: State
) -> None:
    in_state(staged, state)

    assert schedule.is_armed(staged) == (state is State.OPEN)
    assert is_sealed(staged) == (state not in (State.OPEN, State.FAILED))
    due_in_s = schedule.due_in_s(staged)
    assert (due_in_s is None) == (state is State.FAILED)
    assert due_in_s in (None, DELAY_S if state is State.OPEN else 0.0)


def test_what_is_anothers_unarmed_or_manual_is_never_due(
    schedule: Schedule, staged: StagedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert schedule.due_in_s(staged) == DELAY_S

    staged.set_manual(True)
    assert schedule.due_in_s(staged) is None
    assert schedule.waits_for(staged) is None
    staged.set_manual(False)
    assert schedule.due_in_s(staged) == DELAY_S
    assert Schedule(None).due_in_s(staged) is None
    assert Schedule(None).waits_for(staged) is None
    assert not Schedule(None).is_armed(staged)
    in_state(staged, State.SEALED)
    assert Schedule(None).due_in_s(staged) == 0.0
    staged.disown()
    assert schedule.due_in_s(staged) is None
    assert not is_sealed(staged)


def test_sealed_one_of_another_process_is_its_own(
    schedule: Schedule, staged: StagedDataset
) -> None:
    staged.disown()

    assert not schedule.is_armed(staged)
    assert schedule.due_in_s(staged) is None


def test_every_change_puts_it_off(schedule: Schedule, staged: StagedDataset, clock: Clock) -> None:
    clock.now_s += 20
    assert schedule.due_in_s(staged) == DELAY_S - 20
    with staged.changing():
        pass
    assert schedule.due_in_s(staged) == DELAY_S

    clock.now_s += DELAY_S

    assert schedule.due_in_s(staged) == 0.0
    assert schedule.waits_for(staged) is None


@pytest.mark.parametrize(("delay_s", "looked_at_in_s"), [(DELAY_S, DELAY_S), (0.0, LOOK_AGAIN_S)])
def test_what_is_open_for_writing_is_looked_at_later(
    staged: StagedDataset, clock: Clock, delay_s: float, looked_at_in_s: float
) -> None:
    schedule = Schedule(delay_s)
    with staged.changing():
        staged.writer_opened()
    clock.now_s += 2 * DELAY_S

    assert schedule.due_in_s(staged) == looked_at_in_s
    assert schedule.waits_for(staged) == "open for writing in it: 1 file"


def test_one_that_could_not_be_frozen_as_it_is_waits_for_a_change(
    schedule: Schedule, staged: StagedDataset, clock: Clock
) -> None:
    clock.now_s += DELAY_S
    schedule.not_before_it_changes(staged, staged.changes)
    assert schedule.due_in_s(staged) == DELAY_S

    with staged.changing():
        pass
    clock.now_s += DELAY_S

    assert schedule.due_in_s(staged) == 0.0


@pytest.mark.parametrize("state", [State.OPEN, State.SEALED])
def test_each_failure_puts_it_off_for_longer_up_to_a_limit(
    schedule: Schedule, staged: StagedDataset, clock: Clock, state: State
) -> None:
    in_state(staged, state)
    clock.now_s += DELAY_S
    first_s, most_s = RETRY_S
    last_s = first_s / 2
    for _ in range(12):
        pause_s = schedule.put_off(staged)
        assert schedule.due_in_s(staged) == pytest.approx(pause_s)
        longest_s = min(max(2 * last_s, first_s), most_s)
        assert 0.8 * longest_s <= pause_s <= longest_s  # not all mounts at the same moment
        clock.now_s += pause_s
        assert schedule.due_in_s(staged) == pytest.approx(0.0)
        last_s = pause_s

    assert last_s > 0.5 * most_s


def test_one_that_was_put_off_is_no_sooner_due_than_its_changes_allow(
    schedule: Schedule, staged: StagedDataset
) -> None:
    assert schedule.put_off(staged) < DELAY_S
    assert schedule.due_in_s(staged) == DELAY_S


def test_writers_that_run_are_waited_for_and_named_but_not_who_asks(
    schedule: Schedule, staged: StagedDataset, clock: Clock
) -> None:
    clock.now_s += DELAY_S
    written_by(staged, "python3")

    assert not schedule.may_be_complete(staged)
    assert "python3" in str(schedule.waits_for(staged))
    assert schedule.may_be_complete(staged, asked_by=7)
    assert schedule.waits_for(staged, asked_by=7) is None
    written_by(staged)
    assert schedule.may_be_complete(staged)


@pytest.mark.parametrize("delay_s", [DELAY_S, None])
def test_writers_that_are_not_known_have_the_whole_pause(
    staged: StagedDataset, clock: Clock, delay_s: float | None
) -> None:
    schedule = Schedule(delay_s)
    written_by(staged, unknown=True)
    assert schedule.may_be_complete(staged) == (delay_s is None)
    clock.now_s += DELAY_S - 0.5
    assert schedule.may_be_complete(staged) == (delay_s is None)

    clock.now_s += 0.5

    assert schedule.may_be_complete(staged)
    written_by(staged)
    with staged.changing():
        pass
    assert schedule.may_be_complete(staged)  # all are known, and have ended


def test_reason_to_wait_says_how_long_and_why(
    schedule: Schedule, staged: StagedDataset, clock: Clock
) -> None:
    clock.now_s += 10
    said = schedule.waits_for(staged)
    assert said is not None
    assert said.startswith("it is frozen 30 s after its last change, in 20 s;")
    clock.now_s += 19.5
    assert schedule.waits_for(staged) is not None

    with staged.changing():
        staged.writer_opened()
    staged.writer_closed()
    clock.now_s += 100
    with staged.changing():
        pass
    clock.now_s += 1

    said = schedule.waits_for(staged)
    assert said is not None
    assert said.startswith("it is frozen 400 s, 4 times its longest pause so far, after its last")
    assert ", in 399 s;" in said
    assert schedule.due_in_s(staged) == PAUSES * 100 - 1
