"""`dserverfs discard`: deletes a staged dataset, or a change that is not sent."""

from __future__ import annotations

import argparse
from pathlib import Path

from dserverfs.cli.arguments import Commands, example


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "discard", help="delete a dataset that is not frozen yet, or a change that is not sent"
    )
    parser.description = (
        "Delete, for good, the staged dataset at PATH and everything in it; or the unsent change"
        " of PATH, a file of a frozen dataset."
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="a dataset or a file, in a mount")
    parser.epilog = example("dserverfs discard ~/lab/my-results")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.cli import mounted

    place = mounted.find(arguments.path)
    print(f"discarded: {mounted.last(place.ask('discard'))}")
    return 0
