"""Promises of the page about semantics that belong to no other subject."""

from __future__ import annotations

import errno
import os
import shutil
import stat

import pytest

from tests.support.accounts import Account
from tests.support.mounts import mounted
from tests.support.servers import ServerHandle
from tests.support.staged_datasets import freeze, job, status, wait_until


def test_owner_and_modes_of_a_mount_are_those_asked_for(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> None:
    options = ("--freeze-delay", "manual", "-o", "umask=027,uid=12345,gid=23456")
    with mounted(current_user, server.base_uri, token, *options) as base:
        dataset = base / "of-somebody-else"
        if os.geteuid() == 0:  # others may not write to what is another's
            dataset.mkdir()
            (dataset / "file").write_text("content")
            freeze(current_user, dataset)
            found = (dataset / "data/file").stat()
            assert (found.st_uid, found.st_gid) == (12345, 23456)
            assert stat.S_IMODE(found.st_mode) == 0o640
        assert (base.stat().st_uid, base.stat().st_gid) == (12345, 23456)
        assert stat.S_IMODE(base.stat().st_mode) == 0o750


def test_other_users_see_a_mount_only_if_allowed(
    fuse: None, current_user: Account, ordinary_user: Account, server: ServerHandle, token: str
) -> None:
    if current_user == ordinary_user:
        pytest.skip("needs two users")
    before = stat.S_IMODE(current_user.home.stat().st_mode)
    current_user.home.chmod(0o711)
    try:
        with mounted(current_user, server.base_uri, token) as base:
            assert "Permission denied" in ordinary_user.run("ls", base).stderr
        with mounted(current_user, server.base_uri, token, "--allow-other") as base:
            done = ordinary_user.run("ls", base)
            assert done.returncode == 0, done.stderr
            assert ordinary_user.run("mkdir", base / "not-theirs").returncode != 0
    finally:
        current_user.home.chmod(before)


def test_owner_of_a_staged_file_stays_whatever_chown_says(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> None:
    with mounted(current_user, server.base_uri, token, "--freeze-delay", "manual") as base:
        (base / "chowned").mkdir()
        file = base / "chowned/file"
        file.write_text("content")
        before = file.stat()

        os.chown(file, before.st_uid, before.st_gid + 1 if os.geteuid() == 0 else before.st_gid)

        assert (file.stat().st_uid, file.stat().st_gid) == (before.st_uid, before.st_gid)
        shutil.rmtree(base / "chowned")


def test_dataset_is_moved_to_another_base_uri_by_copying(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> None:
    other = server.add_base_uri(search=[server.username], register=[server.username])
    uri, _, bucket = server.base_uri.rpartition("/s3/")
    with mounted(current_user, uri, token, "--freeze-delay", "manual") as path:
        here, there = path / "s3" / bucket / "moved", path / other.replace("://", "/") / "moved"
        here.mkdir()
        (here / "file").write_text("content")

        with pytest.raises(OSError, match="cross-device") as refused:
            here.rename(there)

        assert refused.value.errno == errno.EXDEV
        assert current_user.run("mv", here, there).returncode == 0
        assert status(current_user, there)["state"] == "open"
        assert (there / "file").read_text() == "content"
        shutil.rmtree(there)


def test_dataset_that_no_longer_waits_for_a_command_is_frozen_by_itself(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> None:
    make = 'mkdir "$1"; setfattr -n user.dserverfs.freeze -v manual "$1"; echo x > "$1/file"'
    release = 'setfattr -n user.dserverfs.freeze -v auto "$1"'
    with mounted(current_user, server.base_uri, token, "--freeze-delay", "0.2") as base:
        dataset = base / "manual-and-auto"
        job(current_user, make, dataset)
        waiting = status(current_user, dataset)

        job(current_user, release, dataset)

        wait_until(current_user, dataset, state="frozen")
        assert waiting["state"] == "open"
