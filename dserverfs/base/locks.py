"""A lock on a directory that says who holds it and is let go of when that process ends.

Used by staging: a staged dataset belongs to one process. `flock` decides; the
lock file's text tells others who it is. Where home directories are shared
between machines whose locks do not reach each other, the text decides too: a
lock that another machine wrote and did not take back counts as held.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

from dserverfs.base.clock import boot_id
from dserverfs.base.errors import ProtocolError
from dserverfs.base.limits import parse_json, understood
from dserverfs.base.printable import printable

_MACHINE_ID = Path("/etc/machine-id")


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
        """Return whether it is ours now; does not wait. Raises OSError if the disk fails."""
        if self._fd is not None:
            return True
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_elsewhere(_read(fd)):
                os.close(fd)
                return False
            _write(fd, json.dumps(_me()))
        except BlockingIOError:
            os.close(fd)
            return False
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def release(self) -> None:
        """Let go of it, if it is held."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            try:
                _write(fd, "")
            finally:
                os.close(fd)

    def owner(self) -> str:
        """Return who holds it, or held it when its process was killed, for a message."""
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
    """Say who holds it; on a full disk nobody is told, and the lock alone counts."""
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, text.encode("utf-8"), 0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return ""
