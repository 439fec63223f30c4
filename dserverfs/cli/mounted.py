"""Paths in mounts, for the commands that ask a mount's daemon."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base import mountinfo
from dserverfs.base.errors import UsageError
from dserverfs.base.mountinfo import Mounted
from dserverfs.mount import control, mountpoint
from dserverfs.mount.control import Address, Answer
from dserverfs.settings import Settings


class MountedPath(NamedTuple):
    """A path that a running mount answers for."""

    path: Path
    inode: int
    address: Address

    def ask(self, command: str, **parameters: Any) -> Iterator[Answer]:
        """Yield the daemon's answers; raises UsageError with what it says."""
        request = {"command": command, "inode": self.inode, **parameters}
        return control.ask(self.address, request)


def find(path: Path) -> MountedPath:
    """Return `path` with its mount; raises UsageError unless it is in one of dserverfs."""
    try:
        status = mountpoint.within(mountpoint.ANSWER_TIMEOUT_S, path, lambda: os.stat(path))
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise UsageError(
                f"{path}: its mount is dead; what was staged is kept: mount it again"
            ) from None
        raise UsageError(f"{path}: {error.strerror}") from None
    for mounted in mountinfo.dserverfs_mounts():
        if mounted.device == status.st_dev:
            if not is_own(mounted):
                raise UsageError(f"{path}: is in a mount of another user, who alone may ask it")
            return MountedPath(path, status.st_ino, address_of(mounted))
    raise UsageError(f"{path}: is not in a mount of dserverfs")


def is_own(mounted: Mounted) -> bool:
    """Return whether this user may ask the daemon of that mount."""
    return os.geteuid() in (mounted.owner, 0)


def address_of(mounted: Mounted) -> Address:
    """Return where the daemon of a mount listens."""
    owner = os.geteuid() if mounted.owner is None else mounted.owner
    return Address.of(Settings.load().control_directory(), mounted.device, owner)


def last(answers: Iterator[Answer]) -> Any:
    """Return the result that the last of the answers has."""
    result = None
    for answer in answers:
        result = answer.get("result")
    return result
