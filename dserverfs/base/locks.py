"""Locks between processes: `flock` on a file that stays; the end of a process releases them.

Used for caches, staging, edits and the server's data. `locked` and `locked_within` hold
one for a block of code. An OwnerLock is held for long and names its owner: a staged
dataset belongs to one process. `flock` decides; the lock file's text names the owner.
Where home directories are shared between machines whose locks do not reach each other,
the text decides too: a lock that another machine wrote and did not take back counts as
held.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dserverfs.base.clock import boot_id
from dserverfs.base.errors import ProtocolError
from dserverfs.base.limits import parse_json, understood
from dserverfs.base.local_files import is_full
from dserverfs.base.printable import printable

_MACHINE_ID = Path("/etc/machine-id")
_POLL_S = 0.02


def open_lock(path: Path) -> int:
    """Return the descriptor of a lock file, made if it is missing; close it to release the lock."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_share(fd: int) -> bool:
    """Return whether the lock is held by this descriptor beside others that share it, at once."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def try_lock(fd: int) -> bool:
    """Return whether the lock is held by this descriptor now; does not wait."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file that others hold for moments only; waits for it."""
    fd = open_lock(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked_within(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock of a file; raises BlockingIOError if it is held elsewhere for so long."""
    end_s = time.monotonic() + timeout_s
    fd = open_lock(path)
    try:
        while not try_lock(fd):
            if time.monotonic() >= end_s:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)


class OwnerLock:
    """At most one process holds it; not to be shared between threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._fd is not None

    def acquire(self) -> bool:
        """Return whether this object holds it now; does not wait. Raises OSError."""
        if self._fd is not None:
            return True
        with contextlib.ExitStack() as stack:
            fd = open_lock(self._path)
            stack.callback(os.close, fd)
            if not try_lock(fd) or _is_elsewhere(_read(fd)):
                return False
            _write(fd, json.dumps(_me()))
            stack.pop_all()
        self._fd = fd
        return True

    def release(self) -> None:
        """Release it, if it is held."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            try:
                _write(fd, "")
            finally:
                os.close(fd)

    def owner(self) -> str:
        """Return the process that holds it, or was killed holding it, for a message."""
        try:
            owner = parse_json(self._path.read_bytes(), "the lock")
            with understood("the lock"):
                return printable(f"process {owner['pid']} on {owner['host']}")
        except (OSError, ProtocolError):
            return "another process"


def _me() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _text(_MACHINE_ID),
        "boot": boot_id(),
        "pid": os.getpid(),
    }


def _is_elsewhere(text: str) -> bool:
    """Return whether the lock file says that a process of another machine holds it."""
    try:
        with understood("the lock"):
            owner = parse_json(text, "the lock")
            machine, host = owner["machine"], owner["host"]
    except ProtocolError:
        return False
    me = _me()
    if machine and me["machine"]:
        return bool(machine != me["machine"])
    return bool(host != me["host"])


def _read(fd: int) -> str:
    return os.pread(fd, 4096, 0).decode("utf-8", "replace")


def _write(fd: int, text: str) -> None:
    """Write the owner's name; a full disk keeps none, and the lock alone counts."""
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, text.encode("utf-8"), 0)
    except OSError as error:
        if not is_full(error):
            raise


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return ""
