"""`dserverfs discard`: a staged dataset, or a change that was not sent, is deleted."""

from __future__ import annotations

import argparse
from pathlib import Path

from dserverfs.cli.arguments import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "discard", help="delete a dataset that is not frozen yet, or a change that is not sent"
    )
    parser.description = (
        "Delete the staged dataset at PATH and everything in it, for good; or what was written"
        " to the file PATH of a frozen dataset and could not be sent."
    )
    parser.add_argument("path", metavar="PATH", type=Path)
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.cli import mounted

    place = mounted.find(arguments.path)
    print(f"discarded: {mounted.last(place.ask('discard'))}")
    return 0
