"""Opening the FUSE device and mounting it, with libfuse's own helper and without libfuse."""

from __future__ import annotations

import array
import os
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path

from dserverfs.base import child_processes
from dserverfs.base.errors import UsageError

TIMEOUT_S = 10.0


def mount(path: Path, options: Iterable[str]) -> int:
    """Mount at a directory; return a descriptor of the device. Raises UsageError.

    As libfuse does for ordinary users: fusermount3 sends it over a socket.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = ["fusermount3", "-o", ",".join(sorted(options)), "--", str(path)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C in a terminal is for us alone
                env=child_processes.environment(_FUSE_COMMFD=str(theirs.fileno())),
            )
        except FileNotFoundError:
            raise UsageError("fusermount3 is not installed: install the package fuse3") from None
        except subprocess.TimeoutExpired:
            raise UsageError(f"{path}: cannot be mounted: fusermount3 does not end") from None
        said = done.stderr.strip().rpartition("\n")[2]
        if done.returncode != 0:
            raise UsageError(f"{path}: cannot be mounted: {said or f'status {done.returncode}'}")
        ours.setblocking(False)
        fds = array.array("i")
        try:
            _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_LEN(fds.itemsize))
        except BlockingIOError:
            raise UsageError(f"{path}: cannot be mounted: fusermount3 gave no device") from None
        for _, _, data in ancillary:
            fds.frombytes(data[: fds.itemsize])
        if not fds:
            raise UsageError(f"{path}: cannot be mounted: fusermount3 gave no device")
        os.set_inheritable(fds[0], False)
        return fds[0]
