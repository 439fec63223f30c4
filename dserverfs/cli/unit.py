"""`dserverfs unit`: prints units of systemd for mounts and for the server."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from dserverfs.base.errors import UsageError
from dserverfs.cli.arguments import Commands, example, say

DIRECTORY = Path(__file__).parents[1] / "units"
_COMMAND = "@DSERVERFS@"  # stands in the files for the path of this program
_PYTHON = "@PYTHON@"  # and for that of the Python that runs it


def add(commands: Commands) -> None:
    parser = commands.add_parser("unit", help="show a unit for systemd")
    parser.description = (
        "Print a unit of systemd, with the path of this dserverfs in it. Its first line says which"
        " file it is to be, the next ones how it is used. Without NAME: list them."
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="user, system, mount, ...")
    parser.epilog = example("dserverfs unit user")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    found = units()
    if arguments.name is None:
        for name, path in found.items():
            first = path.read_text().partition("\n")[0]
            say(f"{name:10} {re.split('[ :,]', first)[1]}")
        return 0
    if arguments.name not in found:
        raise UsageError(f"no unit {arguments.name}; there are: {', '.join(found)}")
    text = found[arguments.name].read_text().replace(_COMMAND, _command())
    print(text.replace(_PYTHON, _quoted(Path(sys.executable))), end="")
    return 0


def units() -> dict[str, Path]:
    """Return the files by the names of the units, in alphabetical order."""
    return {path.stem: path for path in sorted(DIRECTORY.iterdir())}


def _command() -> str:
    """Return how a unit runs this program, as the values of ExecStart= are written."""
    program = Path(sys.argv[0]).absolute()
    if program.name == "dserverfs" and os.access(program, os.X_OK):
        return _quoted(program)
    return f"{_quoted(Path(sys.executable))} -m dserverfs"


def _quoted(path: Path) -> str:
    # systemd.service(5), systemd.unit(5): quotes, backslashes, specifiers.
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'
