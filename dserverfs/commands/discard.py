"""`dserverfs discard`: a staged dataset is deleted, with all that is in it."""

from __future__ import annotations

import argparse
from pathlib import Path

from dserverfs.commands.common import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser("discard", help="delete a dataset that is not frozen yet")
    parser.description = "Delete the staged dataset at DIR and everything in it, for good."
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.commands import mounted

    place = mounted.find(arguments.directory)
    print(f"discarded: {mounted.last(place.ask('discard'))}")
    return 0
