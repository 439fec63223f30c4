"""The one order in which a file is replaced, and what a crash leaves at each step of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dserverfs.base import durable_files
from dserverfs.base.durable_files import (
    left_beside,
    remove_left_beside,
    replacing,
    sync_directory,
    sync_file,
    sync_file_system,
    write_durably,
    write_unsynced,
    written_beside,
)
from dserverfs.remote.login import keep_token
from dserverfs.server.datadir import write_private
from dserverfs.writing.staging.area import Staging
from tests.support.power_cuts import Disk, PowerCut

OLD, NEW = b"old content", b"new content, which is longer"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def in_pieces(path: Path) -> None:
    with replacing(path) as file:
        for start in range(0, len(NEW), 7):
            file.write(NEW[start : start + 7])


def at_once(path: Path) -> None:
    write_durably(path, NEW)


WAYS = pytest.mark.parametrize("write", [at_once, in_pieces])


@WAYS
def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, disk: Disk, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "file")

    assert disk.steps == ["sync file", "replace", "sync directory"]
    assert (tmp_path / "file").read_bytes() == NEW
    assert os.listdir(tmp_path) == ["file"]


@WAYS
@pytest.mark.parametrize("step", range(4))
def test_power_cut_at_each_step_leaves_the_old_or_the_new(
    tmp_path: Path, disk: Disk, write: Callable[[Path], None], step: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    disk.settle()
    disk.cut_at(step)

    try:
        write(path)
        returned = True
    except PowerCut:
        returned = False
    disk.lose_what_is_not_synced()

    assert returned == (step == 3)
    assert path.read_bytes() in ((NEW,) if returned else (OLD, NEW))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_disk_that_fails_leaves_the_old_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    path.write_bytes(OLD)
    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(OSError, match=os.strerror(number)):
        write_durably(path, NEW)

    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["file"]


def test_what_was_written_beside_and_not_renamed_is_deleted(tmp_path: Path) -> None:
    with written_beside(tmp_path / "file") as (file, scratch):
        file.write(NEW)
        assert scratch.parent == tmp_path

    assert os.listdir(tmp_path) == []


def test_unsynced_file_is_whole_for_other_processes_and_waits_for_no_disk(
    tmp_path: Path, disk: Disk
) -> None:
    (tmp_path / "file").write_bytes(OLD)

    write_unsynced(tmp_path / "file", NEW)

    assert disk.steps == ["replace"]
    assert (tmp_path / "file").read_bytes() == NEW
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_process_wrote_beside_is_deleted_once_it_is_old(tmp_path: Path) -> None:
    with written_beside(tmp_path / "file") as (_, scratch):
        old, journal = tmp_path / "file.1-1.new", tmp_path / "file.1-1.new-journal"
        for path in (old, journal, tmp_path / "file"):
            path.write_bytes(OLD)
            os.utime(path, (0, 0))
        assert left_beside(tmp_path / "file") == sorted([old, journal, scratch])
        assert left_beside(tmp_path / "*", 1) == [old, journal]

        remove_left_beside(tmp_path / "*", older_than_s=60.0)

        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "file", scratch])


def test_unsynced_file_has_all_its_content_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = []
    replace = os.replace

    def noted(new: Path, old: Path) -> None:
        renamed.append(new.read_bytes())
        replace(new, old)

    monkeypatch.setattr(os, "replace", noted)

    write_unsynced(tmp_path / "file", NEW)

    assert renamed == [NEW]


@WAYS
def test_what_a_killed_process_with_our_numbers_wrote_is_in_nobodys_way(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    with written_beside(tmp_path / "file") as (_, scratch):
        pass
    scratch.write_bytes(2 * NEW)
    os.link(scratch, tmp_path / "other")

    write(tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == NEW
    assert (tmp_path / "other").read_bytes() == 2 * NEW


def test_what_is_asked_to_be_on_the_disk_is_synced(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(NEW)
    asked = []

    def call_libc(name: str, fd: int, *, path: str) -> int:
        asked.append((name, os.readlink(f"/proc/self/fd/{fd}"), path))
        return 0

    monkeypatch.setattr(durable_files, "call_libc", call_libc)
    before = os.listdir("/proc/self/fd")

    sync_file(tmp_path / "file")
    sync_directory(tmp_path)
    sync_file_system(tmp_path)

    assert disk.steps == ["sync file", "sync directory"]
    assert disk.has_content_of(tmp_path / "file")
    assert asked == [("syncfs", str(tmp_path), str(tmp_path))]
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("sync", [sync_directory, sync_file_system])
def test_names_are_synced_of_directories_alone(
    tmp_path: Path, sync: Callable[[Path], None]
) -> None:
    (tmp_path / "file").write_bytes(NEW)

    with pytest.raises(NotADirectoryError):
        sync(tmp_path / "file")


def stage(path: Path) -> None:
    Staging(path, "server").open().create("s3://bucket", "one", "alice")


@pytest.mark.parametrize(
    "keep",
    [
        lambda path: keep_token(path / "token", "secret"),
        lambda path: write_private(path / "secret_key", "secret"),
        stage,
    ],
    ids=["token of a login", "secret of a server", "state of a staged dataset"],
)
def test_whatever_there_is_no_other_record_of_is_written_so(
    tmp_path: Path, disk: Disk, keep: Callable[[Path], None]
) -> None:
    keep(tmp_path)

    replaced = disk.steps.index("replace")
    assert "sync file" in disk.steps[:replaced]
    assert "sync directory" in disk.steps[replaced:]
    modes = [path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()]
    assert set(modes) == {0o600}
