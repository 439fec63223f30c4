"""What is kept of a sealed dataset, and what one that was frozen elsewhere has to be."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.errors import (
    Cancelled,
    DserverfsError,
    IntegrityError,
    ItemChanged,
    ProtocolError,
    UsageError,
)
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.writing.staging import sealing
from dserverfs.writing.staging.states import State
from dserverfs.writing.staging.survey import Layout
from tests.support.dtool_datasets import make_dataset
from tests.support.freezing import WAIT_S, FreezeBench, freeze_bench, seal, state_on_disk

CONTENTS = {"a": b"first", "sub/b": b"second", "ü": b""}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FreezeBench:
    """One that freezes nothing by itself."""
    return freeze_bench(tmp_path / "staging", monkeypatch)


@pytest.fixture
def elsewhere(bench: FreezeBench, tmp_path: Path) -> Path:
    """A dataset that dtool froze, copied into the staging area as cp does it."""
    made = make_dataset(tmp_path, "elsewhere", CONTENTS)
    shutil.rmtree(bench.staged.tree)
    return Path(shutil.copytree(made, bench.staged.tree))


def shown(dataset: LocalDataset) -> dict[str, Any]:
    return {
        "admin": dataset.admin_metadata,
        "readme": dataset.readme,
        "items": [(*entry,) for entry in dataset.items.dated()],
        "paths": [dataset.path_of(item) for item in dataset.items.values()],
        "tags": dataset.tags,
        "annotations": dataset.annotations,
        "overlays": dataset.overlays,
    }


def described(bench: FreezeBench, layout: Layout | None = None) -> sealing.Described:
    described = sealing.describe(bench.staged, layout, threading.Event())
    assert described is not None
    return described


# What is sealed


def test_items_are_read_again_as_they_were_sealed(bench: FreezeBench) -> None:
    for relpath, content in CONTENTS.items():
        path = bench.staged.tree / relpath
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=(5, 1_700_000_000_123_456_789))
    (bench.staged.tree / "README.yml").write_bytes(b"a: 1\n")
    sealed = described(bench)
    sealed.keep()

    assert shown(sealing.load(bench.staged)) == shown(sealed.dataset)
    assert {item.relpath for item in sealed.dataset.items.values()} == {*CONTENTS, "file"}
    assert sealed.dataset.readme == b"a: 1\n"
    assert sealed.dataset.admin_metadata["uuid"] == bench.staged.id
    assert bench.staged.record.state is State.SEALED
    assert bench.staged.uuid == bench.staged.id


def test_dataset_frozen_elsewhere_stays_itself(
    bench: FreezeBench, elsewhere: Path, tmp_path: Path
) -> None:
    for relpath in CONTENTS:
        os.utime(elsewhere / "data" / relpath, (5, 5))  # the manifest's are kept
    original = LocalDataset.read(tmp_path / "elsewhere")
    sealed = described(bench)
    sealed.keep()

    loaded = sealing.load(bench.staged)

    assert shown(loaded) == shown(sealed.dataset)
    assert loaded.admin_metadata["uuid"] == original.admin_metadata["uuid"]
    assert loaded.admin_metadata["name"] == "elsewhere"
    moments = {item.relpath: moment_s for item, moment_s in original.items.dated()}
    assert {item.relpath: moment_s for item, moment_s in loaded.items.dated()} == moments
    assert (loaded.tags, loaded.annotations) == (original.tags, original.annotations)
    assert loaded.overlays == original.overlays
    assert all(loaded.path_of(item).is_file() for item in loaded.items.values())
    assert bench.staged.uuid == original.admin_metadata["uuid"] != bench.staged.id
    assert sealing.has_dtool_layout(bench.staged, loaded)


def test_empty_dataset_that_was_frozen_elsewhere_is_complete(
    bench: FreezeBench, tmp_path: Path
) -> None:
    shutil.rmtree(bench.staged.tree)
    shutil.copytree(make_dataset(tmp_path, "empty", {}), bench.staged.tree)
    (bench.staged.tree / "data").mkdir(exist_ok=True)

    found = sealing.describe(bench.staged, None, threading.Event(), by_itself=True)

    assert found is not None
    assert found.dataset.admin_metadata["name"] == "empty"
    found.keep()
    assert sealing.has_dtool_layout(bench.staged, sealing.load(bench.staged))


@pytest.mark.parametrize("by_itself", [False, True])
@pytest.mark.parametrize("is_empty", [False, True])
def test_only_an_empty_one_that_nobody_says_is_complete_is_not_described(
    bench: FreezeBench, by_itself: bool, is_empty: bool
) -> None:
    if is_empty:
        (bench.staged.tree / "file").unlink()

    found = sealing.describe(bench.staged, None, threading.Event(), by_itself=by_itself)

    assert (found is None) == (by_itself and is_empty)
    if found is not None:
        found.keep()


@pytest.mark.parametrize("begin_again", [False, True])
def test_what_was_written_since_is_not_sealed(bench: FreezeBench, begin_again: bool) -> None:
    sealed = described(bench)
    with bench.staged.changing():
        (bench.staged.tree / "file").write_bytes(b"other")

    with pytest.raises(ItemChanged):
        sealed.keep()

    assert state_on_disk(bench.staged).state is State.OPEN
    if begin_again:
        seal(bench.staged)
        (item,) = sealing.load(bench.staged).items.values()
        assert item.size_in_bytes == 5


def test_disk_that_fails_seals_nothing(bench: FreezeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tree: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sealing, "sync_file_system", fail)
    sealed = described(bench)
    files = os.listdir("/proc/self/fd")

    with pytest.raises(OSError, match="Input/output error"):
        sealed.keep()

    assert not (bench.staged.directory / "sealed").exists()
    assert state_on_disk(bench.staged).state is State.OPEN
    assert len(os.listdir("/proc/self/fd")) < len(files), "the table of hashes is closed"


def test_hashing_that_is_ended_waits_for_the_disk_and_leaves_nothing_open(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def sync(tree: Path) -> None:
        begun.set()
        assert go_on.wait(WAIT_S)

    monkeypatch.setattr(sealing, "sync_file_system", sync)
    stop = threading.Event()
    stop.set()
    files = os.listdir("/proc/self/fd")
    failures: list[BaseException] = []

    def describe() -> None:
        try:
            sealing.describe(bench.staged, None, stop)
        except Cancelled as error:
            failures.append(error)

    describing = threading.Thread(target=describe)
    describing.start()
    assert begun.wait(WAIT_S)
    describing.join(0.1)
    assert describing.is_alive()
    go_on.set()
    describing.join(WAIT_S)

    assert len(failures) == 1
    assert len(os.listdir("/proc/self/fd")) == len(files)


def test_what_is_forgotten_of_files_is_read_again(bench: FreezeBench) -> None:
    seal(bench.staged)
    assert (bench.staged.directory / "hashes").exists()

    sealing.forget_hashes(bench.staged)

    assert not list(bench.staged.directory.glob("hashes*"))


# What is damaged


def test_sealed_description_that_is_cut_off_anywhere_is_refused(bench: FreezeBench) -> None:
    for number in range(3):
        (bench.staged.tree / f"file-{number}").write_bytes(b"x")
    seal(bench.staged)
    path = bench.staged.directory / "sealed"
    whole = path.read_bytes()

    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ProtocolError, match="cannot be read"):
            sealing.load(bench.staged)
    path.unlink()
    with pytest.raises(ProtocolError, match="cannot be read"):
        sealing.load(bench.staged)


@pytest.mark.parametrize("relpath", ["../file", "/etc/passwd", "", "a/../b", "a//b"])
def test_sealed_description_with_a_path_elsewhere_is_refused(
    bench: FreezeBench, relpath: str
) -> None:
    seal(bench.staged)
    path = bench.staged.directory / "sealed"
    path.write_text(path.read_text().replace('["file"', json.dumps([relpath])[:-1]))

    with pytest.raises(ProtocolError, match="no item's path"):
        sealing.load(bench.staged)


def test_sealed_description_of_the_first_version_is_read(bench: FreezeBench) -> None:
    """All of it was one JSON, with the items in it."""
    (bench.staged.tree / "another").write_bytes(b"x")
    seal(bench.staged)
    before = shown(sealing.load(bench.staged))
    path = bench.staged.directory / "sealed"

    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))

    assert shown(sealing.load(bench.staged)) == before


# What was frozen elsewhere


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "uuid": [None, 1, "", "x" * 36],
        "name": [None, 1, "", "a b"],
        "creator_username": [None],
        "frozen_at": [None, "yesterday", [], 1e300],
        "created_at": ["yesterday", 1e300],
    }.items(),
)
def test_admin_metadata_that_no_dataset_has_is_refused(
    bench: FreezeBench, elsewhere: Path, key: str, values: list[Any]
) -> None:
    path = elsewhere / ".dtool" / "dtool"
    before = path.read_text()
    for value in values:
        admin = json.loads(before) | {key: value}
        path.write_text(json.dumps({k: v for k, v in admin.items() if v is not None}))

        with pytest.raises(UsageError, match=r"\.dtool/dtool: "):
            described(bench)
        path.write_text(before)
    edit(path, lambda admin: admin.pop("created_at", None))
    assert described(bench).dataset.admin_metadata["name"] == "elsewhere"


def first_entry(manifest: Any) -> Any:
    return next(entry for entry in manifest["items"].values() if entry["relpath"] == "a")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda m: m.update(hash_function="sha1sum_hexdigest"), UsageError),
        (lambda m: m.update(items=[]), UsageError),
        (lambda m: m.pop("items"), IntegrityError),
        (lambda m: m["items"].popitem(), IntegrityError),
        (lambda m: first_entry(m).update(size_in_bytes=4), IntegrityError),
        (lambda m: first_entry(m).update(hash="0" * 32), IntegrityError),
        (lambda m: first_entry(m).update(utc_timestamp="yesterday"), ProtocolError),
    ],
)
def test_manifest_that_is_not_of_these_files_is_refused(
    bench: FreezeBench, elsewhere: Path, change: Callable[[Any], object], error: type[Exception]
) -> None:
    edit(elsewhere / ".dtool" / "manifest.json", change)

    with pytest.raises(error):
        described(bench)
    assert bench.staged.record.state is State.OPEN


def test_entry_without_a_date_is_of_the_first(bench: FreezeBench, elsewhere: Path) -> None:
    edit(elsewhere / ".dtool" / "manifest.json", lambda m: first_entry(m).pop("utc_timestamp"))

    moments = {item.relpath: moment_s for item, moment_s in described(bench).dataset.items.dated()}

    assert moments["a"] == 0.0
    assert moments["sub/b"] > 1e9


@pytest.mark.parametrize(
    "change",
    [
        lambda data: (data / "a").unlink(),
        lambda data: (data / "a").write_bytes(b"other"),
        lambda data: (data / "a").write_bytes(b"firsts"),
        lambda data: (data / "extra").write_bytes(b""),
    ],
    ids=["missing", "other", "longer", "more"],
)
def test_files_that_are_not_those_of_the_manifest_are_refused(
    bench: FreezeBench, elsewhere: Path, change: Callable[[Path], object]
) -> None:
    change(elsewhere / "data")

    with pytest.raises(IntegrityError, match=r"rm -r its \.dtool makes a new dataset"):
        described(bench)


# What is beside it


def test_what_is_no_part_of_the_dataset_outlasts_it(bench: FreezeBench, elsewhere: Path) -> None:
    (elsewhere / "notes").mkdir()
    (elsewhere / "notes" / "x").write_bytes(b"kept")
    (elsewhere / "more").write_bytes(b"kept, too")
    kept = bench.staged.kept_directory

    result = bench.freezer.freeze(bench.staged, Layout.DTOOL).result(WAIT_S)
    bench.settle()

    assert [note for note in result.notes if str(kept) in note and "more, notes" in note]
    assert sorted(str(path.relative_to(kept)) for path in kept.rglob("*")) == [
        "more",
        "notes",
        "notes/x",
    ]
    assert kept.stat().st_mode & 0o777 == 0o700
    assert not bench.staged.directory.exists()
    assert bench.staged.frozen_below == ""


def test_of_a_directory_of_items_nothing_is_beside_it(bench: FreezeBench) -> None:
    bench.freezer.freeze(bench.staged).result(WAIT_S)
    bench.settle()

    assert not bench.staged.kept_directory.exists()


def test_losses_are_told(bench: FreezeBench) -> None:
    (bench.staged.tree / "empty").mkdir()
    (bench.staged.tree / "file").chmod(0o700)

    assert described(bench).notes == [
        "not kept in the dataset: empty directories: empty; executable bits: file"
    ]


@pytest.mark.parametrize("left", [".dtool/manifest.json", ".dtool/dtool"])
def test_half_of_a_frozen_dataset_is_not_taken_for_a_new_one(
    bench: FreezeBench, elsewhere: Path, left: str
) -> None:
    (elsewhere / left).unlink()

    if left == ".dtool/dtool":
        assert described(bench).dataset.admin_metadata["uuid"] == bench.staged.id
    else:
        with pytest.raises((DserverfsError, OSError)):
            described(bench)
