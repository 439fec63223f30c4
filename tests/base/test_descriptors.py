"""Which files a process may have open, and how many of them programs get."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from dserverfs.base import descriptors

_RAISED = """
import resource
from dserverfs.base import descriptors
descriptors.raise_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""
_REFUSED = """
try:
    descriptors.raise_limit()
except descriptors.UsageError as error:
    print(error)
"""
# Opens what it is given until it is given no more; then what the reserve is for.
_ALL = """
import os
from dserverfs.base import descriptors, errors
taken = []
try:
    while True:
        descriptors.require_spare()
        taken.append(os.open("/dev/null", os.O_RDONLY))
except errors.TooManyOpen as error:
    print(error)
reserve = [os.open("/dev/null", os.O_RDONLY) for _ in range(90)]
os.close(taken.pop())
descriptors.require_spare()
print(len(taken))
"""


def limited(code: str, soft: int, hard: int) -> list[str]:
    command = ["prlimit", f"--nofile={soft}:{hard}", sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(("soft", "hard"), [(100, 3000), (3000, 3000)])
def test_limit_of_open_files_is_raised_to_the_hard_one(soft: int, hard: int) -> None:
    assert limited(_RAISED, soft, hard) == ["3000 3000"]


def test_limit_that_is_too_low_for_a_mount_is_told() -> None:
    low = descriptors.LEAST - 1
    code = _RAISED.replace("descriptors.raise_limit()", _REFUSED)

    said, *_ = limited(code, 100, low)

    assert said.startswith(f"a mount needs {descriptors.LEAST} open files, and may have {low} here")
    assert limited(_RAISED, 100, descriptors.LEAST) == [f"{descriptors.LEAST} {descriptors.LEAST}"]


def test_descriptors_in_reserve_are_not_given() -> None:
    said, count = limited(_ALL, 200, 200)

    assert "of 200 that its daemon may have" in said
    assert 90 < int(count) < 100


def test_a_closed_file_is_one_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(descriptors, "RESERVED", 0)

    with contextlib.ExitStack() as stack:
        for _ in range(10):
            descriptors.require_spare()
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))

    assert len(os.listdir("/proc/self/fd")) == before  # nothing of the question stays open
