"""The daemon's leave of the command that started it, and of its terminal."""

from __future__ import annotations

import contextlib
import os
import select

from dserverfs.mount.launcher import READY


def is_alone(ready_fd: int) -> bool:
    """Return True if no process waits for READY any more: the command was killed."""
    poll = select.poll()
    poll.register(ready_fd, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def become_daemon(ready_fd: int) -> None:
    """Tell the command that started this process that the mount answers."""
    # Errors before this went to the command's stderr; from now on there is the log.
    leave_stderr()
    os.chdir("/")
    with contextlib.suppress(BrokenPipeError):
        os.write(ready_fd, READY)
    os.close(ready_fd)


def leave_stderr() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    os.close(null)
