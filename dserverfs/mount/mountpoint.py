"""Mount points: whether a directory may be one, and taking a mount away.

Used by the mount and the commands. Looks at what is mounted before touching a
path, and touches what may hang only where it can be given up: in a process that
can be killed, or in a thread that is left behind.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from dserverfs.base import bounded_calls, child_processes, mountinfo
from dserverfs.base.errors import UsageError

ANSWER_TIMEOUT_S = 10.0
PACKAGES = ("pyfuse3", "trio")
DEVICE = Path("/dev/fuse")
_MAX_LINKS = 40  # as the kernel follows in a path

R = TypeVar("R")


def resolve(path: Path) -> Path:
    """Return the absolute path without links; touches nothing that is mounted at its end.

    Raises UsageError if the directory it is in does not answer.
    """
    return within(ANSWER_TIMEOUT_S, path, lambda: _resolved(path))


def _resolved(path: Path) -> Path:
    path = Path(os.path.join(os.getcwd(), path))
    mounts = {mounted.path for mounted in mountinfo.all_mounted()}
    for _ in range(_MAX_LINKS):
        if path.name in ("", ".."):
            return Path(os.path.realpath(path))
        path = Path(os.path.realpath(path.parent)) / path.name
        if str(path) in mounts:  # a mount point is a directory, and its daemon may be dead
            return path
        try:
            path = path.parent / os.readlink(path)
        except OSError:
            return path
    return path


def within(timeout_s: float, path: Path, call: Callable[[], R]) -> R:
    """Return what `call` does to `path`, which may be in a mount whose daemon is stopped.

    Raises UsageError after `timeout_s`, and what `call` raises. Its thread is left behind then:
    the kernel lets go of it when the daemon answers, or when this process ends.
    """
    try:
        return bounded_calls.within(timeout_s, call)
    except bounded_calls.GivenUp as error:
        raise UsageError(
            f"{path}: {error}: the daemon of its mount is stopped or hangs; fusermount3 -uz"
            " MOUNTPOINT takes the mount away, and what is staged is kept"
        ) from None


def refuse_own_files(path: Path, own: Mapping[str, Path | None]) -> None:
    """Raise UsageError if a directory or file that the daemon needs is in a mount of dserverfs.

    `path` is where it is going to mount; `own` has what the user can name, by the
    option or setting. A daemon that opens a file of its own mount waits for itself,
    and nothing can end that.
    """
    for name, wanted in own.items():
        if wanted is None:
            continue
        real = within(ANSWER_TIMEOUT_S, wanted, partial(os.path.realpath, wanted))
        if real == str(path) or real.startswith(f"{str(path).rstrip('/')}/"):
            raise UsageError(
                f"{name} {wanted}: is at or below the mount point {path}, so the mount would"
                " wait for itself; name a place outside"
            )
        mounted = mountinfo.mount_of(real)
        if mounted is not None and mounted.fstype == mountinfo.FSTYPE:
            raise UsageError(
                f"{name} {wanted}: is in {mounted.path}, a mount of dserverfs; name a place outside"
            )


def require_fuse(extra: str = "mount") -> None:
    """Raise UsageError unless this user can mount with FUSE here.

    `extra` is the one of this package that has what is needed.
    """
    require_packages(extra)
    require_device()
    if shutil.which("fusermount3") is None:
        raise UsageError("fusermount3 is not installed: install the package fuse3")


def require_packages(extra: str = "mount") -> None:
    """Raise UsageError unless what only mounts need is installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"mounts need {' and '.join(missing)}: install fuse3, libfuse3-dev, pkg-config, gcc"
            f" and python3-dev (Debian's names), then run: pip install 'dserverfs[{extra}]'"
        )


def require_device() -> None:
    """Raise UsageError unless this user may open the kernel's side of FUSE."""
    if not DEVICE.exists():
        raise UsageError(
            f"{DEVICE} does not exist: load the kernel's fuse module (modprobe fuse),"
            " or start the container with --device /dev/fuse"
        )
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        mode = DEVICE.stat().st_mode & 0o7777
        raise UsageError(
            f"{DEVICE} has mode {mode:04o} and is not open to you: "
            f"an administrator has to run chmod 0666 {DEVICE}"
        )


