"""`dserverfs trace`: records what a command reads, from mounts and by Python without one."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from dserverfs.base.printable import counted
from dserverfs.cli.arguments import Commands, example, say

if TYPE_CHECKING:
    from dserverfs.mount.control import Address

# As shells and env(1) say it of a command.
EXIT_NOT_FOUND = 127
EXIT_CANNOT_RUN = 126
EXIT_BY_SIGNAL = 128


def add(commands: Commands) -> None:
    parser = commands.add_parser("trace", help="record what a command reads of datasets")
    parser.description = (
        "Run COMMAND, and write a line of JSON for each item that it, or a process it started,"
        " opened in a mount, or without one by Python: dataset, identifier, path, hash, and which"
        " bytes were read, in the order of the first read. The exit status is the command's. warm"
        " --plan FILE fetches the same bytes, here or on another machine."
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where the lines go; default: standard error"
    )
    parser.add_argument(
        "words", metavar="-- COMMAND", nargs=argparse.REMAINDER, help="what to run, and how"
    )
    parser.epilog = example(
        "dserverfs trace -o read.jsonl -- python analysis.py ~/lab/my-dataset",
        "dserverfs warm --plan read.jsonl",
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.base.errors import UsageError

    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not words:
        raise UsageError("name the command to run: dserverfs trace -o FILE -- COMMAND ...")
    with _output(arguments.output) as file, tempfile.TemporaryDirectory() as scratch:
        traced = _begin()
        of_programs = Path(scratch) / "read.jsonl"
        status = _status_of(words, of_programs)
        items = [*_of_mounts(traced), *_of_programs(of_programs)]
        for item in _merged(items):
            print(json.dumps(item), file=file)
    if not traced and not items:
        say("dserverfs: nothing is mounted, and nothing was read without a mount", file=sys.stderr)
    return status


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[TextIO]:
    """Give what the lines are written to; it is made before the command runs."""
    from dserverfs.base.errors import UsageError

    if path is None:
        yield sys.stderr
        return
    try:
        file = open(path, "w")  # noqa: SIM115 - what goes wrong in the block is not said of it
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    with file:
        yield file


class _Traced(NamedTuple):
    """A mount that notes what is read from it."""

    path: str
    address: Address
    number: int


def _begin() -> list[_Traced]:
    """Have every mount of this user note what this process and those below it read."""
    from dserverfs.base.errors import UsageError
    from dserverfs.cli import mounted
    from dserverfs.mount import control

    own = [mount for mount in mounted.all_mounts() if mounted.is_own(mount)]
    traced = []
    for mount in own:
        try:
            number = mounted.last(control.ask(mount.address, {"command": "trace"}))
        except UsageError as error:
            say(f"dserverfs: {mount.path} is not traced: {error}", file=sys.stderr)
        else:
            traced.append(_Traced(mount.path, mount.address, int(number)))
    return traced


def _status_of(words: Sequence[str], of_programs: Path) -> int:
    """Run a command and return its exit status as a shell would tell it.

    Programs in it write to a file what they read without a mount.
    """
    from dserverfs.base import child_processes
    from dserverfs.settings import TRACE_FILE

    # A process whose parent ends becomes a child of this one, and is traced on.
    child_processes.adopt_orphans()
    try:
        # All of it: the command is the user's.
        command = subprocess.Popen(words, env={**os.environ, TRACE_FILE: str(of_programs)})
    except FileNotFoundError:
        say(f"dserverfs: {words[0]}: no such command", file=sys.stderr)
        return EXIT_NOT_FOUND
    except OSError as error:
        say(f"dserverfs: {words[0]}: cannot be run: {error.strerror}", file=sys.stderr)
        return EXIT_CANNOT_RUN
    # A terminal sends these to the command as well, which decides; the others are passed on.
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda number, frame: None)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: command.send_signal(number))
    status = command.wait()
    return status if status >= 0 else EXIT_BY_SIGNAL - status


def _of_mounts(traced: Sequence[_Traced]) -> Iterator[dict[str, Any]]:
    """Yield what was read from each mount, whose traces end."""
    from dserverfs.base.errors import UsageError
    from dserverfs.cli import mounted
    from dserverfs.mount import control

    for mount in traced:
        request = {"command": "traced", "trace": mount.number}
        try:
            answer = mounted.last(control.ask(mount.address, request))
        except UsageError as error:
            say(f"dserverfs: what was read from {mount.path} is lost: {error}", file=sys.stderr)
            continue
        if answer["left_out"]:
            say(
                f"dserverfs: {mount.path}: the trace has no room for"
                f" {counted(answer['left_out'], 'item')} that were opened",
                file=sys.stderr,
            )
        yield from answer["items"]


def _of_programs(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what programs wrote down that read without a mount."""
    from dserverfs.reading.traced_items import lines_in

    try:
        lines = list(lines_in(path))
    except FileNotFoundError:
        return
    if wrong := lines.count(None):
        say(f"dserverfs: lost of what was read: {counted(wrong, 'line')}", file=sys.stderr)
    yield from (line for line in lines if line is not None)


def _merged(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a line for each item, in the order of the first read; those not read are last."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for item in items:
        _merge(found.setdefault((item["uri"], item["identifier"]), item), item)
    never = float("inf")
    return sorted(
        found.values(),
        key=lambda item: never if item["first_read_at"] is None else item["first_read_at"],
    )


def _merge(item: dict[str, Any], other: dict[str, Any]) -> None:
    """Add what was read of the same item elsewhere, or another time."""
    ranges: list[list[int]] = []
    for start, end in sorted([*item["ranges"], *other["ranges"]]):
        if ranges and start <= ranges[-1][1]:
            ranges[-1][1] = max(end, ranges[-1][1])
        else:
            ranges.append([start, end])
    moments = [each["first_read_at"] for each in (item, other) if each["first_read_at"] is not None]
    item["ranges"] = ranges
    item["first_read_at"] = min(moments, default=None)
    item["bytes_read"] = sum(end - start for start, end in ranges)
