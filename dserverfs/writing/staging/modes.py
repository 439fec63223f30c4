"""The mode a user gave a staged file, kept beside one that lets the daemon read and write it.

Used by the staged tree. On the disk, as an extended attribute, where the disk knows
these; in memory else. Not thread-safe.
"""

from __future__ import annotations

import contextlib
import os
import stat

OWNER_FILE = 0o600
OWNER_DIRECTORY = 0o700
_ATTRIBUTE = "user.dserverfs.mode"


class Modes:
    """The modes of one staged dataset."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], int] = {}  # where the disk knows no xattrs

    def of(self, target: int | str, status: os.stat_result) -> int:
        """Return the mode of a path, or of a descriptor, of which `status` is known."""
        key = (status.st_dev, status.st_ino)
        if key in self._kept:
            return self._kept[key]
        try:
            return int(os.getxattr(target, _ATTRIBUTE), 8)
        except (OSError, ValueError):
            return stat.S_IMODE(status.st_mode)

    def set(self, target: int | str, mode: int, *, is_directory: bool) -> None:
        """Record the user's mode; the owner can read and write under any mode."""
        needed = OWNER_DIRECTORY if is_directory else OWNER_FILE
        mode = stat.S_IMODE(mode)
        os.chmod(target, mode | needed)
        status = os.stat(target)
        key = (status.st_dev, status.st_ino)
        self._kept.pop(key, None)
        try:
            if mode & needed == needed:
                with contextlib.suppress(OSError):
                    os.removexattr(target, _ATTRIBUTE)
            else:
                os.setxattr(target, _ATTRIBUTE, f"{mode:o}".encode())
        except OSError:
            self._kept[key] = mode
