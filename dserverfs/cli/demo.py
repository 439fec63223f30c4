"""`dserverfs demo`: serves and mounts real datasets on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from dserverfs.cli.arguments import Commands, example, missing_extra


def add(commands: Commands) -> None:
    command = commands.add_parser("demo", help="serve and mount two real datasets")
    command.description = "Serve and mount two real datasets on this machine, until Ctrl-C."
    command.add_argument(
        "mountpoint",
        metavar="MOUNTPOINT",
        type=Path,
        nargs="?",
        help="default: a new temporary directory",
    )
    command.add_argument("--once", action="store_true", help="show the datasets and end")
    command.epilog = example("dserverfs demo --once")
    command.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        from dserverfs.cli import demo_mount
        from dserverfs.settings import Settings
    except ModuleNotFoundError as error:
        raise missing_extra("demo", error) from error

    demo_mount.run(
        arguments.mountpoint, Settings.load().data_directory() / "demo", once=arguments.once
    )
    return 0
