"""The staging directories that were ever used, where data may be that no server has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.mountinfo import Mounted, mount_of
from dserverfs.writing.staging.used_directories import Presence, UsedDirectories


def presences(used: UsedDirectories) -> dict[str, Presence]:
    return {known.path.name: known.presence for known in used.all()}


@pytest.fixture
def used(tmp_path: Path) -> UsedDirectories:
    used = UsedDirectories(tmp_path / "data/register")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        used.note(tmp_path / name)
    return used


def test_directories_are_remembered_once_whatever_leads_there(
    used: UsedDirectories, tmp_path: Path
) -> None:
    mounted = mount_of(str(tmp_path))
    (tmp_path / "link").symlink_to("one")
    used.note(tmp_path / "link")
    used.note(tmp_path / "one")

    again = UsedDirectories(tmp_path / "data/register")

    assert presences(again) == {"one": Presence.THERE, "two": Presence.THERE}
    assert {known.mount for known in again.all()} == {mounted.path if mounted else "/"}
    assert os.stat(tmp_path / "data/register").st_mode & 0o777 == 0o700


@pytest.mark.parametrize("was", [{"path": "/media/disk"}, {"source": "/dev/another"}])
def test_directory_that_is_gone_differs_from_one_whose_disk_is(
    used: UsedDirectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: dict[str, Any]
) -> None:
    other = Mounted("/", "ext4", "/dev/root", 1)._replace(**was)
    monkeypatch.setattr("dserverfs.base.mountinfo.mount_of", lambda path: other)
    (tmp_path / "away").mkdir()
    used.note(tmp_path / "away")
    monkeypatch.undo()
    (tmp_path / "away").rmdir()
    (tmp_path / "one").rmdir()

    assert presences(used) == {
        "away": Presence.NOT_MOUNTED,
        "one": Presence.GONE,
        "two": Presence.THERE,
    }
    used.forget(tmp_path / "one")
    assert set(presences(used)) == {"away", "two"}


def test_directory_is_gone_where_the_root_is_no_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dserverfs.base.mountinfo.mount_of", lambda path: None)
    used = UsedDirectories(tmp_path / "data/register")
    used.note(tmp_path / "never")

    assert presences(used) == {"never": Presence.GONE}


@pytest.mark.expects_log("dserverfs status will not know")
def test_register_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    used = UsedDirectories(tmp_path / "file/register")

    used.note(tmp_path)

    assert used.all() == []


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"directory": 1, "mount": "/"}', b"\xff"])
def test_entry_that_cannot_be_read_is_passed_over(
    used: UsedDirectories, tmp_path: Path, content: bytes
) -> None:
    for file in (tmp_path / "data/register").iterdir():
        file.write_bytes(content)
        break

    assert len(used.all()) == 1
