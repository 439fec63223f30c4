"""The errors that programs were given last by a mount: what was tried, on what, why, what to do.

Used by the operations, which note them, and by the commands, which show them. A program shows
the text of an errno, `Permission denied`, and seldom more; who asks for the reason finds it
here. In memory, and bounded; `kept_errors` has them on the disk. Thread-safe.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from dserverfs.base import errors
from dserverfs.base.printable import one_line, printable
from dserverfs.mount.errnos import Told
from dserverfs.mount.kept_errors import MAX_ERRORS, RecentError, those_below
from dserverfs.tree import refusals

MAX_REASON_LETTERS = 1000

# What a request does, for people.
_TRIED = {
    "lookup": "look up",
    "getattr": "look at",
    "setattr": "change size, mode or times of",
    "readlink": "read the link",
    "statfs": "measure the space of",
    "getxattr": "read an attribute of",
    "listxattr": "list the attributes of",
    "setxattr": "set an attribute of",
    "opendir": "list",
    "readdir": "list",
    "fsyncdir": "sync",
    "tell_rows": "list",
    "open": "open",
    "open_as_channel": "open",
    "create": "make the file",
    "read": "read",
    "write": "write",
    "fsync": "sync",
    "mkdir": "make the directory",
    "mknod": "make the file",
    "symlink": "make the symbolic link",
    "link": "make the link",
    "unlink": "delete",
    "rmdir": "delete",
    "rename": "rename",
}

_ASK_SERVER = "dserverfs whoami {server} says whether the server answers; then try again"
_DISK = "look at the disks with the cache and the staging directory: df, dserverfs cache info"
# What to do after an error; the first that fits counts. Nothing where its message says it.
_REMEDIES: tuple[tuple[type[Exception], str | None], ...] = (
    (
        refusals.NotPermitted,
        "make a directory: it becomes a dataset when it is frozen, and files go into it",
    ),
    (errors.CannotHold, "cp -rL and rsync -L copy what links point to; leave out the rest"),
    (errors.NotUTF8, "give it a name in UTF-8: convmv renames whole directories"),
    (errors.NameTooLong, "make the names shorter, or the directories less deep"),
    (errors.UsageError, None),
    (errors.Frozen, "what is frozen never changes: copy it, and make another dataset of the copy"),
    (
        errors.NotAuthenticated,
        "dserverfs login {server} gets a token; dserverfs whoami {server} tries it",
    ),
    (
        errors.PermissionDenied,
        "dserverfs whoami {server} shows what you may read and write; the server's owner decides",
    ),
    (errors.NotTheServer, None),
    (errors.Unreachable, _ASK_SERVER),
    (errors.IntegrityError, "tell the dataset's owner; dserverfs verify finds all such items"),
    (errors.NotStored, "tell the dataset's owner: the store has lost it"),
    (errors.TooLarge, "make several files of it"),
    (errors.TooManyOpen, "close files, or mount with a higher limit: ulimit -Hn"),
    (errors.ChangedMeanwhile, "read it again, and change that"),
    (errors.Conflict, "dserverfs status lists the mounts, of which the other one can change it"),
    (errors.LocalDiskError, _DISK),
    (errors.DserverfsError, None),
)
_FULL = "free space there: dserverfs cache clear, or freeze what is complete"


class RecentErrors:
    """The last errors of one mount of `server`."""

    def __init__(self, server: str, *, clock_s: Callable[[], float] = time.time) -> None:
        self._server = server
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._errors: OrderedDict[tuple[str, str, str], RecentError] = OrderedDict()

    def restore(self, errors: Iterable[RecentError]) -> None:
        """Take over those that an earlier mount had, before there is any."""
        with self._lock:
            for error in errors:
                self._errors[error.tried, error.path, error.reason] = error

    def note(self, request: str, path: str, told: Told) -> None:
        """Remember an error; one that is known is counted."""
        now_s = self._clock_s()
        reason = one_line(told.reason or "", MAX_REASON_LETTERS)
        error = RecentError(
            printable(path),
            _TRIED.get(request, request),
            errno.errorcode.get(told.number, str(told.number)),
            reason,
            self._remedy(told),
            1,
            now_s,
            now_s,
        )
        key = (error.tried, error.path, reason)
        with self._lock:
            if (known := self._errors.pop(key, None)) is not None:
                error = error._replace(times=known.times + 1, first_at=known.first_at)
            self._errors[key] = error
            if len(self._errors) > MAX_ERRORS:
                self._errors.popitem(last=False)

    def below(self, top: str, rest: str = "") -> list[RecentError]:
        """Return those at or below a path, as `those_below`, the last one last."""
        with self._lock:
            known = list(self._errors.values())
        return those_below(known, top, rest)

    def _remedy(self, told: Told) -> str | None:
        if told.number in (errno.ENOSPC, errno.EDQUOT):
            return _FULL
        if isinstance(told.error, OSError):
            return _DISK
        if told.number == errno.ETIMEDOUT:
            return _ASK_SERVER.format(server=self._server)
        for kind, text in _REMEDIES:
            if isinstance(told.error, kind):
                return text and text.format(server=self._server)
        return "please report it, with the mount's log"
