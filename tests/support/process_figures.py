"""What a process holds: memory, descriptors, sockets, threads, children; and what grew."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Held(NamedTuple):
    """What one process holds at a moment."""

    rss_kib: int
    pss_kib: int
    descriptors: int
    sockets: int
    threads: int

    @classmethod
    def by(cls, pid: int) -> Held:
        process = Path("/proc") / str(pid)
        memory = _numbers(process / "smaps_rollup")
        descriptors = sockets = 0
        for name in os.listdir(process / "fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                descriptors += 1
                sockets += os.readlink(process / "fd" / name).startswith("socket:")
        threads = len(os.listdir(process / "task"))
        return cls(memory["Rss"], memory["Pss"], descriptors, sockets, threads)


def _numbers(path: Path) -> dict[str, int]:
    found = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            found[name] = int(words[0])
    return found


def most(samples: Sequence[Held]) -> Held:
    """Return the largest of each."""
    return Held(*(max(column) for column in zip(*samples, strict=True)))


def slope(values: Sequence[float]) -> float:
    """Return how much a value grows from one sample to the next, by the median of all pairs.

    Theil and Sen's: a few samples that are far off do not move it.
    """
    slopes = sorted(
        (values[j] - values[i]) / (j - i)
        for i in range(len(values))
        for j in range(i + 1, len(values))
    )
    return slopes[len(slopes) // 2] if slopes else 0.0


def cpu_seconds(pid: int) -> float:
    """Return the processor time that the process and its threads have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
