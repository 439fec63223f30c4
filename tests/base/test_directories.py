"""A cache lies on a file system of this machine, in a directory nobody else can write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dserverfs.base.directories import (
    fstype_of,
    is_of_network,
    local_directory,
    private_directory,
    share_space,
)
from dserverfs.base.errors import UsageError
from tests.support.accounts import Account
from tests.support.small_disk import MIB, small_disk

NETWORK = ["nfs", "nfs4", "cifs", "smb3", "lustre", "9p", "fuse.sshfs", "fuse.dserverfs", "fuse"]
LOCAL = ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "fuseblk", "fuse.gocryptfs", ""]


def on_network(*directories: Path, fstype: str = "nfs4") -> Callable[[Path], str]:
    """Return a function that takes what lies below these directories for a network's."""

    def found(path: Path) -> str:
        return fstype if any(path.is_relative_to(directory) for directory in directories) else "xfs"

    return found


@pytest.mark.parametrize("fstype", NETWORK)
def test_file_systems_of_other_machines_are_known(fstype: str) -> None:
    assert is_of_network(fstype)


@pytest.mark.parametrize("fstype", LOCAL)
def test_file_systems_of_this_machine_are_known(fstype: str) -> None:
    assert not is_of_network(fstype)


def test_type_is_found_of_what_is_not_there_yet() -> None:
    assert fstype_of(Path("/proc/self/no/such/thing")) == "proc"
    assert fstype_of(Path("/dev/shm/no/such/thing")) == "tmpfs"
    assert fstype_of(Path("/no/such/thing")) == fstype_of(Path("/"))


def test_local_directory_is_used_as_it_is(tmp_path: Path) -> None:
    wanted = tmp_path / "cache"

    found = local_directory(wanted, fstype_of=lambda path: "ext4")

    assert found == wanted


@pytest.mark.expects_log(r"home.* is on a network file system \(nfs4\).*-cache-dir")
def test_network_directory_gives_way_to_a_private_local_one(tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    temporary.mkdir(mode=0o777)

    found = local_directory(
        home / ".cache", fstype_of=on_network(home), environment={}, temporary=temporary
    )

    assert found.parent == temporary / f"dserverfs-{os.geteuid()}"
    for directory in (found, found.parent):
        assert directory.stat().st_mode & 0o777 == 0o700
        assert directory.stat().st_uid == os.geteuid()
    assert not home.exists()


@pytest.mark.expects_log("is on a network file system")
def test_same_wish_leads_to_the_same_place_and_another_does_not(tmp_path: Path) -> None:
    def place(wanted: str) -> Path:
        return local_directory(
            tmp_path / "home" / wanted,
            fstype_of=on_network(tmp_path / "home"),
            environment={},
            temporary=tmp_path,
        )

    assert place("one") == place("one") != place("two")


@pytest.mark.expects_log("run/dserverfs.* is used")
def test_directory_that_another_made_is_passed_over(tmp_path: Path) -> None:
    home, temporary, run = tmp_path / "home", tmp_path / "tmp", tmp_path / "run"
    run.mkdir()
    temporary.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (temporary / f"dserverfs-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")

    found = local_directory(
        home,
        fstype_of=on_network(home),
        environment={"XDG_RUNTIME_DIR": str(run)},
        temporary=temporary,
    )

    assert found.is_relative_to(run)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_without_a_local_directory_the_user_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--cache-dir"):
        local_directory(tmp_path, fstype_of=lambda path: "nfs", environment={}, temporary=tmp_path)


def test_directory_of_another_user_is_refused(tmp_path: Path, ordinary_user: Account) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory to another")
    directory = tmp_path / "blocks"
    directory.mkdir()
    os.chown(directory, 12345, 12345)

    with pytest.raises(UsageError, match="not a directory of yours"):
        private_directory(directory)


def test_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blocks").touch()

    with pytest.raises(UsageError):
        private_directory(tmp_path / "blocks")


@pytest.mark.parametrize("apart", [False, True])
def test_space_is_shared_within_a_file_system(tmp_path: Path, apart: bool) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    with small_disk(other, 4 * MIB) if apart else contextlib.nullcontext():
        assert share_space(one, other) is not apart


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277])
def test_private_directory_is_private_whatever_the_umask_is(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        private_directory(tmp_path / "one" / "two" / "three")
    finally:
        os.umask(before)

    for path in ("one", "one/two", "one/two/three"):
        assert (tmp_path / path).stat().st_mode & 0o777 == 0o700
