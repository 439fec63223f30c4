"""The name under which ps, top and pgrep show a process; by itself each would be "python"."""

from __future__ import annotations

import contextlib
from pathlib import Path


def set_process_name(name: str) -> None:
    """Have this process shown under a name; the kernel keeps 15 bytes of it."""
    with contextlib.suppress(OSError):  # no /proc
        Path("/proc/self/comm").write_text(name)
