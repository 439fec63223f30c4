"""Time that goes on while the machine is suspended.

For how long something stays good: a signed URL, a listing. How long an operation
may take is a matter of time.monotonic, which stands still meanwhile: a laptop
that wakes up has not waited.
"""

from __future__ import annotations

import time


def boottime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
