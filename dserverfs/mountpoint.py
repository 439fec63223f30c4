"""Mount points: what is mounted where, whether it may be, and taking it away.

Used by the mount. Looks at /proc/self/mountinfo before touching a path, and
touches what may hang only in a process of its own that can be killed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from dserverfs.errors import UsageError

FSTYPE = "fuse.dserverfs"
ANSWER_TIMEOUT_S = 10.0
_FUSE_DEVICE = Path("/dev/fuse")


class Mounted(NamedTuple):
    """A line of mountinfo."""

    path: str
    fstype: str
    source: str
    device: int  # st_dev of what is in it


def find_mounted(path: Path) -> Mounted | None:
    """Return what is mounted at exactly `path`, the topmost."""
    found = None
    for mounted in mounts_of_all_kinds():
        if mounted.path == str(path):
            found = mounted
    return found


def all_mounted() -> list[Mounted]:
    """Return every mount of dserverfs there is here, anybody's."""
    return [mounted for mounted in mounts_of_all_kinds() if mounted.fstype == FSTYPE]


def resolve(path: Path) -> Path:
    """Return the absolute path without links, never touching the last component."""
    path = Path(os.path.abspath(path))
    return Path(os.path.realpath(path.parent)) / path.name if path.name else path


def require_fuse() -> None:
    """Raise UsageError unless this user can mount with FUSE here."""
    if not _FUSE_DEVICE.exists():
        raise UsageError(
            f"{_FUSE_DEVICE} does not exist: load the kernel's fuse module (modprobe fuse),"
            " or start the container with --device /dev/fuse"
        )
    if not os.access(_FUSE_DEVICE, os.R_OK | os.W_OK):
        mode = _FUSE_DEVICE.stat().st_mode & 0o7777
        raise UsageError(
            f"{_FUSE_DEVICE} has mode {mode:04o} and is not open to you: "
            f"an administrator has to run chmod 0666 {_FUSE_DEVICE}"
        )
    if shutil.which("fusermount3") is None:
        raise UsageError("fusermount3 is not installed: install the package fuse3")


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
    mounted = find_mounted(path)
    if mounted is not None:
        if is_dead(path):
            if mounted.fstype != FSTYPE:
                raise UsageError(f"{path}: a dead mount of {mounted.fstype} is there: unmount it")
            detach(path)
        elif mounted.fstype == FSTYPE:
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


def is_dead(path: Path) -> bool:
    """Return whether the daemon of the FUSE mount at `path` is gone; bounded in time.

    Raises UsageError if it is there and does not answer.
    """
    try:
        done = subprocess.run(
            # The file system's status: attributes would be answered from the kernel's cache.
            ["stat", "-f", str(path)],
            capture_output=True,
            timeout=ANSWER_TIMEOUT_S,
            env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"{path}: a mount is there that does not answer: unmount it") from None
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
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S)
    except FileNotFoundError:
        raise UsageError("fusermount3 is not installed: install the package fuse3") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"{path}: unmounting does not end; try fusermount3 -uz {path}") from None
    if done.returncode == 0:
        return
    said = done.stderr.strip().rpartition("\n")[2]
    if "busy" in said.lower():
        raise UsageError(f"{path}: is in use; close what uses it (fuser -vm {path} lists that)")
    raise UsageError(f"{path}: cannot be unmounted: {said}")


def mounts_of_all_kinds() -> list[Mounted]:
    """Return everything that is mounted, in the order in which it was."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fstype, source, *_ = after.split(" ")
        _, _, device, _, where, *_ = before.split(" ")
        major, minor = map(int, device.split(":"))
        mounts.append(
            Mounted(_unescape(where), fstype, _unescape(source), os.makedev(major, minor))
        )
    return mounts


def _unescape(text: str) -> str:
    """Undo mountinfo's octal escapes of blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)
