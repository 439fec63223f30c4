"""The command line: which commands there are, their arguments, their exit status.

Knows how to name things and how to report a DserverfsError; what a command does
is imported when it runs, so that `--help` and the other commands need none of
its dependencies. A command is a function `_run_<command>(arguments) -> int` and
an `_add_<command>` that defines its arguments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dserverfs import __version__
from dserverfs.errors import DserverfsError, UsageError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # what a shell reports for SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; argparse's own errors exit with 2."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except DserverfsError as error:
        print(f"dserverfs: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dserverfs", description="Use the dtool datasets of a dserver as files."
    )
    parser.add_argument("--version", action="version", version=f"dserverfs {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_serve(commands)
    return parser


_Commands = argparse._SubParsersAction  # argparse has no public name for it


def _add_serve(commands: _Commands[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "serve",
        help="run a dserver with its own S3 store on this machine",
        description="Run a dserver with its own S3 store on this machine, until SIGINT or SIGTERM."
        " Prints its URL, its base URI and the path of a token file when it is ready.",
    )
    command.add_argument(
        "--data",
        metavar="DIR",
        help="where everything is kept (default: $XDG_DATA_HOME/dserverfs/server)",
    )
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    command.add_argument(
        "--port", type=int, default=5000, help="0 takes any free one (default: %(default)s)"
    )
    command.add_argument(
        "--bucket",
        metavar="NAME",
        default="datasets",
        help="bucket of the base URI s3://NAME (default: %(default)s)",
    )
    command.set_defaults(run=_run_serve)


def _run_serve(arguments: argparse.Namespace) -> int:
    try:
        from dserverfs.server.serve import ServeOptions, serve

        return serve(
            ServeOptions.from_arguments(
                data=arguments.data,
                host=arguments.host,
                port=arguments.port,
                bucket=arguments.bucket,
            )
        )
    except ModuleNotFoundError as error:
        raise _missing("server", error) from error


def _missing(extra: str, error: ModuleNotFoundError) -> Exception:
    """Return what to raise when a module of an optional extra is not installed."""
    if error.name is None or error.name.partition(".")[0] == "dserverfs":
        return error  # a fault of ours, not of the installation
    return UsageError(f"{error.name} is not installed; run: pip install 'dserverfs[{extra}]'")
