"""The staging directories that were ever used: where there may be data that no server has.

Used by who stages, which notes them, and by `status`, which looks into each. A directory
of `--staging-dir` would else be forgotten with the mount.

On disk: a file for each, written durably, with the directory, the mount that it is in, and
the disk of that.
Files come and go alone, so processes need no lock.
"""

from __future__ import annotations

import enum
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from dserverfs.base import mountinfo
from dserverfs.base.durable_files import write_durably
from dserverfs.base.errors import DserverfsError, ProtocolError
from dserverfs.base.limits import is_text, parse_json, understood
from dserverfs.base.local_files import make_private

logger = logging.getLogger(__name__)


class Presence(enum.Enum):
    THERE = "there"
    NOT_MOUNTED = "not mounted"  # its disk is elsewhere: what is staged there is kept
    GONE = "gone"  # deleted or renamed


class UsedDirectory(NamedTuple):
    path: Path
    mount: str  # what it was in
    presence: Presence


class UsedDirectories:
    """Those of one user."""

    def __init__(self, register: Path) -> None:
        self._register = register

    def note(self, directory: Path) -> None:
        """Remember a directory that is used from now on; what cannot be written is logged."""
        path = os.path.realpath(directory)
        file = self._file(path)
        if file.exists():
            return
        mount, disk = _mount_and_disk_of(path)
        text = json.dumps({"directory": path, "mount": mount, "disk": disk})
        try:
            make_private(self._register)
            write_durably(file, text.encode("ascii"))
        except (OSError, DserverfsError) as error:
            logger.warning(
                "%s: cannot be written: dserverfs status will not know that data may be staged"
                " in %s: %s",
                file,
                path,
                error,
            )

    def all(self) -> list[UsedDirectory]:
        """Return every directory; what cannot be read is left out."""
        try:
            names = sorted(os.listdir(self._register))
        except OSError:
            return []
        known = (self._read(self._register / name) for name in names if not name.startswith("."))
        return [one for one in known if one is not None]

    def forget(self, directory: Path) -> None:
        """Forget a directory that is gone."""
        try:
            self._file(str(directory)).unlink(missing_ok=True)
        except OSError as error:
            logger.info("%s is not forgotten: %s", directory, error)

    def _file(self, path: str) -> Path:
        return self._register / hashlib.sha256(os.fsencode(path)).hexdigest()[:32]

    def _read(self, file: Path) -> UsedDirectory | None:
        try:
            with understood("it"):
                kept = parse_json(file.read_bytes(), "it")
                path, mount, disk = kept["directory"], kept["mount"], kept["disk"]
        except (OSError, ProtocolError) as error:
            logger.info("%s: is passed over: %s", file, error)
            return None
        if not (isinstance(path, str) and path.startswith("/") and is_text(mount)):
            return None
        presence = Presence.THERE
        if not os.path.isdir(path):
            is_mounted = _mount_and_disk_of(path) == (mount, disk)
            presence = Presence.GONE if is_mounted else Presence.NOT_MOUNTED
        return UsedDirectory(Path(path), mount, presence)


def _mount_and_disk_of(path: str) -> tuple[str, str]:
    """Return where the mount is that a path is in, and what is mounted there.

    In a chroot(1) whose root is no mount there is none.
    """
    mounted = mountinfo.mount_of(path)
    return (mounted.path, mounted.source) if mounted else ("/", "")
