"""Whether who asked is dying, and waits for what was taken from the FUSE device."""

from __future__ import annotations

import contextlib
import signal

_KILLED = 1 << (signal.SIGKILL - 1)  # pending for every thread of a process that is to end


def is_dying(thread: int) -> bool:
    """Return whether a thread is about to end, and waits for the kernel."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{thread}/status") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name == "SigPnd":
                return bool(int(value, 16) & _KILLED)
    return False
