"""A program that mounts and gives the FUSE device away, as container runtimes and CSI drivers do.

Tests of root mount in their own process (`mounted_device`). In a user namespace it is a program
that becomes the one it gives the device to:
`python -m tests.support.given_devices MOUNTPOINT COMMAND...` leaves it open as 3.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.accounts import Account, with_channel
from tests.support.child_processes import SETPRIV
from tests.support.leftovers import GIVEN

_MS_NOSUID, _MS_NODEV, _MNT_DETACH = 2, 4, 2  # <linux/mount.h>
_NOTHING = Path("/nonexistent")  # a PATH without fusermount3, and without all else


@dataclass
class Device:
    """A mount that nobody serves yet."""

    fd: int
    path: Path

    def close(self) -> None:
        """Leave the daemon the only one that has it open."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def unmount(self) -> None:
        # Others on the machine may look at it at this moment.
        _call("umount2", os.fsencode(self.path), _MNT_DETACH)

    def command(self, account: Account, uri: str, *options: str) -> list[str | Path]:
        """Return the command that serves it, without any privilege of its own."""
        serve = with_channel(("mount", uri, f"/dev/fd/{self.fd}", *options))
        return account.command(
            SETPRIV, "--no-new-privs", "--", account.python, "-m", "dserverfs", *serve
        )

    def serve(
        self, account: Account, uri: str, env: Mapping[str, str], *options: str
    ) -> subprocess.CompletedProcess[str]:
        """Have a daemon serve it; return when it answers, or has said why not."""
        return subprocess.run(
            self.command(account, uri, *options),
            env={**account.environment, "PATH": str(_NOTHING), **env},
            cwd=account.home,
            pass_fds=[self.fd],
            capture_output=True,
            text=True,
            timeout=60,
        )


@contextlib.contextmanager
def mounted_device(
    path: Path, uid: int, gid: int, *options: str, fstype: str = "fuse"
) -> Iterator[Device]:
    """Open a FUSE device and mount it at a new directory, for a user; unmount it at the end."""
    path.mkdir()
    device = Device(_mount(path, uid, gid, *options, fstype=fstype), path)
    try:
        yield device
    finally:
        device.close()
        with contextlib.suppress(OSError):  # it is unmounted
            _call("umount2", os.fsencode(path), _MNT_DETACH)


def _mount(path: Path, uid: int, gid: int, *options: str, fstype: str = "fuse") -> int:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = ",".join([f"fd={fd},rootmode=40000,user_id={uid},group_id={gid}", *options]).encode()
    flags = _MS_NOSUID | _MS_NODEV
    try:
        _call("mount", GIVEN.encode(), os.fsencode(path), fstype.encode(), flags, data)
    except OSError:
        os.close(fd)
        raise
    return fd


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    fd = _mount(Path(sys.argv[1]), os.getuid(), os.getgid())
    if fd != 3:
        os.dup2(fd, 3)
    os.set_inheritable(3, True)
    os.execvp(sys.argv[2], sys.argv[2:])
