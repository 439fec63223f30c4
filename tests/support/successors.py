"""Daemons of a mount, one after the other: killed, and waited for."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tests.support.mount_daemons import Remountable, wait_for, wait_for_end


def kill_daemon(mount: Remountable) -> int:
    """Kill the daemon; return the process id of the next one, which serves."""
    before = mount.daemon()
    os.kill(before, signal.SIGKILL)
    wait_for_end(before)
    return successor_of(mount, before)


def successor_of(mount: Remountable, before: int) -> int:
    """Return the process id of the daemon that follows another one, when its commands are there."""
    found = [before]

    def serves() -> bool:
        with contextlib.suppress(AssertionError):
            found[0] = mount.daemon()
        return found[0] != before and _listens(found[0]) and _serves(found[0])

    try:
        wait_for(serves, "a daemon in the place of the dead one")
    except AssertionError as error:
        raise AssertionError(f"{error}; its log says:\n{log_of(mount)[-4000:]}") from None
    return found[0]


def log_of(mount: Remountable) -> str:
    """Return the log of a mount's daemons, and of its channel."""
    name = f"mount{str(mount.path).replace('/', '-')}.log"
    return (mount.account.home / ".local/state/dserverfs" / name).read_text()


def _serves(pid: int) -> bool:
    """Return whether a daemon has told the channel that it serves: it has its own log by then."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/2") == os.devnull
    return False


def _listens(pid: int) -> bool:
    """Return whether a process has its control sockets, of which the abstract one is the last."""
    with contextlib.suppress(OSError):
        inodes = {
            os.readlink(entry).removeprefix("socket:[").removesuffix("]")
            for entry in Path(f"/proc/{pid}/fd").iterdir()
        }
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[6] in inodes and fields[-1].startswith("@dserverfs-") and fields[5] == "01":
                return True
    return False
