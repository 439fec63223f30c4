"""Memory that is used again and again is not mapped anew each time."""

from __future__ import annotations

import subprocess
import sys

ROUNDS = 200
PROGRAM = f"""
import resource, sys
from dserverfs.mount import allocator
if sys.argv[1] == "keep":
    allocator.keep_freed_memory()
held = [bytes(100_000) for _ in range(10)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    buffers = [b"x" * (1024 * 1024) for _ in range(4)]
    del buffers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=60, check=True
    )
    return int(done.stdout)


def test_freed_buffers_are_used_again_without_page_faults() -> None:
    assert faults("keep") < faults("as it is") / 10
