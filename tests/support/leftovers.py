"""What a test run leaves on the machine, and its removal: mounts, processes, users, files.

Every run has a root, a directory `dserverfs-test-*` below the temporary directory, and
everything a test makes can be traced to it: mounts of type fuse.dserverfs lie below it,
processes have it in their environment, throw-away users have their home in it. So a run
cleans up after itself and after earlier runs that were killed, and touches nothing else.
A run that lives holds a lock on its root.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dserverfs.base.mountinfo import FSTYPE, all_mounted

ROOT_PREFIX = "dserverfs-test-"
ROOT_VARIABLE = "DSERVERFS_TEST_ROOT"  # in the environment of every process of a run
USER_PREFIX = "dserverfs-t"
STORE_SOCKETS = Path("/tmp/seaweedfs-*.sock")
RECORDING = "recording_device"  # the source of that FUSE mount
GIVEN = "given_devices"  # and of those that a test mounts itself


class Run:
    """One test run's root, locked while the run lives."""

    def __init__(self, root: Path, lock_fd: int) -> None:
        self.root = root
        self._lock_fd = lock_fd

    @classmethod
    def start(cls) -> Run:
        # Resolved: the kernel's mount table knows no symbolic links.
        root = Path(tempfile.mkdtemp(prefix=ROOT_PREFIX)).resolve()
        lock_fd = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        root.chmod(0o755)  # only now, that no other run takes it for a dead one's
        return cls(root, lock_fd)

    def end(self) -> list[str]:
        """Remove the root and all that belongs to it; return what had been left behind."""
        found = clean(self.root)
        os.close(self._lock_fd)
        return found


def clean_dead_runs() -> list[str]:
    """Clean up after runs of this user that ended without doing so; return what was found."""
    found: list[str] = []
    for root in sorted(Path(tempfile.gettempdir()).resolve().glob(ROOT_PREFIX + "*")):
        status = root.stat(follow_symlinks=False)
        if status.st_uid != os.geteuid() or not status.st_mode & stat.S_IXOTH:
            continue  # another user's, or just being made
        lock_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its run lives
        else:
            found += clean(root)
        finally:
            os.close(lock_fd)
    # A temporary directory that a reboot emptied takes the roots with it, not the users.
    found += [_remove_user(user) for user in _users() if not Path(user.pw_dir).parent.exists()]
    return found


def clean(root: Path) -> list[str]:
    """Unmount, end and delete everything that belongs to `root`; return what was found."""
    found = []
    # Mounts first: a process that waits for a dead file system ends only after it.
    for mount_point in reversed(mounts_below(root)):
        found.append(f"mount {mount_point}")
        subprocess.run(["fusermount3", "-uz", mount_point], check=False)
    found += [f"process {process}" for process in kill_processes(root)]
    _remove_sockets()
    for disk in reversed(_disks_below(root)):
        found.append(f"disk {disk}")
        subprocess.run(["umount", "--lazy", disk], check=False)
    found += [_remove_user(user) for user in _users() if Path(user.pw_dir).is_relative_to(root)]
    if remaining := mounts_below(root, fstype=None):
        # Deleting now could delete what is mounted there.
        found.append(f"{root}: kept, for {', '.join(map(str, remaining))} is still mounted")
    else:
        shutil.rmtree(root, ignore_errors=True)
    return found


def mounts_below(root: Path, fstype: str | None = FSTYPE) -> list[Path]:
    """Return the mount points at or below `root`, outer ones first; of any type for None."""
    return [
        Path(mounted.path)
        for mounted in all_mounted()
        if Path(mounted.path).is_relative_to(root) and fstype in (None, mounted.fstype)
    ]


def _disks_below(root: Path) -> list[Path]:
    """Return the mount points below `root` of files that are disks, and of other FUSE mounts."""
    return [
        Path(mounted.path)
        for mounted in all_mounted()
        if Path(mounted.path).is_relative_to(root)
        and (mounted.source.startswith("/dev/loop") or mounted.source in (RECORDING, GIVEN))
    ]


def kill_processes(root: Path, timeout_s: float = 10) -> list[str]:
    """Kill every process with `root` in its environment; return them, once they are gone."""
    killed = []
    for pid in _marked_processes(root):
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if pid in _marked_processes(root, [pid]):  # not another one with a reused number
                killed.append(f"{pid} ({_command(pid)})")
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)
    deadline = time.monotonic() + timeout_s
    while any(_marked_processes(root)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return killed


def _marked_processes(root: Path, pids: list[int] | None = None) -> Iterator[int]:
    mark = f"{ROOT_VARIABLE}={root}".encode()
    for pid in pids or [int(name) for name in os.listdir("/proc") if name.isdecimal()]:
        if pid == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # gone, or another user's
            continue
        if mark in environment.split(b"\0"):  # that of a zombie is empty
            yield pid


def _remove_sockets() -> None:
    """Remove the sockets in /tmp of stores that were killed: no process has them open."""
    paths = [*STORE_SOCKETS.parent.glob(STORE_SOCKETS.name)]
    used = _bound_sockets()  # read later: it has all of them
    for path in paths:
        with contextlib.suppress(OSError):  # another user's, or gone
            if str(path) not in used and stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()


def _bound_sockets() -> set[str]:
    """Return the paths of Unix sockets, of every network namespace that a process is in."""
    found: set[str] = set()
    read: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone, or another user's
            namespace = os.readlink(process / "ns/net")
            if namespace not in read:
                lines = (process / "net/unix").read_text().splitlines()
                found |= {line.split()[-1] for line in lines}
                read.add(namespace)
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return "gone"


def _users() -> list[pwd.struct_passwd]:
    """Return the throw-away users of this machine, if this process may remove them."""
    if os.geteuid() != 0:
        return []
    return [user for user in pwd.getpwall() if re.fullmatch(USER_PREFIX + r"\d+", user.pw_name)]


def _remove_user(user: pwd.struct_passwd) -> str:
    subprocess.run(["userdel", "--force", user.pw_name], check=False, stderr=subprocess.DEVNULL)
    return f"user {user.pw_name}"
