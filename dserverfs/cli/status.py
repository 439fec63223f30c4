"""`dserverfs status`: describes a path in a mount, or lists mounts and all that is not sent."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dserverfs.base.printable import printable
from dserverfs.cli.arguments import LEVELS, Commands, example, say

EXIT_SILENT = 1
INTERVAL_S = 2.0
_CLEARED = "\x1b[H\x1b[J"  # the cursor at the top, and nothing behind it


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "status", help="list mounts, datasets that are not frozen, unsent changes, and errors"
    )
    parser.description = (
        "Describe PATH: a frozen dataset, an item of one, or a staged dataset with its state; and"
        " the errors that programs were given last at or below it, each with its reason and what"
        " to do. Without PATH: list this user's mounts with their tokens, caches and transfers,"
        " the datasets that are not frozen, and the changes of frozen datasets that are not sent,"
        " each with the reason. Exits with 1 if a mount does not answer."
    )
    parser.add_argument("path", metavar="PATH", type=Path, nargs="?", help="anything in a mount")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--watch",
        action="store_true",
        help=f"again and again, each {INTERVAL_S:.0f} s, until Ctrl-C",
    )
    parser.add_argument(
        "--log-level",
        type=str.lower,
        choices=LEVELS,
        help="change what the mount of PATH logs from now on, and say where its log is",
    )
    parser.epilog = example("dserverfs status", "dserverfs status ~/lab/my-results")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.cli import status_facts, status_text

    if arguments.log_level is not None:
        return _set_log_level(arguments.path, arguments.log_level)
    gather = status_facts.of_all
    lines: Callable[[dict[str, Any]], Iterator[str]] = status_text.of_all
    if arguments.path is not None:
        gather = functools.partial(status_facts.of_path, arguments.path)
        lines = status_text.of_path
    if arguments.watch:
        _watch(
            lambda: [json.dumps(gather())] if arguments.json else map(printable, lines(gather()))
        )
        return 0
    facts = gather()
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        for line in lines(facts):
            say(line)
    if not all(mount["answers"] for mount in facts.get("mounts", ())):
        return EXIT_SILENT  # of what it has staged, only what the disk says is told
    if facts.get("mounted") is False:
        return EXIT_SILENT  # what is told is of a mount that has ended
    return 0


def _watch(report: Callable[[], Iterable[str]]) -> None:
    """Print the lines of a report, and of another one after a while, until Ctrl-C."""
    is_redrawn = sys.stdout.isatty()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            lines = list(report())
            if is_redrawn:
                size = shutil.get_terminal_size()
                lines = [line[: size.columns] for line in lines[: size.lines - 1]]
                print(_CLEARED, end="")
            print("\n".join(lines), flush=True)
            time.sleep(INTERVAL_S)


def _set_log_level(path: Path | None, level: str) -> int:
    from dserverfs.base.errors import UsageError
    from dserverfs.cli import mounted

    if path is None:
        raise UsageError("--log-level: name a path in the mount that shall log so")
    answer = mounted.last(mounted.find(path).ask("log", level=level))
    say(f"log level: {answer['level']}")
    say(f"log: {answer['file'] or 'standard error of the mount'}")
    return 0
