"""Time that goes on while the machine is suspended.

It says how long something stays good: a signed URL, a listing. The limit of an operation
is a matter of time.monotonic, which stands still during a suspend: a laptop that wakes up
has not waited.
"""

from __future__ import annotations

import time
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boottime_s() -> float:
    """Return seconds since boot, suspended ones included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Return the id of this boot of this machine; "" if the kernel has none."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""
