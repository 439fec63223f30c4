"""`dserverfs find`: finds datasets, and prints them for people, for scripts or as JSON."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dserverfs.base.limits import is_uuid
from dserverfs.cli.arguments import Commands, example, is_web_address, say, server_of

if TYPE_CHECKING:
    from dserverfs.base.conditions import AnnotationIs, Conditions, Findings
    from dserverfs.base.model import UUID, DserverURI
    from dserverfs.cli.found_datasets import Hit
    from dserverfs.settings import Settings

# As those of grep: `if dserverfs find ...` must not take trouble for an answer.
EXIT_NOTHING = 1
EXIT_TROUBLE = 2

_MD5 = re.compile(r"[0-9a-f]{32}\Z")


def add(commands: Commands) -> None:
    parser = commands.add_parser("find", help="find datasets by tag, creator, words, date, hash")
    parser.description = (
        "Find the datasets for which all conditions hold, the newest first. Exits with 0 if there"
        " is one, with 1 if there is none, and with 2 if something could not be asked."
    )
    parser.add_argument(
        "targets",
        metavar="BASE",
        nargs="*",
        help="dserver://URI, or a path in a mount; default: all servers that you are logged in to",
    )
    parser.add_argument(
        "--server",
        metavar="SERVER",
        dest="servers",
        action="append",
        default=[],
        help="HOST[:PORT] or https://HOST, in place of BASE",
    )
    conditions = parser.add_argument_group("conditions", "Each may be given several times.")
    for option, metavar, kind, text in (
        ("--tag", "TAG", str, "it has that tag"),
        ("--creator", "NAME", str, "that user made it"),
        ("--text", "WORDS", str, "any of the words is in what people wrote about it"),
        ("--annotation", "NAME[=VALUE]", _annotation, "it has that annotation, with that value"),
        ("--newer", "DATE", _moment, "it was frozen then or later; 2026-01-31, or with a time"),
        ("--older", "DATE", _moment, "it was frozen before"),
        ("--name", "PATTERN", str, "its name is like that, such as 'plate-*'"),
        ("--uuid", "UUID", _uuid, "it has that uuid"),
        ("--hash", "MD5", _hash, "it has an item of that MD5; every manifest is looked into"),
    ):
        conditions.add_argument(
            option, metavar=metavar, type=kind, action="append", default=[], help=text
        )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="as JSON")
    output.add_argument("--uri", action="store_true", help="a URI a line")
    output.add_argument(
        "-0", "--null", action="store_true", help="URIs, each with a NUL behind it, for xargs -0"
    )
    parser.epilog = example("dserverfs find ~/lab --tag wheat --newer 2026-01-31")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.base.errors import DserverfsError
    from dserverfs.base.model import DserverURI
    from dserverfs.cli.found_datasets import Hit

    hits: dict[DserverURI, Hit] = {}  # several places may have the same
    trouble = 0
    try:
        conditions, places = _conditions(arguments), list(_places(arguments))
    except DserverfsError as error:
        return _tell(error)
    for place in places:
        server = place.uri.server
        try:
            findings = _find(place, conditions)
        except DserverfsError as error:  # another server may answer
            said = str(error).removeprefix(f"{place.uri}: ")
            trouble = _tell(f"{place.uri}: {said}")
            continue
        for found in findings.found:
            uri = DserverURI(server, found.dataset.base_uri, found.dataset.uuid)
            hits[uri] = Hit(uri, found)
        for dataset, reason in findings.failed:
            trouble = _tell(f"{dataset.uri}: cannot be looked into: {reason}")
    _print(arguments, sorted(hits.values(), key=lambda hit: -hit.found.dataset.frozen_at))
    return trouble or (0 if hits else EXIT_NOTHING)


class _Place(NamedTuple):
    """Where is looked: a server, a base URI or a dataset."""

    uri: DserverURI
    settings: Settings


def _places(arguments: argparse.Namespace) -> Iterator[_Place]:
    """Yield the places that were asked for; raises UsageError."""
    from dserverfs.base.errors import UsageError
    from dserverfs.base.model import DserverURI
    from dserverfs.settings import URL, Settings

    settings = Settings.load()
    for target in arguments.targets:
        yield _Place(_uri_of(target), settings)
    for text in arguments.servers:
        server = server_of(text)
        address = {URL: text.rstrip("/")} if is_web_address(text) else {}
        yield _Place(DserverURI(server), settings.overridden(server, address))
    if arguments.targets or arguments.servers:
        return
    servers = settings.servers()
    if not servers:
        raise UsageError(
            "no server is known; name one: dserverfs find dserver://HOST, or log in:"
            " dserverfs login HOST"
        )
    for server in servers:
        yield _Place(DserverURI(server), settings)


def _uri_of(target: str) -> DserverURI:
    """Return the URI that a target is, or of what is at a path in a mount."""
    from dserverfs.base.model import DserverURI
    from dserverfs.cli import mounted
    from dserverfs.cli.remote_items import is_uri

    if is_uri(target):
        return DserverURI.parse(target)
    facts = mounted.last(mounted.find(Path(target)).ask("status"))
    return DserverURI.parse(facts.get("uri") or facts["base_uri"])  # what is staged has no URI


def _find(place: _Place, conditions: Conditions) -> Findings:
    from dserverfs.cli.progress import ProgressLine
    from dserverfs.client import Client

    with Client(place.uri.server, place.settings) as client, ProgressLine() as line:
        return client.catalogue.finder.find(
            place.uri,
            conditions,
            lambda done, total: line.count("looking into", done, total, "dataset"),
        )


# Arguments


def _conditions(arguments: argparse.Namespace) -> Conditions:
    from dserverfs.base.conditions import Conditions

    everything = Conditions()
    return Conditions(
        tags=tuple(arguments.tag),
        creators=tuple(arguments.creator),
        texts=tuple(arguments.text),
        annotations=tuple(arguments.annotation),
        names=tuple(arguments.name),
        uuids=tuple(arguments.uuid),
        hashes=tuple(arguments.hash),
        frozen_from=max(arguments.newer, default=everything.frozen_from),
        frozen_before=min(arguments.older, default=everything.frozen_before),
    )


def _annotation(text: str) -> AnnotationIs:
    from dserverfs.base.conditions import AnnotationIs

    name, equals, value = text.partition("=")
    return AnnotationIs(name, value if equals else None)


def _moment(text: str) -> float:
    """Return epoch seconds of an ISO date; without a zone it is this machine's."""
    try:
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a date such as 2026-01-31 or 2026-01-31T14:30"
        ) from error


def _uuid(text: str) -> UUID:
    from dserverfs.base.model import UUID

    if not is_uuid(text.lower()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a uuid")
    return UUID(text.lower())


def _hash(text: str) -> str:
    if not _MD5.match(text.lower()):
        raise argparse.ArgumentTypeError(f"{text!r} is not an MD5, which has 32 hexadecimal digits")
    return text.lower()


# Output


def _tell(trouble: object) -> int:
    """Print a line on standard error; return the exit status for it."""
    say(f"dserverfs: {trouble}", file=sys.stderr)
    return EXIT_TROUBLE


def _print(arguments: argparse.Namespace, hits: Sequence[Hit]) -> None:
    from dserverfs.cli.found_datasets import table

    if arguments.json:
        print(json.dumps([hit.facts() for hit in hits], indent=2))
    elif arguments.uri or arguments.null:
        end = "\0" if arguments.null else "\n"
        print("".join(f"{hit.uri}{end}" for hit in hits), end="")
    else:
        is_terminal = sys.stdout.isatty()
        if not hits:
            if is_terminal:  # elsewhere the status says it
                say("no dataset is like that", file=sys.stderr)
            return
        for line in table(hits, shutil.get_terminal_size().columns if is_terminal else None):
            print(line)
