"""What a process left on its way is carried on with: by the next mount, or one that runs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dserverfs.base.errors import (
    Cancelled,
    PermissionDenied,
    Unreachable,
)
from dserverfs.writing.freezer import Freezer
from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.dataset import StagedDataset
from tests.support.freezing import (
    BASE_URI,
    WAIT_S,
    FreezeBench,
    freeze_bench,
)
from tests.support.mount_daemons import wait_for

AWAY, NO_RIGHT = Unreachable("the server is away"), PermissionDenied("no register right")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FreezeBench:
    """One that freezes nothing by itself."""
    return freeze_bench(tmp_path / "staging", monkeypatch)


@pytest.mark.parametrize(
    "step",
    [
        *("announce", "send", "complete", "answer", "registered", "learn"),
        pytest.param("adopt", marks=pytest.mark.expects_log("cannot be put away")),
    ],
)
def test_next_mount_carries_on_after_a_kill_at_any_step(bench: FreezeBench, step: str) -> None:
    """What it registered itself others may have changed since: it need not be the same."""
    bench.server.plans[step] = Cancelled("killed")
    bench.freeze()
    bench.server.plans.clear()
    bench.server.steps.clear()

    staged = bench.crash()
    freezer = bench.mount(delay_s=3600.0)
    freezer.resume(staged)
    assert not freezer._others
    freezer.open()
    wait_for(lambda: not staged.directory.exists(), "it is frozen and put away")
    freezer.close()

    assert "same" not in bench.server.names_of_steps()
    assert bench.server.registered_uuids == {staged.id: 1}


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(None, marks=pytest.mark.expects_log("it was open when its mount ended")),
        NO_RIGHT,
    ],
)
def test_open_and_failed_ones_of_the_mount_before_wait_for_a_person_and_belong_to_nobody(
    bench: FreezeBench, error: Exception | None
) -> None:
    if error is not None:
        bench.server.plans["announce"] = error
        bench.freeze()
    staged = bench.crash()

    bench.mount(delay_s=0.0).resume(staged)

    assert not staged.is_owned
    assert not bench.is_watched()
    assert bench.freezer.drain() == []
    if error is None:
        assert not staged.record.armed


def test_one_of_a_mount_that_still_lives_is_taken_over_when_that_has_ended(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dserverfs.writing.freezer.LOOK_AGAIN_S", 0.01)
    bench.server.plans["announce"] = AWAY
    bench.freeze()
    bench.server.plans.clear()
    living = bench.staged
    (staged,) = type(bench.staging)(bench.staging.directory, "server").open().datasets(BASE_URI)
    bench.server.staged = staged
    freezer = bench.mount()
    freezer.resume(staged)
    freezer.open()
    assert not staged.is_owned
    assert not bench.is_watched()

    living.disown()

    wait_for(lambda: not staged.directory.exists(), "it is frozen and put away")
    freezer.close()
    assert len(bench.server.registered_uuids) == 1


def running_mount(bench: FreezeBench, staging: Staging) -> Freezer:
    """Return the freezer of a mount that has looked at what is staged, several times."""
    looks = threading.Semaphore(0)

    def look() -> list[StagedDataset]:
        looks.release()
        return staging.left_behind()

    freezer = bench.mount(delay_s=0.0)
    freezer.open(look)
    for _ in range(3):
        assert looks.acquire(timeout=WAIT_S)
    return freezer


@pytest.mark.parametrize("plan", ["announce", "complete", "registered"])
def test_one_that_another_process_left_on_its_way_is_found_by_a_mount_that_runs(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    """As dtool does whose freeze is killed, while a mount of the same user runs."""
    monkeypatch.setattr("dserverfs.writing.freezer.LOOK_AROUND_S", 0.01)
    ours = Staging(bench.staging.directory, "server").open()
    (seen,) = ours.datasets(BASE_URI)
    bench.server.plans[plan] = Cancelled("killed")
    other = bench.freezer
    bench.freeze()
    bench.server.plans.clear()
    bench.server.staged = seen
    freezer = running_mount(bench, ours)
    assert not seen.is_owned, "its owner lives"
    other.close()
    bench.staged.disown()

    wait_for(lambda: not seen.directory.exists(), "it is frozen and put away")
    freezer.close()
    assert bench.server.registered_uuids == {seen.id: 1}


@pytest.mark.parametrize("error", [None, NO_RIGHT])
def test_open_and_failed_ones_of_others_are_left_alone_by_a_mount_that_runs(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    monkeypatch.setattr("dserverfs.writing.freezer.LOOK_AROUND_S", 0.01)
    if error is not None:
        bench.server.plans["announce"] = error
        bench.freeze()
    bench.staged.disown()
    before = (bench.staged.directory / "state").read_text()
    ours = Staging(bench.staging.directory, "server").open()
    freezer = running_mount(bench, ours)
    freezer.close()

    assert (bench.staged.directory / "state").read_text() == before
    assert bench.staged._owner.acquire(), "a mount owns it"


@pytest.mark.expects_log("cannot be carried on with")
def test_one_whose_state_is_damaged_is_left_as_it_is(bench: FreezeBench) -> None:
    staged = bench.crash()
    (staged.directory / "state").write_text("{")

    bench.mount().resume(staged)

    assert staged.problem is not None
    assert staged.problem.startswith("cannot be carried on with")
    assert not bench.is_watched()
    assert not bench.freezer._others


def test_one_that_was_put_away_meanwhile_is_no_problem(bench: FreezeBench) -> None:
    staged = bench.crash()
    bench.staged.directory.rename(staged.directory.with_name(".gone"))

    bench.mount().resume(staged)

    assert staged.problem is None
    assert not bench.is_watched()
    assert not bench.freezer._others
