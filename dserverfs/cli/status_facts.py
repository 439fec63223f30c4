"""What `dserverfs status` knows: gathered from the daemons of mounts, and from the disk.

The keys of what it returns are documented, with `--json`, and stay.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dserverfs.base.errors import DaemonStopped, DserverfsError, NotAuthenticated, UsageError
from dserverfs.base.excluded import Excluded
from dserverfs.base.model import DserverURI
from dserverfs.cli import mounted
from dserverfs.cli.mounted import Mount
from dserverfs.mount import control, mountpoint
from dserverfs.mount.kept_errors import OfMount, all_kept, those_below
from dserverfs.remote.tokens import TokenSource, expires_at
from dserverfs.settings import Settings
from dserverfs.tree import description
from dserverfs.writing.edits import journal
from dserverfs.writing.staging import left_over
from dserverfs.writing.staging.area import Staging, servers
from dserverfs.writing.staging.used_directories import Presence, UsedDirectories

DEAD_TIMEOUT_S = 2.0  # a daemon that is dead is known at once; this one was asked before
_ROOT_INODE = 1  # FUSE: the number of a mount point


def of_path(path: Path) -> dict[str, Any]:
    """Return the facts of a path in a mount, and the last errors at or below it.

    Raises UsageError for one that is in no mount, nor was when errors were given there, or not
    there and never was refused.
    """
    try:
        nearest = mounted.nearest(path)
    except UsageError as problem:
        if (ended := _of_ended(path)) is None:
            raise
        said = f"{problem}; {ended['uri']} was mounted at {ended['path']}"
        return {"mounted": False, "problem": said, "errors": ended["errors"]}
    errors = nearest.errors()
    if nearest.below and not errors:
        raise UsageError(f"{path}: {nearest.problem}")
    facts: dict[str, Any] = {}
    if not nearest.below:
        try:
            facts = mounted.last(nearest.place.ask("status"))
        except UsageError as error:
            if not errors:
                raise
            facts = {"problem": str(error)}
    return {**facts, "errors": [_shown(error, nearest.place.mountpoint) for error in errors]}


def _of_ended(path: Path) -> dict[str, Any] | None:
    """Return the last errors at or below a path of mounts that have ended; None without any."""
    wanted = Path(os.path.abspath(path))
    for known in all_kept(Settings.load().errors_directory()):
        mounted_at = Path(known.path)
        if wanted == mounted_at or mounted_at in wanted.parents:
            below = str(wanted.relative_to(mounted_at))
            shown = those_below(known.errors, "" if below == "." else below)
            return _ended(known._replace(errors=shown)) if shown else None
    return None


def _ended(known: OfMount) -> dict[str, Any]:
    errors = [_shown(each._asdict(), known.path) for each in known.errors]
    return {"path": known.path, "uri": known.uri, "errors": errors}


def of_all() -> dict[str, Any]:
    """Return the facts of all that this user has mounted, staged and changed."""
    settings = Settings.load()
    found = _Found(settings.excluded())
    own = [mount for mount in mounted.all_mounts() if mount.owner == os.geteuid()]
    mounts = [found.take_mount(mount) for mount in own]
    directories = [found.take_directory(settings.staging_directory())]
    used = UsedDirectories(settings.used_staging_directories())
    for known in used.all():
        if known.presence is Presence.THERE:
            if all(not known.path.samefile(one["path"]) for one in directories if one["there"]):
                directories.append(found.take_directory(known.path))
        else:
            problem = f"its disk is not mounted at {known.mount} now; what is staged there is kept"
            if known.presence is Presence.GONE:
                problem = "was deleted or renamed; it is forgotten from now on"
                used.forget(known.path)
            directories.append({"path": str(known.path), "there": False, "problem": problem})
    return {
        "logins": _logins(settings),
        "mounts": mounts,
        "ended": [
            _ended(known)
            for known in all_kept(settings.errors_directory())
            if all(known.path != mount["path"] for mount in mounts)
        ],
        "staging_directories": directories,
        "staged": sorted(found.staged.values(), key=lambda one: one["created_at"]),
        "unsent": sorted(found.unsent.values(), key=lambda one: one["changed_at"]),
        "kept": found.kept,
    }


class _Found:
    """What is staged and not sent, by its place on the disk; daemons know more than the disk."""

    def __init__(self, excluded: Excluded) -> None:
        self._excluded = excluded
        self.staged: dict[str, dict[str, Any]] = {}
        self.unsent: dict[str, dict[str, Any]] = {}
        self.kept: list[dict[str, Any]] = []  # left out of frozen datasets

    def take_mount(self, mount: Mount) -> dict[str, Any]:
        """Return what the daemon of a mount says of it."""
        entry: dict[str, Any] = {"path": mount.path, "uri": mount.uri, "answers": True}

        def ask(command: str, **arguments: object) -> Iterator[control.Answer]:
            return control.ask(mount.address, {"command": command, **arguments})

        if mount.silence is not None:  # it is not waited for again
            return entry | {"answers": False, "problem": mount.silence}
        try:
            for known in mounted.last(ask("pending")):
                self.staged[known["directory"]] = known
            for change in mounted.last(ask("unsent")):
                self.unsent[change["file"]] = change
            for command in ("token", "server", "compared", "reading"):
                entry[command] = mounted.newer(ask(command))
            errors = mounted.newer(ask("errors", inode=_ROOT_INODE)) or []
            entry["errors"] = [_shown(error, mount.path) for error in errors]
        except UsageError as error:
            entry |= {"answers": False, "problem": _problem(mount.path, error)}
        return entry

    def take_directory(self, directory: Path) -> dict[str, Any]:
        """Return how it is with a staging directory."""
        try:
            for server in servers(directory):
                staging = Staging(directory, server, excluded=self._excluded)
                self._take_staging(staging, server)
            for server, change in journal.all_unsent(directory):
                facts = description.of_unsent(change, server)
                self.unsent.setdefault(facts["file"], facts)
            for kept in left_over.all_kept(directory):
                self.kept.append({**kept._asdict(), "directory": str(kept.directory)})
        except (OSError, DserverfsError) as error:
            return {"path": str(directory), "there": True, "problem": f"cannot be read: {error}"}
        return {"path": str(directory), "there": directory.is_dir(), "problem": None}

    def _take_staging(self, staging: Staging, server: str) -> None:
        for base_uri in staging.base_uris():
            for dataset in staging.datasets(base_uri):
                if str(dataset.directory) not in self.staged:
                    self.staged[str(dataset.directory)] = description.of_staged(dataset, None)
            uri = DserverURI(server, base_uri)
            for path, reason in staging.unusable(base_uri).items():
                self.staged.setdefault(str(path), description.of_unusable(path, uri, reason))


def _shown(error: dict[str, Any], mountpoint: str) -> dict[str, Any]:
    """Return an error of a mount with its path as users name it."""
    return {**error, "path": os.path.join(mountpoint, error["path"]).rstrip("/")}


def _problem(path: str, error: DserverfsError) -> str:
    """Return why a mount does not answer."""
    if isinstance(error, DaemonStopped):
        return str(error)
    try:
        is_dead = mountpoint.is_dead(Path(path), DEAD_TIMEOUT_S)
    except UsageError as hangs:
        return str(hangs)
    return mounted.has_died(path) if is_dead else str(error)


def _logins(settings: Settings) -> list[dict[str, Any]]:
    """Return the servers that `login` has kept a token for, and when each expires."""
    found = []
    for server, path in settings.kept_token_files().items():
        login: dict[str, Any] = {"server": server, "file": str(path)}
        try:
            source = TokenSource(None, path)
            login["expires_at"] = expires_at(source.token())
            login["user"] = source.subject()
        except NotAuthenticated as error:
            login["reason"] = str(error)
        found.append(login)
    return found
