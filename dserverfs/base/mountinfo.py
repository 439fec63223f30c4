"""Mounts, as the kernel lists them in /proc/self/mountinfo (proc(5)).

Used by the mount, the commands and the choice of the cache's directory.
The text is bytes with one separator: a path of another program's mount may hold
any character that `str.splitlines` takes for the end of a line.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

FSTYPE = "fuse.dserverfs"
_OF_PROC = "mountinfo"
_MOUNTINFO = Path("/proc/self") / _OF_PROC


class Mounted(NamedTuple):
    """A line of mountinfo."""

    path: str
    fstype: str
    source: str
    device: int  # st_dev of what is in it
    owner: int | None = None  # of a FUSE file system: the uid of its user

    @property
    def is_fuse(self) -> bool:
        return self.fstype == "fuse" or self.fstype.startswith("fuse.")


def all_mounted() -> list[Mounted]:
    """Return everything that is mounted, in the order in which it was."""
    return parse(_MOUNTINFO.read_bytes())


def dserverfs_mounts() -> list[Mounted]:
    """Return every mount of dserverfs on this machine, of any user."""
    return [mounted for mounted in all_mounted() if mounted.fstype == FSTYPE]


def find_mounted(path: Path) -> Mounted | None:
    """Return what is mounted at exactly `path`, the topmost."""
    found = None
    for mounted in all_mounted():
        if mounted.path == str(path):
            found = mounted
    return found


def mount_of(path: str) -> Mounted | None:
    """Return the mount that has `path`, which is absolute and without links."""
    found, length = None, -1
    for mounted in all_mounted():
        inside = path == mounted.path or path.startswith(mounted.path.rstrip("/") + "/")
        if inside and len(mounted.path) >= length:  # a later one hides an earlier one
            found, length = mounted, len(mounted.path)
    return found


def where_else(device: int) -> str | None:
    """Return where a file system is mounted though it was unmounted: a place, or a process.

    A process is one of another mount namespace, a copy of ours that nobody told of the
    unmounting. Those of other users cannot be looked into.
    """
    for mounted in all_mounted():
        if mounted.device == device:
            return f"at {mounted.path}"
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's, or one that has ended
            if any(mounted.device == device for mounted in parse((entry / _OF_PROC).read_bytes())):
                name = (entry / "comm").read_text(errors="replace").strip()
                return f"in the mount namespace of process {entry.name} ({name})"
    return None


def parse(text: bytes) -> list[Mounted]:
    """Return the mounts of a mountinfo file; a line of another form is left out."""
    mounts = []
    for line in text.split(b"\n"):
        before, _, after = line.partition(b" - ")
        places, kinds = before.split(b" "), after.split(b" ")
        if len(places) < 5 or len(kinds) < 2:
            continue
        try:
            major, minor = map(int, places[2].split(b":"))
            device = os.makedev(major, minor)
        except (ValueError, OverflowError):
            continue
        path, fstype, source = (_decoded(field) for field in (places[4], kinds[0], kinds[1]))
        owner = (
            re.search(rb"(?:\A|,)user_id=(\d{1,10})(?:,|\Z)", kinds[2]) if len(kinds) > 2 else None
        )
        mounts.append(Mounted(path, fstype, source, device, int(owner[1]) if owner else None))
    return mounts


def _decoded(field: bytes) -> str:
    """Undo mountinfo's octal escapes of blanks, line ends and backslashes."""
    plain = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match.group(1), 8) & 0xFF]), field)
    return os.fsdecode(plain)
