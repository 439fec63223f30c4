"""Mounts, and paths in them, for the commands that ask a mount's daemon.

A mount is known by its type. One whose device another program opened, mounted and gave to a
daemon has that program's type: it is known by its file `.dserverfs/control`, which also says
where the daemon listens.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base import mountinfo
from dserverfs.base.errors import DaemonSilent, DaemonStopped, UsageError
from dserverfs.base.mountinfo import Mounted
from dserverfs.mount import control, mountpoint
from dserverfs.mount.control import Address, Answer
from dserverfs.settings import Settings

CONTROL = ".dserverfs/control"
CONTROL_TIMEOUT_S = 2.0  # a file system of another kind may hang
_MAX_CONTROL_BYTES = 100


class Mount(NamedTuple):
    """A mount of dserverfs."""

    path: str
    uri: str
    owner: int  # the uid of the user who may ask it
    address: Address
    is_given: bool = False  # another program mounted it, and unmounts it
    silence: str | None = None  # why its daemon does not answer, if that was found out


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
    """Return the status of a path; raises OSError, and UsageError if its mount does not answer."""
    mounted = mountinfo.mount_of(os.path.abspath(path))
    if mounted is not None and mounted.fstype == mountinfo.FSTYPE:
        owner = os.geteuid() if mounted.owner is None else mounted.owner
        directory = Settings.load().control_directory()
        try:  # else the path is waited for
            control.require_running(Address.of(directory, mounted.device, owner))
        except DaemonStopped as error:
            raise UsageError(f"{path}: {error}") from None
    return mountpoint.within(mountpoint.ANSWER_TIMEOUT_S, path, lambda: os.stat(path))


def _located(path: Path, status: os.stat_result) -> MountedPath:
    for mounted in mountinfo.all_mounted():
        if mounted.device != status.st_dev or not mounted.is_fuse:
            continue
        if (mount := mount_of(mounted)) is not None:
            if not is_own(mount):
                raise UsageError(f"{path}: is in a mount of another user, who alone may ask it")
            control.wait_for_next(mount.address)
            return MountedPath(path, status.st_ino, mount.address, mount.path)
        if mountpoint.is_dead(Path(mounted.path)):  # the status was the kernel's own
            raise UsageError(f"{path}: {_given_has_died(mounted.path)}")
    raise UsageError(f"{path}: is not in a mount of dserverfs")


def all_mounts() -> list[Mount]:
    """Return the mounts of dserverfs on this machine; of given devices, those of this user."""
    given = given_mounts()
    known = {mount.path for mount in given}
    by_type = [found for each in mountinfo.dserverfs_mounts() if (found := mount_of(each))]
    return [*(mount for mount in by_type if mount.path not in known), *given]


def given_mounts() -> list[Mount]:
    """Return the mounts of the devices that were given to this user's daemons.

    The path of one that is mounted in another namespace, such as a container's, is no path but
    the name of the device.
    """
    given = [_of_given(each) for each in control.given(Settings.load().control_directory())]
    if not given:  # no file system of another kind is touched for nothing
        return []
    found = [mount for each in mountinfo.all_mounted() if (mount := mount_of(each)) is not None]
    places = {mount.address.path: mount.path for mount in found}
    return [each._replace(path=places.get(each.address.path, each.path)) for each in given]


def _of_given(address: Address) -> Mount:
    """Return what the daemon of a given device says of its mount."""
    try:
        told = last(control.ask(address, {"command": "mount"}, CONTROL_TIMEOUT_S))
        path, uri, silence = f"{told['path']} of process {told['pid']}", str(told["uri"]), None
    except UsageError as error:  # it is stopped, or hangs
        path, uri, silence = f"a given device ({address.path})", "what is not known", str(error)
    return Mount(path, uri, address.owner, address, is_given=True, silence=silence)


def mount_of(mounted: Mounted) -> Mount | None:
    """Return what is mounted as a mount of dserverfs; None if it is none."""
    directory = Settings.load().control_directory()
    is_ours = mounted.fstype == mountinfo.FSTYPE
    owner = os.geteuid() if mounted.owner is None else mounted.owner
    address = Address.of(directory, mounted.device, owner)
    if not (is_ours and address.path.exists()) and mounted.is_fuse:
        file = Path(mounted.path) / CONTROL
        with contextlib.suppress(OSError, UsageError):
            told = mountpoint.within(CONTROL_TIMEOUT_S, file, lambda: _head_of(file))
            given = Address.of_given(directory, told)
            return Mount(mounted.path, mounted.source, given.owner, given, is_given=True)
    return Mount(mounted.path, mounted.source, owner, address) if is_ours else None


def _head_of(file: Path) -> bytes:
    with open(file, "rb", buffering=0) as opened:
        return opened.read(_MAX_CONTROL_BYTES)


def problem_of(path: Path, error: OSError) -> str:
    """Return why a path cannot be looked at: of a dead daemon, more than the errno's text."""
    if error.errno != errno.ENOTCONN:
        return error.strerror or str(error)
    mounted = mountinfo.mount_of(os.path.abspath(path))
    if mounted is not None and mounted.fstype != mountinfo.FSTYPE:
        return _given_has_died(mounted.path)
    return has_died(mounted.path if mounted is not None else "MOUNTPOINT")


def has_died(mountpoint: str) -> str:
    """Return what there is to say of a mount whose daemon is gone."""
    return (
        f"the mount's daemon has died: dserverfs umount {shlex.quote(mountpoint)}, then mount"
        " it again; what is staged is kept, and dserverfs status says where"
    )


def _given_has_died(mountpoint: str) -> str:
    return (
        f"the daemon of {mountpoint} has died; the program that mounted it has to unmount it;"
        " what is staged is kept, and dserverfs status says where"
    )


def is_own(mount: Mount) -> bool:
    """Return whether this user may ask the daemon of that mount."""
    return os.geteuid() in (mount.owner, 0)


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
