"""/dev/fuse as an ordinary machine has it: usable by everybody.

On bare servers and in containers it often is 0600. As root, the runs of this machine that
use it share a state file: whoever finds another mode notes it there and opens the device
to all, the last one to leave puts it back. Each user of the device holds a shared lock on
the file, which goes with its process: a run that is killed leaves the note behind, and
the next one restores the mode at its end. A second lock makes each step whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

DEVICE = Path("/dev/fuse")
STATE = Path("/run/dserverfs-test-fuse-mode")  # below /run only root can write
ORDINARY_MODE = 0o666


@contextlib.contextmanager
def usable_by_all(device: Path = DEVICE, state: Path = STATE) -> Iterator[None]:
    """Give `device` mode 0666 inside the block, if this is root and it has another.

    Raises OSError with one line that says what to do if it cannot be used.
    """
    if not device.exists():
        raise FileNotFoundError(f"no {device}: run 'modprobe fuse' as root")
    if os.geteuid() != 0:
        if not os.access(device, os.R_OK | os.W_OK):
            raise PermissionError(f"{device} is closed to users: run 'chmod 666 {device}' as root")
        yield
        return
    fd = os.open(state, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with _step(state):
            fcntl.flock(fd, fcntl.LOCK_SH)
            _open_to_all(device, fd)
        try:
            yield
        finally:
            with _step(state):
                _restore(device, fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _step(state: Path) -> Iterator[None]:
    lock = f"{state}.lock"
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _open_to_all(device: Path, fd: int) -> None:
    mode = stat.S_IMODE(device.stat().st_mode)
    if mode != ORDINARY_MODE:
        os.pwrite(fd, f"{mode:04o}".encode(), 0)
        device.chmod(ORDINARY_MODE)


def _restore(device: Path, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # another run uses it and restores it
    if noted := os.pread(fd, 4, 0):
        device.chmod(int(noted, 8))
        os.ftruncate(fd, 0)
