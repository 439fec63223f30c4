"""`dserverfs freeze`: freezes a staged dataset now."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dserverfs.cli.arguments import Commands, example, say

if TYPE_CHECKING:
    from dserverfs.cli.mounted import MountedPath


def add(commands: Commands) -> None:
    parser = commands.add_parser("freeze", help="upload and register a dataset made in a mount")
    parser.description = (
        "Freeze the dataset at DIR at once, armed or not, and wait until it is uploaded and"
        " registered. Prints its URI. A dataset that cannot be frozen stays staged; freeze can be"
        " tried again. What it would make is shown by `dserverfs diff DIR`."
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="the dataset, in a mount")
    parser.add_argument(
        "--layout",
        choices=["items", "dtool"],
        help="how to read DIR where both are possible: every file an item, or dtool's layout",
    )
    readme = parser.add_mutually_exclusive_group()
    readme.add_argument(
        "-m",
        "--message",
        metavar="TEXT",
        help="describe the dataset in README.yml, which must not be there yet",
    )
    readme.add_argument(
        "-e",
        "--edit",
        action="store_true",
        help="write README.yml in $EDITOR first; a new one begins as dtool's template",
    )
    parser.epilog = example(
        "dserverfs freeze ~/lab/my-results",
        "dserverfs freeze ~/lab/my-results --message 'Growth of line 7'",
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.base.progress import Progress
    from dserverfs.cli import mounted
    from dserverfs.cli.progress import ProgressLine

    place = mounted.find(arguments.directory)
    if arguments.message is not None or arguments.edit:
        _write_readme(place, arguments.message)
    try:
        with ProgressLine() as line:
            for answer in place.ask("freeze", layout=arguments.layout):
                if progress := answer.get("progress"):
                    line.progress(answer.get("phase", "uploading"), Progress(**progress))
    except KeyboardInterrupt:
        directory = shlex.quote(str(arguments.directory))
        say(
            f"the mount goes on with the freeze: dserverfs status {directory} says how far it is;"
            f" a change of a file in it, or dserverfs discard {directory}, stops it",
            file=sys.stderr,
        )
        raise
    result = answer["result"]
    say(result["uri"])
    for note in result["notes"]:
        say(f"note: {note}")
    return 0


def _write_readme(place: MountedPath, message: str | None) -> None:
    """Write the README of what is staged there; raises UsageError where nothing is."""
    from dserverfs.cli import mounted, readme
    from dserverfs.settings import Settings

    staged = mounted.last(place.ask("staged"))
    if message is not None:
        readme.describe(place.path, message)
        return
    with _not_by_itself(place.path) if staged["armed"] else contextlib.nullcontext():
        readme.edit(place.path, Settings.load())


@contextlib.contextmanager
def _not_by_itself(directory: Path) -> Iterator[None]:
    """Keep a dataset from being frozen while somebody takes time; raises UsageError."""
    from dserverfs.base.errors import UsageError
    from dserverfs.tree.filesystem import FREEZE_ATTRIBUTE

    try:
        os.setxattr(directory, FREEZE_ATTRIBUTE, b"manual")
    except OSError as error:
        raise UsageError(
            f"{directory}: cannot wait for an editor ({error.strerror}): it may be frozen already"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it was discarded
            os.setxattr(directory, FREEZE_ATTRIBUTE, b"auto")
