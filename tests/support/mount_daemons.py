"""Mount daemons in tests: killed, mounted again, and what they left on the disk."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.support.accounts import Account
from tests.support.mounts import detach
from tests.support.patience import LATE_S
from tests.support.staged_states import staged_states


class Remountable:
    """A mount point of an account that can be mounted again and again."""

    def __init__(self, account: Account, uri: str, env: Mapping[str, str]) -> None:
        self.account = account
        self._uri = uri
        self._env = env
        self.path = account.home / f"crash-{len(list(account.home.glob('crash-*')))}"
        self.staging = self.path.with_name(f"{self.path.name}-staging")
        account.run("mkdir", self.path, check=True)

    def mount(self, *options: str) -> None:
        done = self.account.dserverfs(
            "mount", self._uri, self.path, "--staging-dir", self.staging, *options, env=self._env
        )
        assert done.returncode == 0, done.stderr

    def daemon(self) -> int:
        """Return the process id of the daemon that serves the mount point."""
        return daemon_of(self.path)

    def end(self, number: signal.Signals) -> None:
        """Send a signal to the daemon and return when it is gone.

        A kill ends its channel as well, which would start another one.
        """
        pid = self.daemon()
        channel = channel_of(pid) if number == signal.SIGKILL else None
        if channel is not None:
            os.kill(pid, signal.SIGSTOP)  # lest it ends in an orderly way
            os.kill(channel, signal.SIGKILL)
            wait_for_end(channel)
        os.kill(pid, number)
        wait_for_end(pid)

    def states(self) -> dict[str, str]:
        """Return the state of each staged dataset as it is on the disk, by name."""
        return {record["name"]: record["state"] for _, record in staged_states(self.staging)}


@contextlib.contextmanager
def remountable(account: Account, uri: str, env: Mapping[str, str]) -> Iterator[Remountable]:
    """Yield a mount point that is not mounted yet; takes away whatever is there at the end."""
    mount = Remountable(account, uri, env)
    try:
        yield mount
    finally:
        # On a host of its own it is in none of our mounts, and its daemon runs all the same.
        with contextlib.suppress(AssertionError, ProcessLookupError):
            mount.end(signal.SIGKILL)
        detach(mount.path)


def daemon_of(path: Path) -> int:
    """Return the process id of the daemon that serves the mount point `path`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if os.fsencode(path) in words and b"mount" in words:
                    return int(entry.name)
    raise AssertionError(f"no daemon serves {path}")


def channel_of(daemon: int) -> int | None:
    """Return the process id of a daemon's channel: its child, or its parent if it is not the first.

    None of a mount without one.
    """
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
    status = Path(f"/proc/{daemon}/status").read_text()
    (parent,) = (line.split()[1] for line in status.splitlines() if line.startswith("PPid:"))
    for pid in (*children, parent):
        with contextlib.suppress(OSError):
            if b"dserverfs.mount.channel" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    return None


def wait_for_end(pid: int, timeout_s: float = LATE_S) -> None:
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            assert select.select([fd], [], [], timeout_s)[0], f"process {pid} does not end"
        finally:
            os.close(fd)


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = LATE_S) -> None:
    """Return when `condition` holds; looks without a pause, for what lasts only moments."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"not seen: {what}"


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hold up a process inside the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
