"""Released versions as they were: their sources, and what they left on the disk.

`tests/data/<version>/sources.tar.xz` is the package `dserverfs` of that version, which runs
with the dependencies of today. `tests/data/<version>/kept.tar.xz` is what `keeping.py` made
with it: `home/`, that of a user whose programs were killed, and `server/`, a data directory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tarfile
from pathlib import Path
from typing import Any

from tests.support.accounts import Account

VERSIONS = ("0.1.0",)
DATA = Path(__file__).parents[1] / "data"
# The server's in what is kept; another one is as long, and takes its place.
PORT = "40100"


def sources(version: str, directory: Path) -> Path:
    """Unpack the package of a version; return what PYTHONPATH has to be for it."""
    target = directory / f"sources-{version}"
    if not target.exists():
        _unpack(DATA / version / "sources.tar.xz", target)
    return target


def kept(version: str, directory: Path) -> Path:
    """Unpack what a version left on the disk; return the directory of `home` and `server`."""
    target = directory / f"kept-{version}"
    _unpack(DATA / version / "kept.tar.xz", target)
    return target


def move_to_port(home: Path, port: int) -> None:
    """Let files of a user be about a server on another port, in their names and in their text."""
    old, new = (f"127.0.0.1:{each}".encode() for each in (PORT, port))
    for directory, subdirectories, files in os.walk(home, topdown=False):
        for name in files:
            path = Path(directory) / name
            content = path.read_bytes()
            if old in content and not content.startswith(b"SQLite format 3"):
                path.write_bytes(content.replace(old, new))
        for name in [*files, *subdirectories]:
            if PORT in name:
                path = Path(directory) / name
                path.rename(path.with_name(name.replace(PORT, str(port))))


def with_dserverfs_of(account: Account, sources: Path) -> Account:
    """Return the same user with the dserverfs of some version."""
    environment = {**account.environment, "PYTHONPATH": str(sources)}
    return dataclasses.replace(account, environment=environment)


def with_data_of_its_own(account: Account, name: str) -> Account:
    """Return the same user with nothing staged that other tests have left."""
    data = account.home / f"data-{name}"
    return dataclasses.replace(
        account, environment={**account.environment, "XDG_DATA_HOME": str(data)}
    )


def unfinished(account: Account) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what `dserverfs status` tells of staged datasets and of changes that are not sent.

    Of this home alone: it tells of all mounts of the user, also of those of other test runs.
    """
    done = account.dserverfs("status", "--json")
    assert done.stderr == ""
    found = json.loads(done.stdout)
    home = str(account.home)
    return (
        [one for one in found["staged"] if one["directory"].startswith(home)],
        [change for change in found["unsent"] if change["file"].startswith(home)],
    )


def _unpack(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        # What archives made here hold is trusted; without a filter Python 3.12 warns.
        tar.extraction_filter = lambda member, path: member
        tar.extractall(target)
