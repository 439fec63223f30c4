"""The command line: arguments in, one line and an exit status out."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from dserverfs.base.errors import DserverfsError
from dserverfs.base.model import SCHEME
from dserverfs.base.printable import PrintableFormatter
from dserverfs.cli import parser

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # what a shell reports for SIGINT
EXIT_BROKEN_PIPE = 141  # and for SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0, 1 (failed, said why) or 2 (wrong arguments)."""
    # For warnings where no log is set up.
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
    _have_standard_streams()
    output = sys.stdout
    try:
        with contextlib.redirect_stdout(_Output(output)):
            try:
                return _run(sys.argv[1:] if argv is None else argv)
            finally:  # argparse exits after its help
                sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except _OutputFailed as failed:
        # The interpreter flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        if isinstance(failed.error, BrokenPipeError):  # `dserverfs status | head`
            return EXIT_BROKEN_PIPE
        reason = failed.error.strerror
        print(f"dserverfs: standard output: cannot be written: {reason}", file=sys.stderr)
        return EXIT_FAILED


class _OutputFailed(Exception):
    """Standard output takes nothing more."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


class _Output(io.TextIOBase):
    """Standard output, whose errors differ from all others."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            raise _OutputFailed(error) from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise _OutputFailed(error) from error

    def close(self) -> None:
        """Do nothing: the stream is not ours, and may be closed when this object goes."""

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()


def _run(argv: Sequence[str]) -> int:
    if argv and argv[0].startswith(f"{SCHEME}://"):  # mount.fuse3(8), where there is no helper
        argv = ["mount", *argv]
    if not argv:  # as git does
        parser.of(argv).print_help()
        return EXIT_FAILED
    arguments = parser.of(argv).parse_args(argv)
    try:
        status: int = arguments.command(arguments)
    except DserverfsError as error:
        print(f"dserverfs: {error}", file=sys.stderr)
        return EXIT_FAILED
    return status


def _have_standard_streams() -> None:
    """Have all three, and output that takes any name.

    /dev/null is where a stream is closed, lest a file that is opened takes its number.

    What is written to a closed standard output is an error (EBADF), as it is of other programs.
    """
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # ASCII has no letter for most names
            stream.reconfigure(errors="backslashreplace")
