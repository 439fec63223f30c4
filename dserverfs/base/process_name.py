"""The name under which ps, top and pgrep show a process; by itself each would be "python"."""

from __future__ import annotations

import contextlib
from pathlib import Path

MAX_BYTES = 15  # the kernel cuts longer ones


def set_process_name(name: str) -> None:
    """Have this process shown under a name of at most MAX_BYTES."""
    with contextlib.suppress(OSError):  # no /proc
        Path("/proc/self/comm").write_text(name)
