"""Starting the mount daemon and ending it, from the command's own process.

The daemon is Python executed anew (no fork after imports), with a pipe on which
it says that the mount answers. Imports nothing heavy: the command does not need
what the daemon needs.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dserverfs import mountpoint
from dserverfs.errors import UsageError

READY_TIMEOUT_S = 90.0
READY = b"ready\n"
# Not `python -m`, which would import from the working directory first.
_DAEMON = """
import sys
sys.path[:] = [entry for entry in sys.path if entry]
from dserverfs.cli import main
sys.exit(main())
"""


def start(arguments: Sequence[str]) -> None:
    """Start `dserverfs ARGUMENTS` as a daemon and return when its mount answers.

    Raises UsageError with what the daemon said if it ends before, or is not
    ready within READY_TIMEOUT_S.
    """
    mountpoint.require_fuse()
    ready_read, ready_write = os.pipe()
    command = [sys.executable, "-c", _DAEMON, *arguments, "--ready-fd", str(ready_write)]
    try:
        daemon = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[ready_write],
            start_new_session=True,
        )
    finally:
        os.close(ready_write)
    try:
        with os.fdopen(ready_read, "rb") as ready:
            answered, _, _ = select.select([ready], [], [], READY_TIMEOUT_S)
            if answered and ready.readline() == READY:
                # It goes on without us; tell subprocess that this is intended.
                daemon.returncode = 0
                return
            if not answered:
                raise UsageError(f"not mounted: no answer within {READY_TIMEOUT_S:.0f} s")
        _, said = daemon.communicate(timeout=READY_TIMEOUT_S)
        lines = said.decode("utf-8", "replace").strip().splitlines()
        message = lines[-1] if lines else f"the daemon ended with status {daemon.returncode}"
        raise UsageError(message.removeprefix("dserverfs: "))
    except BaseException:
        if daemon.returncode is None:
            daemon.kill()
            daemon.wait()
        raise
    finally:
        if daemon.stderr is not None:
            daemon.stderr.close()


def stop(path: Path, timeout_s: float) -> None:
    """Unmount `path`; return when the daemon has let go of it. Raises UsageError."""
    mounted = mountpoint.find_mounted(path)
    if mounted is None or mounted.fstype != mountpoint.FSTYPE:
        raise UsageError(f"{path}: no dserverfs is mounted there")
    if mountpoint.is_dead(path):
        mountpoint.detach(path)
        return
    mountpoint.unmount(path)
    end_s = time.monotonic() + timeout_s
    while mountpoint.find_mounted(path) == mounted:
        if time.monotonic() >= end_s:
            raise UsageError(f"{path}: still mounted after {timeout_s:.0f} s")
        time.sleep(0.05)
