"""The free space of a disk, and the share of it that the block cache may use. Raises OSError."""

from __future__ import annotations

import os
from pathlib import Path

GIB = 1024**3
MAX_SIZE_BYTES = 50 * GIB
FLOOR_BYTES = 2 * GIB
FLOOR_FRACTION = 0.05
AS_IT_IS = -1  # a size limit: the one that the cache's last user has set


def default_limit(directory: Path, held_in_bytes: int) -> int:
    """Return min(50 GiB, half of the free space); the cache's own bytes count as free."""
    return min(MAX_SIZE_BYTES, (free_in_bytes(directory) + held_in_bytes) // 2)


def free_in_bytes(directory: Path) -> int:
    """Return how much is free for this user."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def lacking_in_bytes(directory: Path) -> int:
    """Return how much less is free than the floor, 5 % or 2 GiB; negative if there is more."""
    status = os.statvfs(directory)
    floor = min(FLOOR_BYTES, int(status.f_blocks * status.f_frsize * FLOOR_FRACTION))
    return floor - status.f_bavail * status.f_frsize
