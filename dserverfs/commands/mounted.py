"""Paths in mounts, for the commands that ask the daemon behind one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs import control, mountpoint
from dserverfs.control import Answer
from dserverfs.errors import UsageError
from dserverfs.settings import Settings


class MountedPath(NamedTuple):
    """A path that a running mount of this user answers for."""

    path: Path
    inode: int
    socket: Path

    def ask(self, command: str, **parameters: Any) -> Iterator[Answer]:
        """Yield the daemon's answers; raises UsageError with what it says."""
        return control.ask(self.socket, {"command": command, "inode": self.inode, **parameters})


def find(path: Path) -> MountedPath:
    """Return what `path` is; raises UsageError unless it is in a mount of dserverfs."""
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise UsageError(
                f"{path}: its mount is dead; what was staged is kept: mount it again"
            ) from None
        raise UsageError(f"{path}: {error.strerror}") from None
    if not any(mounted.device == status.st_dev for mounted in mountpoint.all_mounted()):
        raise UsageError(f"{path}: is not in a mount of dserverfs")
    return MountedPath(path, status.st_ino, socket_of(status.st_dev))


def socket_of(device: int) -> Path:
    """Return where the daemon of the mount with that st_dev listens."""
    directory = Settings.load().state_directory() / "control"
    return directory / control.socket_name(device)


def last(answers: Iterator[Answer]) -> Any:
    """Return the result that the last of the answers has."""
    result = None
    for answer in answers:
        result = answer.get("result")
    return result
