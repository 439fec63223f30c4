"""A FUSE device that another program opened and mounted, and gives to the daemon as /dev/fd/N.

Used by the command `mount` and the daemon. Knows nothing of what is served. The kernel lets its
first request, INIT, wait in a device from mount(2) on until a daemon reads it; so one that has
a request waiting is mounted and not served yet.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import stat
from pathlib import Path

from dserverfs.base.errors import UsageError

# The kernel's number for /dev/fuse, which need not be there: a container may have none.
_FUSE = os.makedev(10, 229)
_FIRST = 3  # those below are standard input, output and error
_MOST = (1 << 31) - 1  # the kernel's type is int


def number_of(mountpoint: Path) -> int | None:
    """Return the N of /dev/fd/N, as libfuse and the programs that mount spell it; else None."""
    found = re.fullmatch(r"/dev/fd/([0-9]{1,20})", str(mountpoint), re.ASCII)
    return int(found[1]) if found else None


def take(number: int) -> None:
    """Keep a given device from the programs that this process starts; raises UsageError.

    A program that has it open keeps a mount whose daemon has died from being dead: what
    is read from it waits forever.
    """
    require_waiting(number)
    os.set_inheritable(number, False)


def require_waiting(number: int) -> None:
    """Raise UsageError unless a descriptor is a FUSE device, mounted, and not served by a daemon.

    A daemon that served a second time would take requests from the first, and fail them.
    """
    name = f"/dev/fd/{number}"
    if number < _FIRST:
        raise UsageError(
            f"{name}: is standard input, output or error; the device has to be at 3 or above"
        )
    try:
        status = os.fstat(min(number, _MOST))
    except OSError as error:
        raise UsageError(
            f"{name}: {error.strerror}: the program that mounts has to leave the descriptor open"
            " for dserverfs, without close-on-exec"
        ) from error
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _FUSE:
        raise UsageError(
            f"{name}: is no FUSE device; give the descriptor of /dev/fuse that was mounted"
        )
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise UsageError(f"{name}: is not open for reading and writing; open /dev/fuse so")
    poll = select.poll()
    poll.register(number, select.POLLIN)
    ready = dict(poll.poll(0)).get(number, 0)
    if ready & select.POLLERR:
        raise UsageError(
            f"{name}: is not mounted, or no longer; mount it, and start dserverfs after that"
        )
    if not ready & select.POLLIN:
        raise UsageError(
            f"{name}: is served already; each daemon needs a device that was newly opened and"
            " mounted"
        )
