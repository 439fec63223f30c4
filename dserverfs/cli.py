"""The command line: arguments in, one line and an exit status out."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from dserverfs import __version__, commands
from dserverfs.errors import DserverfsError
from dserverfs.printable import PrintableFormatter

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # what a shell reports for SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0, 1 (failed, said why) or 2 (wrong arguments)."""
    argv = sys.argv[1:] if argv is None else argv
    # What is warned of where no log was set up.
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
    arguments = _parser(argv).parse_args(argv)
    try:
        status: int = arguments.command(arguments)
        return status
    except DserverfsError as error:
        print(f"dserverfs: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dserverfs", description="Use the datasets of a dserver as files."
    )
    parser.add_argument("--version", action="version", version=f"dserverfs {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in commands.named(argv):
        command.add(subparsers)
    return parser
