"""`dserverfs freeze`: freezes a staged dataset now."""

from __future__ import annotations

import argparse
from pathlib import Path

from dserverfs.cli.arguments import Commands, say


def add(commands: Commands) -> None:
    parser = commands.add_parser("freeze", help="upload and register a dataset made in a mount")
    parser.description = (
        "Freeze the dataset at DIR at once, armed or not, and wait until it is uploaded and"
        " registered. Prints its URI. A dataset that cannot be frozen stays staged; freeze can be"
        " tried again."
    )
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument(
        "--layout",
        choices=["items", "dtool"],
        help="how to read DIR where both are possible: every file an item, or dtool's layout",
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.base.progress import Progress
    from dserverfs.cli import mounted
    from dserverfs.cli.progress import ProgressLine, text_of

    place = mounted.find(arguments.directory)
    with ProgressLine() as line:
        line.show("hashing")
        for answer in place.ask("freeze", layout=arguments.layout):
            if progress := answer.get("progress"):
                line.show(text_of(Progress(**progress)))
    result = answer["result"]
    say(result["uri"])
    for note in result["notes"]:
        say(f"note: {note}")
    return 0
