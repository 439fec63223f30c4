"""Children of a test run that cannot outlive it."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.support.patience import LATE_S

SETPRIV = "/usr/bin/setpriv"  # of util-linux; by its path, for a test may change PATH


@contextlib.contextmanager
def spawn(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` beside the test; the kernel kills it when the test run dies.

    At the end of the block it gets SIGTERM, and SIGKILL if it stays for 10 s more.
    setpriv sets the death signal, because Python code between fork and exec can
    deadlock in a process with threads; if the run dies before setpriv got to it, the next
    run's `leftovers` catch the child. Only for the main thread: the kernel sends the signal
    when the thread that forked ends, not the process.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("spawn from the main thread: the child dies with the thread it is from")
    with subprocess.Popen(
        [SETPRIV, "--pdeathsig", "KILL", "--", *command],
        env=env,
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    ) as process:
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes], timeout_s: float = LATE_S) -> int:
    """End `process` and return its exit status."""
    process.terminate()
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
