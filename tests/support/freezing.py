"""Freezing without a server: a staging area, and what stands in for uploads and registrations."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import UUID, Dataset
from dserverfs.base.progress import Progress
from dserverfs.writing.freezer import Freezer
from dserverfs.writing.staging import sealing
from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.staging.states import Move, Record, State
from tests.support.patience import LATE_S

BASE_URI = "s3://bucket"
WAIT_S = LATE_S


def state_on_disk(staged: StagedDataset) -> Record:
    """Return what the next mount would read of it."""
    return Record.from_json((staged.directory / "state").read_bytes())


class FakeServer:
    """Takes uploads in the steps in which the real ones are made, and registers.

    At each step: what was planned for it is done, or raised; the step is noted with the state
    that is on the disk then.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[str, State]] = []
        self.plans: dict[str, Callable[[], None] | BaseException] = {}
        self.registered_uuids: dict[str, int] = {}  # with the number of its items
        self.taken: set[object] = set()  # by the last upload
        self.surprise: str | None = None
        self.limit: int | None = 5000
        self.name: str | None = None  # that it was registered with
        self.staged: StagedDataset | None = None
        self.was_told_to_stop = False

    def names_of_steps(self) -> list[str]:
        return [name for name, _ in self.steps]

    def _step(self, name: str) -> None:
        assert self.staged is not None
        self.steps.append((name, state_on_disk(self.staged).state))
        plan = self.plans.get(name)
        if isinstance(plan, BaseException):
            raise plan
        if plan is not None:
            plan()

    # As an Uploader

    def upload(
        self,
        dataset: LocalDataset,
        base_uri: str,
        *,
        on_progress: Callable[[Progress], None],
        stop: threading.Event,
        before_complete: Callable[[], None],
        on_taken: Callable[[Any], None],
        on_registered: Callable[[], None],
    ) -> str:
        assert base_uri == BASE_URI
        uuid = dataset.admin_metadata["uuid"]
        self._step("announce")
        if uuid in self.registered_uuids:
            on_registered()
            before_complete()
            return f"{base_uri}/{uuid}"
        for item in dataset.items.values():
            on_taken(item)
        self._step("send")
        on_progress(Progress(len(dataset.items), len(dataset.items), 1, 1))
        before_complete()
        self._step("complete")
        self.registered_uuids[uuid] = len(dataset.items)
        self._step("answer")
        return f"{base_uri}/{uuid}"

    def max_item_bytes(self) -> int | None:
        self._step("limit")
        return self.limit

    # As a Registry

    def registered(
        self, local: LocalDataset, base_uri: str, taken: Container[object], stop: threading.Event
    ) -> Dataset:
        self._step("registered")
        admin: Mapping[str, Any] = local.admin_metadata
        uuid = admin["uuid"]
        assert self.registered_uuids[uuid] == len(local.items)
        self.taken = {item.relpath for item in local.items.values() if item.identifier in taken}
        return Dataset.from_json(
            {"uri": f"{base_uri}/{uuid}", "base_uri": base_uri, "uuid": uuid}
            | {"name": self.name or admin["name"], "creator_username": "alice"}
            | {"created_at": 1.0, "frozen_at": 1.0}
        )

    def require_same(self, local: LocalDataset, base_uri: str) -> None:
        self._step("same")

    def learn(self, dataset: Dataset, as_staged: UUID) -> str | None:
        self._step("learn")
        return self.surprise

    def adopt(self, dataset: Dataset, local: LocalDataset, stop: threading.Event) -> None:
        self._step("adopt")
        self.was_told_to_stop = stop.is_set()


class Held:
    """A plan for a step: once it is reached, it waits until it may go on."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self) -> None:
        self.reached.release()
        assert self.go_on.wait(WAIT_S)

    def wait_until_reached(self) -> None:
        assert self.reached.acquire(timeout=WAIT_S)


def refuse_to_note(monkeypatch: pytest.MonkeyPatch, refused: Move) -> None:
    """Have the disk fail when this move is noted."""
    move = StagedDataset.move

    def fail(staged: StagedDataset, to: Move, **options: str) -> None:
        if to is refused:
            raise OSError(errno.EIO, "Input/output error")
        move(staged, to, **options)

    monkeypatch.setattr(StagedDataset, "move", fail)


class FreezeBench:
    """A staging area with one dataset in it, and mounts that freeze it, one after the other."""

    def __init__(self, directory: Path, delay_s: float | None = None) -> None:
        self.server = FakeServer()
        self.staging = Staging(directory, "server").open()
        self.staged = self.staging.create(BASE_URI, "data", "alice")
        (self.staged.tree / "file").write_bytes(b"content")
        self.server.staged = self.staged
        self.freezer = self.mount(delay_s)

    def mount(self, delay_s: float | None = None) -> Freezer:
        self.freezer = Freezer(self.server, self.server, delay_s=delay_s)  # type: ignore[arg-type]
        return self.freezer

    def crash(self) -> StagedDataset:
        """Leave it as a daemon that was killed does; return it as the next mount finds it."""
        self.freezer.close()
        self.staged.disown()
        (self.staged,) = Staging(self.staging.directory, "server").open().datasets(BASE_URI)
        self.server.staged = self.staged
        return self.staged

    def freeze(self, **options: Any) -> BaseException | None:
        """Freeze it, and wait for the job to be over; return its failure."""
        failure = self.freezer.freeze(self.staged, **options).exception(WAIT_S)
        self.settle()
        return failure

    def settle(self) -> None:
        """Wait until no job is at work, nor what follows one."""
        with self.freezer._condition:
            assert self.freezer._condition.wait_for(lambda: not self.freezer._working, WAIT_S)

    def due_in_s(self) -> float | None:
        return self.freezer._schedule.due_in_s(self.staged)

    def is_watched(self) -> bool:
        return self.staged.directory in self.freezer._watched

    def write(self, name: str = "file", content: bytes = b"other") -> None:
        with self.staged.changing():
            (self.staged.tree / name).write_bytes(content)


def freeze_bench(
    directory: Path, monkeypatch: pytest.MonkeyPatch, delay_s: float | None = None
) -> FreezeBench:
    """Return one on a disk that has everything at once."""
    monkeypatch.setattr(sealing, "sync_file_system", lambda tree: None)
    return FreezeBench(directory, delay_s)


def seal(staged: StagedDataset) -> None:
    described = sealing.describe(staged, None, threading.Event())
    assert described is not None
    described.keep()
