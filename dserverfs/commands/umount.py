"""`dserverfs umount`: the end of a mount."""

from __future__ import annotations

import argparse
from pathlib import Path

from dserverfs.commands.common import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser("umount", help="end a mount")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path)
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="default: 60"
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs import launcher, mountpoint

    launcher.stop(mountpoint.resolve(arguments.mountpoint), arguments.timeout)
    return 0
