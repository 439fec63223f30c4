"""The freezer's own thread: what it looks at, and that nothing hides what is due behind it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.dataset import StagedDataset
from tests.support.freezing import BASE_URI, FreezeBench, freeze_bench, seal
from tests.support.mount_daemons import wait_for


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FreezeBench:
    """One that freezes what nobody changed for an hour."""
    monkeypatch.setattr("dserverfs.writing.freezer.LOOK_AGAIN_S", 0.01)
    return freeze_bench(tmp_path / "staging", monkeypatch, delay_s=3600.0)


def set_due(bench: FreezeBench, monkeypatch: pytest.MonkeyPatch, **due_in_s: float | None) -> None:
    """Have datasets due by their names."""
    monkeypatch.setattr(
        bench.freezer._schedule, "due_in_s", lambda staged: due_in_s[staged.record.name]
    )


def wait_until_frozen(bench: FreezeBench, staged: StagedDataset) -> None:
    wait_for(lambda: not staged.directory.exists(), "it is frozen and put away")
    bench.freezer.close()


@pytest.mark.parametrize("other_s", [None, 3600.0])
def test_what_is_not_due_hides_nothing_that_is(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch, other_s: float | None
) -> None:
    other = bench.staging.create(BASE_URI, "other", "alice")
    set_due(bench, monkeypatch, other=other_s, data=0.0)
    for staged in (other, bench.staged):
        bench.freezer.watch(staged)

    bench.freezer.open()

    wait_until_frozen(bench, bench.staged)
    assert other.directory.exists()


@pytest.mark.parametrize("order", [["data", "other"], ["other", "data"]])
def test_thread_waits_for_the_first_that_will_be_due(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch, order: list[str]
) -> None:
    waited: list[float | None] = []
    set_due(bench, monkeypatch, data=0.9, other=3600.0)
    other = bench.staging.create(BASE_URI, "other", "alice")
    by_name = {"data": bench.staged, "other": other}
    wait = bench.freezer._condition.wait

    def noted(timeout_s: float | None) -> bool:
        waited.append(timeout_s)
        return wait(0.01)

    monkeypatch.setattr(bench.freezer._condition, "wait", noted)
    for name in order:
        bench.freezer.watch(by_name[name])

    bench.freezer.open()

    wait_for(lambda: len(waited) > 1, "it waits")
    assert waited[:2] == [0.9, 0.9]
    assert bench.server.steps == [], "nothing is frozen before its time"
    set_due(bench, monkeypatch, data=0.0, other=3600.0)
    wait_until_frozen(bench, bench.staged)


def test_sealed_one_goes_on_though_nobody_knows_who_may_still_write(bench: FreezeBench) -> None:
    bench.staged.written_by.unknown = True
    seal(bench.staged)
    bench.freezer.watch(bench.staged)

    bench.freezer.open()

    wait_until_frozen(bench, bench.staged)
    assert len(bench.server.registered_uuids) == 1


def test_shells_that_wrote_are_looked_at_again_and_again(bench: FreezeBench) -> None:
    looks: list[int] = []

    def running(**asked: int) -> list[object]:
        looks.append(1)
        return []

    bench.staged.written_by = SimpleNamespace(  # type: ignore[assignment]
        has_shell=True, unknown=False, running=running
    )
    bench.freezer.watch(bench.staged)

    bench.freezer.open()

    wait_for(lambda: len(looks) > 2, "it is looked at")
    bench.freezer.close()
    assert bench.server.steps == []


@pytest.mark.parametrize("is_waiting", [False, True])
def test_one_that_another_process_owned_is_taken_over_once(
    bench: FreezeBench, is_waiting: bool
) -> None:
    seal(bench.staged)
    living = bench.staged
    (staged,) = Staging(bench.staging.directory, "server").open().datasets(BASE_URI)
    bench.server.staged = staged
    if is_waiting:
        bench.freezer.open()
        waiters = bench.freezer._condition._waiters  # type: ignore[attr-defined]
        wait_for(lambda: len(waiters) == 1, "the thread waits")
    bench.freezer.resume(staged)
    assert list(bench.freezer._others) == [staged.directory]
    if not is_waiting:
        bench.freezer.open()

    living.disown()

    wait_until_frozen(bench, staged)
    assert bench.freezer._others == {}
