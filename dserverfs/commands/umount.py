"""`dserverfs umount`: the end of a mount, after what can be frozen was."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dserverfs.commands.common import Commands, say


def add(commands: Commands) -> None:
    parser = commands.add_parser("umount", help="end a mount")
    parser.description = (
        "Freeze what is closed and may be frozen, send what was changed of frozen datasets, then"
        " unmount. What stays, because it is open, failed, or took too long, is listed; the next"
        " mount has it again. Ctrl-C leaves the rest and unmounts."
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path)
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for uploads, and then for the daemon; default: 60",
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs import launcher, mountpoint

    path = mountpoint.resolve(arguments.mountpoint)
    mounted = mountpoint.find_mounted(path)
    staged: list[dict[str, Any]] = []
    unsent: list[dict[str, Any]] = []
    if mounted is not None and mounted.fstype == mountpoint.FSTYPE:
        staged = _drain(mounted.device, arguments.timeout)
        unsent = _unsent(mounted.device)
    launcher.stop(path, arguments.timeout)
    for dataset in staged:
        reason = f": {dataset['reason']}" if dataset["reason"] else ""
        say(f"stays staged: {dataset['name']} ({dataset['state']}){reason}", file=sys.stderr)
    for change in unsent:
        say(
            f"not sent: {change['name']}/{change['path']}: {change['reason']};"
            f" kept in {change['file']}",
            file=sys.stderr,
        )
    return 0


def _unsent(device: int) -> list[dict[str, Any]]:
    """Return which changes of frozen datasets the server refused, or is not there for."""
    from dserverfs import control
    from dserverfs.commands import mounted
    from dserverfs.errors import UsageError

    socket = mounted.socket_of(device)
    if not socket.exists():
        return []
    try:
        changes: list[dict[str, Any]] = mounted.last(control.ask(socket, {"command": "unsent"}))
    except UsageError:
        return []  # the daemon is gone, or does not answer: unmounting says so
    return [change for change in changes if change["reason"]]


def _drain(device: int, timeout_s: float) -> list[dict[str, Any]]:
    """Have the daemon freeze what it may; return what stays staged."""
    from dserverfs import control
    from dserverfs.commands import mounted
    from dserverfs.commands.progress import ProgressLine
    from dserverfs.errors import UsageError

    socket = mounted.socket_of(device)
    if not socket.exists():
        return []
    staged: list[dict[str, Any]] = []
    try:
        with ProgressLine() as line:
            for answer in control.ask(socket, {"command": "drain", "timeout_s": timeout_s}):
                if progress := answer.get("progress"):
                    total = progress["datasets_total"]
                    line.show(f"freezing: {progress['datasets_done']} of {total} datasets")
                else:
                    staged = answer["result"]
    except KeyboardInterrupt:
        staged = mounted.last(control.ask(socket, {"command": "pending"}))
    except UsageError:
        return []  # the daemon is gone, or does not answer: unmounting says so
    return staged
