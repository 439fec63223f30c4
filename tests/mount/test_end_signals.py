"""Signals that end a mount come when they like, and as often: it ends in order."""

from __future__ import annotations

import os
import re
import select
import signal
import time
from pathlib import Path

import pytest

from dserverfs.base import end_signals
from dserverfs.base.mountinfo import find_mounted
from tests.support.accounts import Account
from tests.support.mount_daemons import (
    Remountable,
    channel_of,
    wait_for,
    wait_for_end,
)
from tests.support.patience import LATE_S
from tests.support.servers import ServerHandle

pytest_plugins = ["tests.support.mount_fixtures"]

EACH_S = 0.001


def end_by_many(pid: int, number: signal.Signals) -> None:
    """Send a signal again and again until the process has ended."""
    fd = os.pidfd_open(pid)
    try:
        end_s = time.monotonic() + LATE_S
        while not select.select([fd], [], [], EACH_S)[0]:
            assert time.monotonic() < end_s, f"process {pid} does not end"
            signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)


def next_child(channel: int, before: int) -> int:
    """Return the process of a channel's next daemon as soon as there is one."""
    children = Path(f"/proc/{channel}/task/{channel}/children")
    found: list[str] = []

    def has_begun() -> bool:
        found[:] = children.read_text().split()
        return bool(found)

    wait_for(has_begun, "another daemon")
    assert int(found[0]) != before
    return int(found[0])


@pytest.mark.parametrize("channel", ["on", "off"])
@pytest.mark.parametrize("number", end_signals.NUMBERS)
def test_signals_that_go_on_to_come_end_the_mount_in_order(
    mount: Remountable, channel: str, number: signal.Signals
) -> None:
    """One that came while the mount was being taken away left it dead, or had it go on."""
    mount.mount("--channel", channel)

    end_by_many(mount.daemon(), number)

    assert find_mounted(mount.path) is None


@pytest.mark.parametrize("number", end_signals.NUMBERS)
def test_a_daemon_that_begins_in_the_place_of_another_can_be_ended(
    mount: Remountable, number: signal.Signals
) -> None:
    mount.mount("--channel", "on")
    before, channel = mount.daemon(), channel_of(mount.daemon())
    assert channel is not None
    os.kill(before, signal.SIGKILL)
    wait_for_end(before)
    end_by_many(next_child(channel, before), number)

    wait_for_end(channel)
    assert find_mounted(mount.path) is None


def test_mount_that_nohup_has_begun_goes_on_when_its_terminal_ends(
    mount: Remountable, current_user: Account, server: ServerHandle, token: str
) -> None:
    command = current_user.dserverfs_command("mount", "-f", server.base_uri, mount.path)
    with current_user.spawn("nohup", *command, env={"DSERVER_TOKEN": token}) as process:
        wait_for(lambda: find_mounted(mount.path) is not None, "the mount")
        os.listdir(mount.path)  # it answers

        daemon = mount.daemon()
        os.kill(daemon, signal.SIGHUP)
        (ignored,) = re.findall(r"SigIgn:\t(\w+)", Path(f"/proc/{daemon}/status").read_text())
        assert int(ignored, 16) & 1 << (signal.SIGHUP - 1)
        os.listdir(mount.path)
        os.kill(daemon, signal.SIGTERM)

        assert process.wait(LATE_S) == 0
    assert find_mounted(mount.path) is None
