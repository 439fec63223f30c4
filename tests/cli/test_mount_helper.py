"""`dserverfs mount-helper`: what it writes, what it leaves alone, and whom root trusts."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dserverfs
from dserverfs.base.errors import UsageError
from dserverfs.cli import mount_helper
from dserverfs.cli.main import main

Trusting = Callable[[Path], None]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root owns what root trusts")
SCRIPTS = ["mount.fuse.dserverfs", "umount.fuse.dserverfs"]


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """This checkout may be anybody's."""
    monkeypatch.setattr(mount_helper, "require_roots_own", lambda path: None)


def helper(action: str, directory: Path) -> int:
    return main(["mount-helper", action, "--directory", str(directory)])


def test_scripts_are_written_again_and_deleted(
    trusting: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old_umask = os.umask(0o077)
    try:
        assert helper("install", tmp_path) == 0
        assert helper("install", tmp_path) == 0
    finally:
        os.umask(old_umask)

    said = capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == SCRIPTS
    for name in SCRIPTS:
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o755
        assert f"{tmp_path / name} runs {sys.executable} -m dserverfs" in said
        done = subprocess.run([tmp_path / name, "--help"], capture_output=True, text=True)
        assert done.stdout.startswith("usage: dserverfs mount-helper"), done.stderr
    assert helper("remove", tmp_path) == 0
    assert helper("remove", tmp_path) == 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("action", ["install", "remove"])
def test_file_of_another_program_stays(
    trusting: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    (tmp_path / SCRIPTS[0]).write_text("#!/bin/sh\n")

    assert helper(action, tmp_path) == 1

    assert "not of dserverfs" in capsys.readouterr().err
    assert (tmp_path / SCRIPTS[0]).read_text() == "#!/bin/sh\n"


@pytest.mark.parametrize("place", ["missing", "file"])
def test_directory_that_cannot_be_written_is_told(
    trusting: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").touch()

    assert helper("install", tmp_path / place) == 1

    said = capsys.readouterr().err
    assert str(tmp_path / place / SCRIPTS[0]) in said
    assert said.count("\n") == 1


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="the only Python has it installed")
def test_python_that_does_not_find_dserverfs_is_told(
    trusting: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One that has it by PYTHONPATH, or in the home of a user, has not when root runs it."""
    bare = Path(os.path.realpath(sys.executable))
    monkeypatch.setattr(sys, "executable", str(bare))  # without the packages of its environment
    monkeypatch.setenv("PYTHONPATH", str(Path(dserverfs.__file__).parents[1]))

    assert helper("install", tmp_path) == 1

    assert f"{bare} -I does not find dserverfs" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@as_root
def test_roots_own_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "python").touch(0o755)
    (tmp_path / "link").symlink_to("python")
    (tmp_path / "python").chmod(0o775)  # of the group root

    mount_helper.require_roots_own(tmp_path / "link")
    (tmp_path / "python").chmod(0o777)
    with pytest.raises(UsageError):
        mount_helper.require_roots_own(tmp_path / "link")


def _others_file(path: Path) -> None:
    os.chown(path / "bin/python", 12345, 0)


def _others_directory(path: Path) -> None:
    os.chown(path / "bin", 12345, 0)


def _writable_file(path: Path) -> None:
    (path / "bin/python").chmod(0o1757)


def _group_s_file(path: Path) -> None:
    os.chown(path / "bin/python", 0, 12345)
    (path / "bin/python").chmod(0o775)


def _writable_directory(path: Path) -> None:
    (path / "bin").chmod(0o757)


def _others_link(path: Path) -> None:
    (path / "bin/python").rename(path / "bin/real")
    (path / "bin/python").symlink_to("real")
    os.lchown(path / "bin/python", 12345, 0)


def _by_way_of_others(path: Path) -> None:
    (path / "others").mkdir()
    (path / "bin/python").rename(path / "bin/real")
    (path / "others/python").symlink_to("../bin/real")
    (path / "bin/python").symlink_to("../others/python")
    os.chown(path / "others", 12345, 0)


@as_root
@pytest.mark.parametrize(
    "change",
    [
        *(_others_file, _others_directory, _writable_file, _writable_directory),
        _group_s_file,
        *(_others_link, _by_way_of_others),
    ],
)
def test_what_others_can_change_is_not_run_by_root(tmp_path: Path, change: Trusting) -> None:
    (tmp_path / "bin").mkdir(0o755)
    (tmp_path / "bin/python").touch(0o755)
    change(tmp_path)

    with pytest.raises(UsageError, match="others than root can change it"):
        mount_helper.require_roots_own(tmp_path / "bin/python")