def require_allow_other() -> None:
    """Raise UsageError if this user may not mount for others."""
    if os.geteuid() == 0:
        return
    try:
        lines = Path("/etc/fuse.conf").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    if "user_allow_other" not in (line.strip() for line in lines):
        raise UsageError("--allow-other needs the line user_allow_other in /etc/fuse.conf")


def prepare(path: Path) -> None:
    """Make sure that `path` can be mounted on; clears a dead mount of ours. Raises UsageError."""
    mounted = mountinfo.find_mounted(path)
    if mounted is not None:
        if is_dead(path):
            if mounted.fstype != mountinfo.FSTYPE:
                raise UsageError(f"{path}: a dead mount of {mounted.fstype} is there: unmount it")
            detach(path)
        elif mounted.fstype == mountinfo.FSTYPE:
            raise UsageError(f"{path}: {mounted.source} is mounted there already")
    try:
        entries = os.listdir(path)
    except FileNotFoundError:
        raise UsageError(f"{path}: does not exist; make it with mkdir") from None
    except NotADirectoryError:
        raise UsageError(f"{path}: is not a directory") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be used as a mount point: {error.strerror}") from None
    if entries:
        raise UsageError(f"{path}: is not empty; what is in it would be hidden")
    if not os.access(path, os.W_OK):
        raise UsageError(f"{path}: is not writable by you; FUSE asks that of a mount point")


def is_dead(path: Path, timeout_s: float = ANSWER_TIMEOUT_S) -> bool:
    """Return whether the daemon of the FUSE mount at `path` is gone; bounded in time.

    Raises UsageError if it is there and does not answer.
    """
    try:
        done = subprocess.run(
            # The file system's status: attributes would be answered from the kernel's cache.
            ["stat", "-f", str(path)],
            capture_output=True,
            timeout=timeout_s,
            env=child_processes.environment(LC_ALL="C"),
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"{path}: the mount there does not answer within {timeout_s:.0f} s: its daemon is"
            f" stopped or hangs; fusermount3 -uz {path} takes it away, and what is staged is kept"
        ) from None
    return os.strerror(errno.ENOTCONN).encode() in done.stderr


def detach(path: Path) -> None:
    """Take a mount away even if it is in use; raises UsageError."""
    _fusermount(path, lazy=True)


def unmount(path: Path) -> None:
    """Take a mount away; raises UsageError if it is in use."""
    _fusermount(path, lazy=False)


def _fusermount(path: Path, *, lazy: bool) -> None:
    command = ["fusermount3", "-uz" if lazy else "-u", str(path)]
    try:
        done = _run(command)
    except FileNotFoundError:
        raise UsageError("fusermount3 is not installed: install the package fuse3") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"{path}: unmounting does not end; try fusermount3 -uz {path}") from None
    if done.returncode == 0:
        return
    said = done.stderr.strip().rpartition("\n")[2]
    if "/etc/mtab" in said:  # a container without one
        if os.geteuid() != 0:
            raise UsageError(
                f"{path}: cannot be unmounted: {said}: an administrator has to run"
                " ln -s ../proc/self/mounts /etc/mtab"
            )
        command = ["umount", "-i", *(["-l"] if lazy else []), str(path)]
        done = _run(command)
        if done.returncode == 0:
            return
        said = done.stderr.strip().rpartition("\n")[2]
    if "busy" in said.lower():
        raise UsageError(f"{path}: is in use; close what uses it (fuser -vm {path} lists that)")
    raise UsageError(f"{path}: cannot be unmounted: {said}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=ANSWER_TIMEOUT_S,
        start_new_session=True,  # Ctrl-C in a terminal is for us alone
        env=child_processes.environment(LC_ALL="C"),
    )
