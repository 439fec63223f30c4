"""`dserverfs restart`: has a new daemon serve a mount, without an unmount."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dserverfs.cli.arguments import Commands, example, say, seconds

if TYPE_CHECKING:
    from dserverfs.mount.control import Address

POLL_S = 0.05


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "restart", help="have a new daemon serve a mount, as after an upgrade"
    )
    parser.description = (
        "Have the daemon of a mount end, and a new one, of what is installed now, take its place."
        " Nothing is unmounted: what is open for reading goes on, and what programs ask meanwhile"
        " waits a moment. Needs a mount with a channel, not in the foreground, in which no"
        " file is open for writing."
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path, help="what is mounted")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for the new daemon; default: 60",
    )
    parser.epilog = example("dserverfs restart ~/lab")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.base.errors import UsageError
    from dserverfs.cli import mounted
    from dserverfs.mount.channel import messages
    from dserverfs.tree import number_journal

    place = mounted.find(arguments.mountpoint)
    try:
        now = mounted.last(place.ask("mount"))
        if now.get("numbers") != number_journal.formats():
            raise UsageError(
                "this version would give other inode numbers: unmount it, and mount it again"
            )
        if now.get("channel") != messages.VERSION:
            raise UsageError("its channel is of another version: unmount it, and mount it again")
        before = mounted.last(place.ask("restart"))
    except UsageError as error:
        raise UsageError(f"{place.mountpoint}: cannot be restarted: {error}") from error
    now = _next(place.address, before, arguments.timeout)
    say(f"{place.mountpoint} is served by a new daemon (process {now})")
    return 0


def _next(address: Address, before: int, timeout_s: float) -> int:
    """Return the process id of the daemon that follows another one; raises UsageError."""
    from dserverfs.base.errors import DaemonSilent, UsageError
    from dserverfs.cli import mounted
    from dserverfs.mount import control

    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        try:
            pid = int(mounted.last(control.ask(address, {"command": "mount"}))["pid"])
        except DaemonSilent:  # the old one has gone, and the new one does not listen yet
            pid = before
        if pid != before:
            return pid
        time.sleep(POLL_S)
    raise UsageError(
        f"no new daemon is there after {timeout_s:.0f} s: the mount's log says why; dserverfs"
        " umount MOUNTPOINT, then mount it again"
    )
