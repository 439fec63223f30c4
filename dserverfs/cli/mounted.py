"""Paths in mounts, for the commands that ask a mount's daemon."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base import mountinfo
from dserverfs.base.errors import DaemonSilent, UsageError
from dserverfs.base.mountinfo import Mounted
from dserverfs.mount import control, mountpoint
from dserverfs.mount.control import Address, Answer
from dserverfs.settings import Settings


class MountedPath(NamedTuple):
    """A path that a running mount answers for."""

    path: Path
    inode: int
    address: Address
    mountpoint: str

    def ask(self, command: str, **parameters: Any) -> Iterator[Answer]:
        """Yield the daemon's answers; raises UsageError with what it says."""
        request = {"command": command, "inode": self.inode, **parameters}
        return control.ask(self.address, request)

    def ask_newer(self, command: str, **parameters: Any) -> Any:
        """Return the daemon's result, or None if it is of an earlier version."""
        return newer(self.ask(command, **parameters))


class Nearest(NamedTuple):
    """The directory nearest to a path that its mount can look at."""

    place: MountedPath
    below: str  # the rest of the path; empty for one that can be looked at itself
    problem: str  # that the rest has

    def errors(self) -> list[dict[str, Any]]:
        """Return the last errors that programs were given at or below the path."""
        return self.place.ask_newer("errors", below=self.below) or []


def find(path: Path) -> MountedPath:
    """Return `path` with its mount; raises UsageError unless it is in one of dserverfs."""
    try:
        return _located(path, _looked_at(path))
    except OSError as error:
        raise UsageError(f"{path}: {problem_of(path, error)}") from None


def nearest(path: Path) -> Nearest:
    """Return `path`, or what above it can be looked at, with its mount; raises as `find`."""
    try:
        return Nearest(_located(path, _looked_at(path)), "", "")
    except OSError as error:
        problem = problem_of(path, error)
    wanted = Path(os.path.abspath(path))
    for above in wanted.parents:
        with contextlib.suppress(OSError, UsageError):
            return Nearest(
                _located(above, _looked_at(above)), str(wanted.relative_to(above)), problem
            )
    raise UsageError(f"{path}: {problem}")


def _looked_at(path: Path) -> os.stat_result:
    return mountpoint.within(mountpoint.ANSWER_TIMEOUT_S, path, lambda: os.stat(path))


def _located(path: Path, status: os.stat_result) -> MountedPath:
    for mounted in mountinfo.dserverfs_mounts():
        if mounted.device == status.st_dev:
            if not is_own(mounted):
                raise UsageError(f"{path}: is in a mount of another user, who alone may ask it")
            return MountedPath(path, status.st_ino, address_of(mounted), mounted.path)
    raise UsageError(f"{path}: is not in a mount of dserverfs")


def problem_of(path: Path, error: OSError) -> str:
    """Return why a path cannot be looked at: of a dead daemon, more than the errno's text."""
    if error.errno != errno.ENOTCONN:
        return error.strerror or str(error)
    mounted = mountinfo.mount_of(os.path.abspath(path))
    return has_died(mounted.path if mounted is not None else "MOUNTPOINT")


def has_died(mountpoint: str) -> str:
    """Return what there is to say of a mount whose daemon is gone."""
    return (
        f"the mount's daemon has died: dserverfs umount {shlex.quote(mountpoint)}, then mount"
        " it again; what is staged is kept, and dserverfs status says where"
    )


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


def newer(answers: Iterator[Answer]) -> Any:
    """Return the result of a command that daemons of earlier versions do not know: None then."""
    try:
        return last(answers)
    except DaemonSilent:
        raise
    except UsageError:
        return None
