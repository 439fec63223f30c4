"""`dserverfs doctor`: looks at what a mount needs, and says what is wrong and what to do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dserverfs.cli.arguments import Commands, example, is_web_address, say, seconds, server_of

if TYPE_CHECKING:
    from dserverfs.cli.findings import Check, Finding
    from dserverfs.settings import Settings

EXIT_WRONG = 1
# Of its time a check is told: so that it ends by itself, with a reason.
SHARE = 0.8


def add(commands: Commands) -> None:
    parser = commands.add_parser("doctor", help="look for what is wrong, and say what to do")
    parser.description = (
        "Look at what is installed, at FUSE, the mount helper, dtool, directories, mounts and"
        " logins; with SERVER also at the server, its clock and routes, your token and rights, and"
        " whether the store can be read, and how fast. Prints a line for each: ok, warning or"
        " problem, and what to do. Exits with 1 if there is a problem. Changes nothing."
    )
    parser.add_argument(
        "server",
        metavar="SERVER",
        nargs="?",
        help="HOST[:PORT], dserver://HOST[:PORT] or https://...",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long a check may take (default: 10)",
    )
    parser.epilog = example("dserverfs doctor", "dserverfs doctor data.example.org")
    parser.set_defaults(command=_run)


def _seconds(text: str) -> float:
    found = seconds(text)
    if not found:  # a check would have no time to find anything out
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return found


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.cli.findings import State

    server = None if arguments.server is None else server_of(arguments.server)
    found = []
    for name, finding in _findings(server, arguments.server or "", arguments.timeout):
        state, todo = finding.state.value, finding.todo
        found.append({"check": name, "state": state, "said": finding.said, "todo": todo})
        if not arguments.json:
            say(f"{state:8} {name}: {finding.said}{': ' if todo else ''}{todo}")
    if arguments.json:
        print(json.dumps(found, indent=2))
    wrong = any(each["state"] == State.PROBLEM.value for each in found)
    return EXIT_WRONG if wrong else 0


def _findings(server: str | None, address: str, timeout_s: float) -> Iterator[tuple[str, Finding]]:
    """Yield what each check finds, and what it logs."""
    from dserverfs.base.errors import UsageError
    from dserverfs.cli import machine_checks
    from dserverfs.cli.findings import finding_of, problem, warnings_of
    from dserverfs.settings import URL, Settings

    try:
        settings = Settings.load()
        if server is not None and is_web_address(address):
            settings = settings.overridden(server, {URL: address.rstrip("/")})
        wanted = _all(server, settings, timeout_s * SHARE)
    except UsageError as error:
        yield "settings", problem(str(error))
        wanted = machine_checks.of_programs(timeout_s * SHARE)
    logged: list[Finding] = []
    with warnings_of(logged):
        try:
            for check in wanted:
                yield check.name, finding_of(check, timeout_s)
                while logged:
                    yield check.name, logged.pop(0)
        except UsageError as error:  # a setting is read when it is needed
            yield "settings", problem(str(error))


def _all(server: str | None, settings: Settings, timeout_s: float) -> Iterator[Check]:
    from dserverfs.cli import machine_checks
    from dserverfs.cli.server_checks import ServerChecks
    from dserverfs.client import remote

    yield from machine_checks.of_programs(timeout_s)
    yield from machine_checks.of_settings(settings)
    if server is not None:
        with remote(server, settings) as asked:
            yield from ServerChecks(server, asked, timeout_s).all()
