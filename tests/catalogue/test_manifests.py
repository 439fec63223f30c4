"""Manifests are fetched and indexed once, and go on being so when nobody waits any more."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from dserverfs.base.directories import private_directory
from dserverfs.base.errors import (
    Cancelled,
    LocalDiskError,
    NotAuthenticated,
    NotFound,
    PermissionDenied,
    ProtocolError,
    Unreachable,
)
from dserverfs.base.model import BackendURI, Dataset
from dserverfs.base.sealed_files import Sealing, write_seal_beside
from dserverfs.catalogue.manifests import ManifestLoad, Manifests
from dserverfs.catalogue.offline import KeptAnswers
from dserverfs.catalogue.refreshed import NotLoaded, loaded
from dserverfs.mount import waiting
from dserverfs.remote.api import Resolver
from tests.support.broken_disks import DISK_ERRNOS, WAYS, own_disk, read_only
from tests.support.few_threads import no_more_threads
from tests.support.mount_daemons import wait_for
from tests.support.patience import LATE_S
from tests.support.quirky_server import CONTENTS, QuirkyServer, says

pytest_plugins = ["tests.support.resolver_fixtures"]


@pytest.fixture
def gone() -> list[Dataset]:
    return []


@pytest.fixture
def manifests(resolver: Resolver, tmp_path: Path, gone: list[Dataset]) -> Iterator[Manifests]:
    answers = KeptAnswers(resolver, tmp_path)

    def explain(dataset: Dataset, error: NotFound) -> NotFound:
        gone.append(dataset)
        return error

    manifests = Manifests(answers, "server", tmp_path / "kept", explain=explain)
    yield manifests
    manifests.close()


class Halt:
    """Holds an answer back until it is let go."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self._go = threading.Event()

    def __call__(self, handler: Any) -> None:
        self.arrived.set()
        assert self._go.wait(LATE_S)
        handler._route(handler.path)

    def release(self) -> None:
        self._go.set()


def begun(ask: Callable[[], object]) -> ManifestLoad:
    with pytest.raises(NotLoaded) as missing:
        ask()
    assert missing.value.begin is not None
    load = missing.value.begin()
    assert isinstance(load, ManifestLoad)
    return load


def begun_and_halted(
    quirky: QuirkyServer, manifests: Manifests, dataset: Dataset
) -> tuple[ManifestLoad, Halt]:
    """Return the load of a manifest whose first request waits for its answer."""
    halt = Halt()
    quirky.faults = [halt]
    load = begun(lambda: manifests.index(dataset))
    assert halt.arrived.wait(LATE_S)
    return load, halt


def test_index_and_file_are_asked_for_once_whoever_waits(
    quirky: QuirkyServer, manifests: Manifests, dataset: Dataset
) -> None:
    load, halt = begun_and_halted(quirky, manifests, dataset)
    again = [begun(lambda: manifests.index(dataset)), begun(lambda: manifests.file(dataset))]
    halt.release()
    load.future.result(LATE_S)

    assert again == [load, load]
    assert manifests.index(dataset).number_of_items == len(CONTENTS)
    assert isinstance(manifests.file(dataset), Path)
    assert quirky.asked("/manifests/") == 1


def test_index_is_made_of_the_file_that_is_there(
    quirky: QuirkyServer, manifests: Manifests, dataset: Dataset
) -> None:
    loaded(lambda: manifests.file(dataset))

    index = loaded(lambda: manifests.index(dataset))

    assert index.number_of_items == len(CONTENTS)
    assert quirky.asked("/manifests/") == 1


def test_load_without_a_thread_fails_and_holds_up_none_that_comes_later(
    manifests: Manifests, dataset: Dataset
) -> None:
    """A lock that it kept would hold up all of a mount."""
    with no_more_threads():
        under_way = begun(lambda: manifests.index(dataset))
        assert isinstance(under_way.future.exception(LATE_S), Unreachable)

    loaded(lambda: manifests.index(dataset))


