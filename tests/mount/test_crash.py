"""Daemons that end while datasets are made: no closed file is lost, none is frozen by half."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import select
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from dserverfs.base.mountinfo import find_mounted
from tests.support.accounts import Account
from tests.support.child_processes import spawn
from tests.support.directory_trees import md5_of_files
from tests.support.mount_daemons import Remountable, stopped, wait_for, wait_for_end
from tests.support.mounts import mounted
from tests.support.promises import PromiseList
from tests.support.server_store import weed_of
from tests.support.servers import ServerHandle
from tests.support.staged_datasets import freeze, status, wait_until
from tests.support.steady_writer import contents_of

pytest_plugins = ["tests.support.mount_fixtures"]


def staged_by_name(mount: Remountable) -> dict[str, dict[str, Any]]:
    known = status(mount.account)["staged"]
    return {one["name"]: one for one in known if one["directory"].startswith(str(mount.staging))}


@pytest.mark.parametrize(
    ("kills", "at"),
    [(3, None), (1, "sealed"), (1, "uploading"), (1, "completing"), (1, "frozen")],
    ids=["anywhere", "sealed", "uploading", "completing", "frozen"],
)
def test_no_closed_file_is_lost_and_no_dataset_frozen_by_half_if_the_daemon_is_killed(
    mount: Remountable,
    ordinary_user: Account,
    server: ServerHandle,
    token: str,
    kills: int,
    at: str | None,
) -> None:
    account, dice = mount.account, random.Random(str(at))
    promises = PromiseList(mount.path.with_name(f"{mount.path.name}-promises"))
    incomplete: set[str] = set()
    for kill in range(kills):
        mount.mount("--freeze-delay", "0")
        prefix = f"kill-{at or 'anywhere'}-{kill}"
        command = (account.python, "-m", "tests.support.steady_writer")
        with account.spawn(*command, mount.path, promises.path, prefix) as writer:
            if at is None:
                promises.wait_for_lines(dice.randrange(40, 250))
            else:
                wait_for(lambda: at in mount.states().values(), at)
            mount.end(signal.SIGKILL)
            writer.wait(60)
            said = writer.communicate()[1]
            assert b"Traceback" in said or b"SIGBUS" in said, said  # the mount's error

        mount.mount("--freeze-delay", "manual")

        promises.read()
        staged = staged_by_name(mount)
        for name, known in staged.items():
            if known["state"] == "open":
                assert not known["armed"]
                assert known["reason"]
                found = md5_of_files(account, mount.path / name)
                promises.datasets[name].require_closed_files(found)
                incomplete.add(name)
        shown = {path.name for path in mount.path.iterdir()}
        assert {name for name, one in promises.datasets.items() if one.closed} <= shown
        mount.end(signal.SIGKILL if kill + 1 < kills else signal.SIGTERM)

    mount.mount("--freeze-delay", "manual")
    wait_for(
        lambda: {one["state"] for one in staged_by_name(mount).values()} <= {"open"},
        "everything that was sealed is frozen",
    )
    for name in staged_by_name(mount):
        assert name in incomplete
        if promises.datasets[name].closed:
            freeze(account, mount.path / name)
    assert account.dserverfs("umount", mount.path).returncode == 0
    with mounted(ordinary_user, server.base_uri, token, "--read-only") as base:
        for name, promised in promises.datasets.items():
            if promised.closed:
                found = md5_of_files(ordinary_user, base / name / "data")
                promised.require_closed_files(found)
                if name not in incomplete:
                    promised.require_all(found)


def make_dataset(mount: Remountable, name: str) -> dict[str, str]:
    """Make a dataset of some files; return the MD5 of each."""
    for relpath, content in contents_of(name, 40).items():
        path = mount.path / name / relpath
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return md5_of_files(mount.account, mount.path / name)


@contextlib.contextmanager
def uploading(mount: Remountable, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Yield the command that freezes it, which ends when the daemon does."""
    with mount.account.spawn(
        mount.account.python, "-m", "dserverfs", "freeze", mount.path / name
    ) as freezing:
        wait_for(lambda: mount.states().get(name) == "uploading", "uploading")
        yield freezing


def interrupted_umount(mount: Remountable) -> str:
    """Unmount, and press Ctrl-C when it says that it waits; return what it said."""
    terminal, its_end = pty.openpty()
    with spawn(
        mount.account.dserverfs_command("umount", mount.path),
        env=mount.account.environment,
        stderr=its_end,
    ) as umount:
        os.close(its_end)
        said = b""
        while b" frozen" not in said:
            assert select.select([terminal], [], [], 60)[0]
            said += os.read(terminal, 4096)
        umount.send_signal(signal.SIGINT)
        assert umount.wait(60) == 1
        said += os.read(terminal, 4096)
    os.close(terminal)
    return said.decode()


def require_carried_on(mount: Remountable, name: str, made: dict[str, str]) -> None:
    """Require that the next mount freezes what the one before began to upload."""
    mount.mount("--freeze-delay", "manual")
    wait_until(mount.account, mount.path / name, state="frozen")
    assert md5_of_files(mount.account, mount.path / name / "data") == made


@pytest.mark.parametrize("ending", ["SIGKILL", "SIGTERM", "fusermount3 -u", "umount", "Ctrl-C"])
def test_the_next_mount_carries_on_with_an_upload_however_the_last_one_ended(
    mount: Remountable, server: ServerHandle, ending: str
) -> None:
    name = "ended-by-" + "".join(filter(str.isalnum, ending))
    mount.mount("--freeze-delay", "manual")
    made = make_dataset(mount, name)
    account, daemon = mount.account, mount.daemon()
    with stopped(weed_of(server)), uploading(mount, name) as freezing:
        if ending.startswith("SIG"):
            mount.end(signal.Signals[ending])
        elif ending == "fusermount3 -u":
            assert account.run("fusermount3", "-u", mount.path).returncode == 0
        elif ending == "umount":
            done = account.dserverfs("umount", mount.path, "--timeout", "3")
            assert (done.returncode, find_mounted(mount.path)) == (1, None)
            assert f"stays staged: {server.base_uri} {name} (uploading)" in done.stderr
        else:
            said = interrupted_umount(mount)
            assert f"stays staged: {server.base_uri} {name} (uploading)" in said
            assert find_mounted(mount.path) is None
        lines = freezing.communicate(timeout=60)[1]
        assert freezing.returncode == 1, lines
        wait_for_end(daemon)
    assert name in mount.states()

    require_carried_on(mount, name, made)
