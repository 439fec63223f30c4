"""Keeps the memory of this process, which has tokens and keys, from core dumps and debuggers.

Used by the daemon and the server at their start. The kernel then writes no core of the
process, and lets no other process of the same user read its memory, environment or
open files (PR_SET_DUMPABLE of prctl(2)); root still can. What the process may read of itself
stays. Programs that it starts are as others: they get no secrets, and no cores by the limit
that they inherit.
"""

from __future__ import annotations

import resource

from dserverfs.base.local_files import call_libc

_PR_SET_DUMPABLE = 4  # <linux/prctl.h>


def forbid() -> None:
    """Forbid them for the rest of this process; raises OSError."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    hide()


def hide() -> None:
    """Keep the memory of this process from others, and leave the limit that programs inherit."""
    call_libc("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0, path="prctl")