def test_failed_load_is_told_to_all_who_wait_and_begun_anew_by_the_next(
    quirky: QuirkyServer, manifests: Manifests, dataset: Dataset, tmp_path: Path
) -> None:
    quirky.faults = [says(404), says(404)]

    load = begun(lambda: manifests.index(dataset))
    with pytest.raises(NotFound):
        load.future.result(LATE_S)

    assert not list((tmp_path / "kept").iterdir())
    assert loaded(lambda: manifests.index(dataset)).number_of_items == len(CONTENTS)


def test_dataset_without_a_manifest_is_told_to_be_gone(
    quirky: QuirkyServer, manifests: Manifests, dataset: Dataset, gone: list[Dataset]
) -> None:
    quirky.faults = [says(404), says(404)]

    with pytest.raises(NotFound):
        loaded(lambda: manifests.index(dataset))

    assert gone == [dataset]


def test_directory_that_vanished_is_made_anew(
    manifests: Manifests, dataset: Dataset, tmp_path: Path
) -> None:
    loaded(lambda: manifests.file(dataset))
    shutil.rmtree(tmp_path / "kept")

    assert loaded(lambda: manifests.index(dataset)).number_of_items == len(CONTENTS)
    assert isinstance(loaded(lambda: manifests.file(dataset)), Path)


@pytest.mark.expects_log("cannot be written, keeping nothing new")
@pytest.mark.parametrize("ask", ["index", "file"])
@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, os.strerror(number)) for number in DISK_ERRNOS),
        sqlite3.OperationalError("unable to open database file"),
        sqlite3.DatabaseError("database disk image is malformed"),
    ],
    ids=str,
)
def test_what_the_disk_says_of_our_files_is_nothing_about_the_dataset(
    manifests: Manifests,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    ask: str,
    error: OSError,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", fail)
    monkeypatch.setattr("dserverfs.base.durable_files.written_beside", fail)
    monkeypatch.setattr(sqlite3, "connect", fail)

    monkeypatch.setattr("dserverfs.catalogue.manifest_shelter.MAX_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("tempfile.mkdtemp", fail)

    with pytest.raises(LocalDiskError):
        loaded(lambda: getattr(manifests, ask)(dataset))


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize("wrong", [{"items": []}, {"msg": "not now"}])
def test_answer_that_is_no_manifest_is_dropped(
    quirky: QuirkyServer, manifests: Manifests, dataset: Dataset, tmp_path: Path, wrong: object
) -> None:
    quirky.faults = [says(200, wrong)] * 2
    with pytest.raises(ProtocolError):
        loaded(lambda: manifests.index(dataset))
    assert not list((tmp_path / "kept").iterdir())

    quirky.faults = [says(200, wrong)]
    index = loaded(lambda: manifests.index(dataset))

    assert index.number_of_items == len(CONTENTS)
    assert quirky.asked("/manifests/") == 4


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize("wrong", [[], "text"])
def test_answer_that_cannot_be_a_manifest_is_asked_for_again(
    quirky: QuirkyServer, manifests: Manifests, dataset: Dataset, wrong: object
) -> None:
    quirky.faults = [says(200, wrong)] * 2

    index = loaded(lambda: manifests.index(dataset))

    assert index.number_of_items == len(CONTENTS)
    assert quirky.asked("/manifests/") == 3


def test_kept_manifest_that_is_none_is_fetched_anew(
    quirky: QuirkyServer, manifests: Manifests, dataset: Dataset
) -> None:
    kept = loaded(lambda: manifests.file(dataset))
    assert isinstance(kept, Path)
    kept.write_bytes(b"{}")

    index = loaded(lambda: manifests.index(dataset))

    assert index.number_of_items == len(CONTENTS)


def test_manifest_whose_file_was_written_to_is_fetched_anew(
    quirky: QuirkyServer, manifests: Manifests, dataset: Dataset
) -> None:
    sent = content_of_file(manifests, dataset)
    path = manifests.file(dataset)
    assert isinstance(path, Path)

    path.write_bytes(b"of something else")

    assert content_of_file(manifests, dataset) == sent


def test_manifest_that_another_process_replaced_is_shown_as_it_is(
    quirky: QuirkyServer, manifests: Manifests, dataset: Dataset
) -> None:
    content_of_file(manifests, dataset)
    path = manifests.file(dataset)
    assert isinstance(path, Path)
    new = path.with_name("new")
    new.write_bytes(path.read_bytes() + b"\n")
    sealing = Sealing(path)
    sealing.add(new.read_bytes())

    new.replace(path)
    write_seal_beside(path, sealing)

    assert content_of_file(manifests, dataset)
    assert manifests.file(dataset) == path
    assert path.read_bytes().endswith(b"\n")
    assert quirky.asked("/manifests/") == 1


@pytest.mark.usefixtures("no_waits")
def test_download_that_always_breaks_off_leaves_nothing(
    quirky: QuirkyServer, manifests: Manifests, dataset: Dataset, tmp_path: Path
) -> None:
    def cut(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"items": {}}')
        handler.close_connection = True

    quirky.faults = [cut] * 10

    with pytest.raises(Unreachable):
        loaded(lambda: manifests.index(dataset))

    assert not list((tmp_path / "kept").iterdir())


def test_closing_is_told_to_who_waits_for_a_load_whose_turn_did_not_come(
    quirky: QuirkyServer, manifests: Manifests, dataset: Dataset
) -> None:
    manifests._threads._max_workers = 1
    first, halt = begun_and_halted(quirky, manifests, dataset)
    other = replace(dataset, uri=BackendURI(f"{dataset.uri}-another"))
    second = begun(lambda: manifests.index(other))

    manifests.close()

    with pytest.raises(Cancelled):
        second.future.result(LATE_S)
    halt.release()
    assert first.future.exception(LATE_S) is not None


def test_closing_ends_a_load_and_begins_no_other(
    quirky: QuirkyServer, manifests: Manifests, dataset: Dataset
) -> None:
    load, halt = begun_and_halted(quirky, manifests, dataset)

    manifests.close()
    halt.release()

    with pytest.raises(Cancelled):
        load.future.result(LATE_S)
    with pytest.raises(Cancelled):
        loaded(lambda: manifests.index(dataset))


def test_what_a_killed_process_left_of_a_manifest_is_deleted_when_it_is_a_day_old(
    manifests: Manifests, dataset: Dataset, tmp_path: Path
) -> None:
    old, new = tmp_path / "kept/one.json.1-1.new", tmp_path / "kept/other.json.1-1.new"
    private_directory(tmp_path / "kept")
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))

    loaded(lambda: manifests.index(dataset))

    wait_for(lambda: not old.exists(), "that the old file is deleted")
    assert new.exists()


