"""`dserverfs status`: describes a path in a mount, or lists mounts and all that is not sent."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dserverfs.cli.arguments import LEVELS, Commands, example, moment, say

if TYPE_CHECKING:
    from dserverfs.mount.control import Address
    from dserverfs.settings import Settings

EXIT_SILENT = 1


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "status", help="list mounts, datasets that are not frozen, and unsent changes"
    )
    parser.description = (
        "Describe PATH: a frozen dataset, an item of one, or a staged dataset with its state."
        " Without PATH: list this user's mounts, the datasets that are not frozen, and the"
        " changes of frozen datasets that are not sent, each with the reason, and when tokens"
        " expire. Exits with 1 if a mount does not answer."
    )
    parser.add_argument("path", metavar="PATH", type=Path, nargs="?", help="anything in a mount")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--log-level",
        type=str.lower,
        choices=LEVELS,
        help="change what the mount of PATH logs from now on, and say where its log is",
    )
    parser.epilog = example("dserverfs status", "dserverfs status ~/lab/my-results")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.log_level is not None:
        return _set_log_level(arguments.path, arguments.log_level)
    facts = _all() if arguments.path is None else _one(arguments.path)
    if arguments.json:
        print(json.dumps(facts, indent=2))
    elif arguments.path is None:
        _print_all(facts)
    else:
        for key, value in facts.items():
            if value is not None:
                say(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")
    if arguments.path is None and not all(mount["answers"] for mount in facts["mounts"]):
        return EXIT_SILENT  # of what it has staged, only what the disk says is told
    return 0


def _set_log_level(path: Path | None, level: str) -> int:
    from dserverfs.base.errors import UsageError
    from dserverfs.cli import mounted

    if path is None:
        raise UsageError("--log-level: name a path in the mount that shall log so")
    answer = mounted.last(mounted.find(path).ask("log", level=level))
    say(f"log level: {answer['level']}")
    say(f"log: {answer['file'] or 'standard error of the mount'}")
    return 0


def _one(path: Path) -> dict[str, Any]:
    from dserverfs.cli import mounted

    found: dict[str, Any] = mounted.last(mounted.find(path).ask("status"))
    return found


def _all() -> dict[str, Any]:
    from dserverfs.base import mountinfo
    from dserverfs.base.errors import UsageError
    from dserverfs.base.model import DserverURI
    from dserverfs.cli import mounted
    from dserverfs.mount import control
    from dserverfs.settings import Settings
    from dserverfs.tree import description
    from dserverfs.writing.edits import journal
    from dserverfs.writing.staging import left_over
    from dserverfs.writing.staging.area import Staging, servers

    mounts = []
    staged: dict[str, dict[str, Any]] = {}
    unsent: dict[str, dict[str, Any]] = {}
    for mount in mountinfo.dserverfs_mounts():
        if mount.owner != os.geteuid():
            continue
        entry: dict[str, Any] = {"path": mount.path, "uri": mount.source, "answers": True}
        address = mounted.address_of(mount)
        try:
            for known in mounted.last(control.ask(address, {"command": "pending"})):
                staged[known["directory"]] = known
            for change in mounted.last(control.ask(address, {"command": "unsent"})):
                unsent[change["file"]] = change
            entry["token"] = _token_of(address)
        except UsageError:
            entry["answers"] = False
        with contextlib.suppress(UsageError):  # of an earlier version
            if entry["answers"]:
                entry["compared"] = mounted.last(control.ask(address, {"command": "compared"}))
        mounts.append(entry)
    settings = Settings.load()
    directory = settings.staging_directory()
    for server in servers(directory):
        staging = Staging(directory, server, excluded=settings.excluded())
        for base_uri in staging.base_uris():
            for dataset in staging.datasets(base_uri):
                staged.setdefault(str(dataset.directory), description.of_staged(dataset, None))
            uri = DserverURI(server, base_uri)
            for path, reason in staging.unusable(base_uri).items():
                staged.setdefault(str(path), description.of_unusable(path, uri, reason))
    for server, change in journal.all_unsent(directory):
        unsent.setdefault(str(change.local), description.of_unsent(change, server))
    return {
        "logins": _logins(settings),
        "mounts": mounts,
        "staged": sorted(staged.values(), key=lambda one: one["created_at"]),
        "unsent": sorted(unsent.values(), key=lambda one: one["changed_at"]),
        "kept": [
            {**kept._asdict(), "directory": str(kept.directory)}
            for kept in left_over.all_kept(directory)
        ],
    }


def _logins(settings: Settings) -> list[dict[str, Any]]:
    """Return the servers that `login` has kept a token for, and when each expires."""
    from dserverfs.base.errors import NotAuthenticated
    from dserverfs.remote.tokens import TokenSource, expires_at

    found = []
    for server, path in settings.kept_token_files().items():
        login: dict[str, Any] = {"server": server, "file": str(path)}
        try:
            login["expires_at"] = expires_at(TokenSource(None, path).token())
        except NotAuthenticated as error:
            login["reason"] = str(error)
        found.append(login)
    return found


def _token_of(address: Address) -> dict[str, Any] | None:
    """Return what a daemon says of its token; None if it is of an older dserverfs."""
    from dserverfs.base.errors import DaemonSilent, UsageError
    from dserverfs.cli import mounted
    from dserverfs.mount import control

    try:
        found: dict[str, Any] = mounted.last(control.ask(address, {"command": "token"}))
    except DaemonSilent:
        raise
    except UsageError:
        return None
    return found


def _print_all(found: dict[str, Any]) -> None:
    from dserverfs.cli.progress import size

    for mount in found["mounts"]:
        silent = "" if mount["answers"] else " (does not answer)"
        say(f"mounted: {mount['uri']} at {mount['path']}{silent}")
        if token := mount.get("token"):
            say(f"    {token['source']}: {_until(token)}")
        counts = mount.get("compared", {})
        if counts.get("received"):
            say(
                f"    {size(counts['received'])} fetched: {size(counts['by_block'])} compared block"
                f" by block, {size(counts['as_files'])} as whole files"
            )
    for staged in found["staged"]:
        say(
            f"{staged['state']}: {staged['base_uri']} {staged['name']}:"
            f" {staged['number_of_items']} items, {size(staged['size_in_bytes'])},"
            f" in {os.path.join(staged['directory'], 'tree')}"
        )
        if staged["state"] == "open" and not staged["armed"]:
            say("    waits for dserverfs freeze")
        for why in (staged["reason"], staged["waits_for"]):
            if why:
                say(f"    {why}")
        if staged.get("excluded"):  # not of a mount of an earlier version
            say(f"    excluded: {staged['excluded']}")
    for kept in found["kept"]:
        say(
            f"left out of a frozen dataset, and kept until you delete it: {kept['directory']}:"
            f" {kept['number_of_files']} files, {size(kept['size_in_bytes'])}"
        )
    for change in found["unsent"]:
        where = f"{change['dataset']} ({change['name']})"
        say(f"not sent: {where}: {change['path']}, in {change['file']}")
        if change["reason"]:
            say(f"    {change['reason']}")
    for login in found["logins"]:
        say(f"logged in: {login['server']}: {_until(login)}")
    if not found["mounts"]:
        say("nothing is mounted")


def _until(token: dict[str, Any]) -> str:
    if "reason" in token:
        return str(token["reason"])
    return f"expires {moment(token['expires_at'])}"
