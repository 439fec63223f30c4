"""Time that goes on while the machine is suspended.

For how long something stays good: a signed URL, a listing. How long an operation
may take is a matter of time.monotonic, which stands still meanwhile: a laptop
that wakes up has not waited.
"""

from __future__ import annotations

import time
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boottime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Return what tells this boot of this machine from every other; "" where nothing does."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""
