"""What the measurements were taken on, as far as it explains them."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_DAMON = Path("/sys/kernel/mm/damon/admin/kdamonds")


def describe() -> dict[str, Any]:
    """Return processor, memory, kernel and the load before the measurements."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages * page_bytes / 1024**3, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": load(),
    }


def load() -> float:
    """Return how many processes have wanted a processor, on average of the last minute."""
    return os.getloadavg()[0]


def in_words(about: Mapping[str, Any]) -> str:
    """Say it in one line; `load_after` is in it if it has been added."""
    after = f" and {about['load_after']:.1f} after" if "load_after" in about else ""
    return (
        f"{about['cores']} cores ({about['cpu']}), {about['memory_gib']} GiB,"
        f" Linux {about['kernel']}, Python {about['python']},"
        f" load {about['load_before']:.1f} before{after}"
    )


def takes_idle_pages() -> bool:
    """Return whether the kernel reclaims what was not used lately though there is memory.

    Then pages are missing from a file that was read a moment ago, and a reading
    from the page cache has some from the disk or the daemon. Seen with DAMON: 1 %
    of a file's pages a second.
    """
    for daemon in _DAMON.glob("[0-9]*"):
        if _text(daemon / "state") == "on":
            actions = daemon.glob("contexts/*/schemes/*/action")
            if any(_text(action) == "pageout" for action in actions):
                return True
    return False


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