# A disk that takes nothing


def content_of_file(manifests: Manifests, dataset: Dataset) -> Any:
    kept = loaded(lambda: manifests.file(dataset))
    return json.loads(kept if isinstance(kept, bytes) else kept.read_bytes())


@pytest.mark.expects_log("cannot be written, keeping nothing new")
def test_large_manifest_leaves_the_disk_what_the_cache_leaves_it(
    quirky: QuirkyServer,
    dataset: Dataset,
    manifests: Manifests,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dserverfs.catalogue.manifests.BYTES_BETWEEN_LOOKS", 1)
    monkeypatch.setattr("dserverfs.catalogue.manifests.lacking_in_bytes", lambda directory: 1)

    index = loaded(lambda: manifests.index(dataset))

    assert index.number_of_items == len(CONTENTS)
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.expects_log("cannot be written, keeping nothing new")
@pytest.mark.parametrize("is_small", [True, False], ids=["in memory", "by another process"])
@pytest.mark.parametrize("way", ["full", "no_inodes", "read_only", "a_file"])
def test_manifest_that_the_disk_does_not_take_is_elsewhere(
    resolver: Resolver,
    dataset: Dataset,
    tmp_path: Path,
    way: str,
    is_small: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("dserverfs.base.disk_troubles.time.monotonic", lambda: clock[0])
    if not is_small:
        monkeypatch.setattr("dserverfs.catalogue.manifest_shelter.MAX_IN_MEMORY_BYTES", 0)
        monkeypatch.setattr("dserverfs.catalogue.manifest_indexing.IN_PROCESS_BYTES", 0)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with own_disk(tmp_path / "disk") as directory:
        private_directory(directory)
        manifests = Manifests(
            KeptAnswers(resolver, directory),
            "server",
            directory,
            explain=lambda dataset, error: error,
        )
        with WAYS[way](directory):
            index = loaded(lambda: manifests.index(dataset))
            assert index.number_of_items == len(CONTENTS)
            assert index.child(0, "hello.txt").size_in_bytes == len(CONTENTS["hello.txt"])
            assert len(content_of_file(manifests, dataset)["items"]) == len(CONTENTS)
            assert caplog.text.count("cannot be written") == 1
            assert not list(temporary.iterdir()), "nothing is left behind, even by a kill"
        manifests.close()


def test_what_the_server_took_back_is_not_told_though_the_disk_keeps_it(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset, tmp_path: Path
) -> None:
    with own_disk(tmp_path / "disk") as directory:
        answers = KeptAnswers(resolver, directory)
        answers.datasets(dataset.base_uri)
        with read_only(directory):
            quirky.faults = [says(403)]
            with pytest.raises(PermissionDenied):
                answers.datasets(dataset.base_uri)
            quirky.faults = [says(401)]
            with pytest.raises(NotAuthenticated):
                answers.datasets(dataset.base_uri)


class SlowLoad:
    """Never ends; gets on for some time."""

    def __init__(self, gets_on_s: float) -> None:
        self.future: Future[None] = Future()
        self._gets_on_s = gets_on_s

    def progress(self) -> float:
        return min(trio.current_time(), self._gets_on_s)


async def _waited_s(load: SlowLoad) -> float:
    def ask() -> None:
        raise NotLoaded(begin=lambda: load)

    begun_s = trio.current_time()
    with pytest.raises(NotLoaded) as missing:
        ask()
    with pytest.raises(trio.TooSlowError):
        await waiting.loaded(ask, missing.value, trio.CapacityLimiter(1))
    return trio.current_time() - begun_s


@pytest.mark.parametrize(
    ("gets_on_s", "expected_s"),
    [
        (0.0, waiting.METADATA_TIMEOUT_S),
        (45.0, 3 * waiting.METADATA_TIMEOUT_S),
        (1e9, waiting.LOAD_TIMEOUT_S),
    ],
)
def test_waiting_for_a_load_ends_when_it_stalls_or_takes_too_long(
    gets_on_s: float, expected_s: float
) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)

    async def main() -> float:
        return await _waited_s(SlowLoad(trio.current_time() + gets_on_s))

    assert trio.run(main, clock=clock) == pytest.approx(expected_s)


def test_what_is_on_the_disk_waits_for_no_server(
    quirky: QuirkyServer,
    resolver: Resolver,
    tmp_path: Path,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dserverfs.catalogue.manifests.LOADS_AT_ONCE", 1)

    def manifests_of_one_directory() -> Manifests:
        answers = KeptAnswers(resolver, tmp_path)
        return Manifests(answers, "server", tmp_path / "kept", explain=lambda _, error: error)

    with contextlib.closing(manifests_of_one_directory()) as before:
        loaded(lambda: before.index(dataset))
    halt = Halt()
    quirky.faults = [halt]
    others = [dataclasses.replace(dataset, uri=BackendURI(f"{dataset.uri}{n}")) for n in "12"]
    with contextlib.closing(manifests_of_one_directory()) as after:
        loads = [begun(partial(after.index, other)) for other in others]
        assert halt.arrived.wait(LATE_S)

        begun(lambda: after.index(dataset)).future.result(LATE_S)

        assert after.index(dataset).number_of_items == len(CONTENTS)
        assert not any(load.future.done() for load in loads)
        halt.release()
        for load in loads:
            load.future.exception(LATE_S)
