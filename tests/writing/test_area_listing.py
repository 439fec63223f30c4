"""The list of what is staged: what is shown of it, and what stands in nobody's way."""

from __future__ import annotations

import errno
import uuid
from pathlib import Path

import pytest

from dserverfs.base.errors import (
    Conflict,
    Frozen,
    LocalDiskError,
    NameTaken,
    UsageError,
)
from dserverfs.writing.staging import area
from dserverfs.writing.staging.area import Staging, servers
from dserverfs.writing.staging.dataset import (
    MAX_STATE_BYTES,
    StagedDataset,
)
from dserverfs.writing.staging.states import Move, State
from tests.support.power_cuts import Disk
from tests.support.staging_areas import BASE, SERVER, another, only

pytest_plugins = ["tests.support.staging_fixtures"]


def test_new_one_outlasts_a_power_cut(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)

    staged = staging.create(BASE, "one", "alice")

    assert disk.steps == ["sync file", "replace", "sync directory", "sync directory"]
    assert disk.has_content_of(staged.directory / "state")


def test_id_that_is_staged_is_not_staged_twice(staging: Staging) -> None:
    wanted = str(uuid.UUID(int=5))
    assert staging.create(BASE, "one", "alice", id=wanted).id == wanted

    with pytest.raises(Conflict, match="is staged already"):
        staging.create(BASE, "two", "alice", id=wanted)

    assert only(staging).record.name == "one"


def test_rename_wants_a_usable_name_that_is_free_of_what_may_be_written(staging: Staging) -> None:
    staged, taken = staging.create(BASE, "one", "alice"), staging.create(BASE, "two", "alice")
    for name, error in (("a b", UsageError), ("two", NameTaken)):
        with pytest.raises(error):
            staging.rename(staged, name)
    for move in (Move.SEAL, Move.UPLOAD, Move.COMPLETE):
        taken.move(move)

    with pytest.raises(Frozen):
        staging.rename(taken, "three")
    staged.move(Move.SEAL)
    staging.rename(staged, "three")
    assert (staged.record.name, staged.record.state) == ("three", State.OPEN)


def test_directory_that_vanished_does_not_say_that_all_was_discarded(
    staging: Staging, staged: StagedDataset
) -> None:
    base = staged.directory.parent
    other = staging.create("s3://other", "one", "alice")
    base.rename(base.with_name("elsewhere"))

    with pytest.raises(LocalDiskError, match="is gone"):
        staging.datasets(BASE)
    assert not staged.is_gone
    assert staging.datasets("s3://other") == [other]
    assert staging.datasets("s3://never") == []

    base.with_name("elsewhere").rename(base)
    staged.discard()
    base.rename(base.with_name("elsewhere"))
    assert staging.datasets(BASE) == []


def test_directory_that_cannot_be_read_is_told(
    staging: Staging, staged: StagedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> list[Path]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(area, "subdirectories", fail)

    with pytest.raises(LocalDiskError, match="cannot be read: Input/output error"):
        staging.datasets(BASE)
    assert not staged.is_gone


def test_listing_has_only_what_is_there_and_knows_what_went(
    staging: Staging, staged: StagedDataset
) -> None:
    elsewhere = staging.create("s3://other", "one", "alice")
    (staged.directory.parent / ".kept-x").mkdir()
    theirs = another(staging)
    shown = only(theirs)

    assert staging.datasets(BASE) == [staged]
    staged.discard()

    assert theirs.datasets(BASE) == []
    assert shown.is_gone
    assert not elsewhere.is_gone
    assert staging.datasets("s3://other") == [elsewhere]


@pytest.mark.expects_log("larger than any")
def test_damage_is_told_once_for_its_base_uri_until_it_is_mended(
    staging: Staging, caplog: pytest.LogCaptureFixture
) -> None:
    staged = staging.create(BASE, "one", "alice")
    staging.create("s3://other", "one", "alice")
    staging.close()
    fresh, path = another(staging), staged.directory / "state"
    content = path.read_bytes()
    path.write_bytes(bytes(MAX_STATE_BYTES + 1))

    for _ in range(3):
        assert fresh.datasets(BASE) == []
    assert list(fresh.unusable(BASE)) == [staged.directory]
    assert fresh.unusable("s3://other") == {}
    assert caplog.text.count("larger than any") == 1

    path.write_bytes(content)
    assert only(fresh).record == staged.record
    assert fresh.unusable(BASE) == {}


@pytest.mark.expects_log("cannot be used|is left out|another one|No such file|not JSON")
def test_what_cannot_be_read_or_went_just_now_hides_nothing_behind_it(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, damaged, empty = (staging.create(BASE, name, "alice") for name in ("a", "b", "c"))
    (damaged.directory / "state").write_text("{")
    (empty.directory / "state").unlink()
    vanished = damaged.directory.with_name(str(uuid.UUID(int=3)))
    paths = [vanished, damaged.directory, empty.directory, good.directory]
    theirs = another(staging)
    monkeypatch.setattr(area, "subdirectories", lambda path: paths)

    assert [staged.id for staged in theirs.datasets(BASE)] == [good.id]
    assert set(theirs.unusable(BASE)) == {damaged.directory, empty.directory}

    good.explain("a reason")
    assert [staged.record.reason for staged in theirs.datasets(BASE)] == ["a reason"]


@pytest.mark.expects_log("what a crash left there is not deleted")
def test_what_a_crash_left_and_cannot_be_deleted_is_in_nobodys_way(
    staging: Staging, staged: StagedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    (staged.directory.parent / ".gone-x").mkdir()

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(area, "delete_tree", fail)
        theirs = another(staging)

    assert only(theirs).id == staged.id
    another(staging)
    assert not (staged.directory.parent / ".gone-x").exists()


def test_edits_of_frozen_datasets_are_no_server(staging: Staging, staged: StagedDataset) -> None:
    (staging.directory / ".edits").mkdir()

    assert servers(staging.directory) == [SERVER]
