"""From what is raised to what the kernel is told: the one table of errnos.

An error is never an answer. ENOENT is one: out of readdir it is the end of a directory, so
a program sees an empty one and a mirror deletes its copy. So it is said of names only,
where it is certain, and of nothing that is open. An error of the disk about our own files
says nothing about the user's: it is EIO, but for one that refuses a user's own change of a
staged file.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, ParamSpec, TypeVar

import trio
from pyfuse3 import FUSEError

from dserverfs.base import errors
from dserverfs.tree import refusals
from dserverfs.tree.steps import TookTooLong

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

# The errno an error becomes; the first that fits counts.
ERRNO: tuple[tuple[type[Exception], int], ...] = (
    (refusals.NotADirectory, errno.ENOTDIR),
    (refusals.NotEmpty, errno.ENOTEMPTY),
    (refusals.NotPermitted, errno.EPERM),
    (refusals.AcrossDatasets, errno.EXDEV),
    (refusals.NotOpenForWriting, errno.EBADF),
    (refusals.Invalid, errno.EINVAL),
    (refusals.NoAttribute, errno.ENODATA),
    (refusals.NoAttributes, errno.ENOSYS),  # the kernel does not ask again
    (refusals.NotSettable, errno.EOPNOTSUPP),
    (refusals.StillGoingOn, errno.EINPROGRESS),
    (errors.NotFound, errno.ENOENT),
    (errors.Frozen, errno.EROFS),
    (errors.PermissionDenied, errno.EACCES),
    (errors.DeadlineExceeded, errno.ETIMEDOUT),
    (errors.Unreachable, errno.EHOSTUNREACH),
    (errors.Unsupported, errno.EOPNOTSUPP),
    (errors.NameTaken, errno.EEXIST),
    (errors.ChangedMeanwhile, errno.ESTALE),
    (errors.Conflict, errno.EBUSY),
    (errors.TooLarge, errno.EFBIG),
    (errors.TooManyOpen, errno.EMFILE),
    (errors.NameTooLong, errno.ENAMETOOLONG),
    (errors.NotUTF8, errno.EILSEQ),
    (errors.CannotHold, errno.EPERM),
    (errors.ItemChanged, errno.EBUSY),
    (errors.Cancelled, errno.EINTR),
    (errors.UsageError, errno.EINVAL),
    (errors.DserverfsError, errno.EIO),
)

# Requests about what is open, which was found before: it cannot be missing.
_OF_OPEN = frozenset(
    {"readdir", "releasedir", "fsyncdir", "read", "write", "release", "fsync", "statfs"}
)

# The errnos of the local disk that a user is told who changes a staged dataset, by request.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_OF_NEW_NAME = _FULL | {errno.EEXIST, errno.ENAMETOOLONG}
_OF_LOST_NAME = _FULL | {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY}
_HONEST: Mapping[str, frozenset[int]] = {
    "lookup": frozenset({errno.ENAMETOOLONG}),
    "open": _FULL,
    "write": _FULL | {errno.EINVAL},
    "setattr": _FULL | {errno.EINVAL},
    "setxattr": _FULL,
    "fsync": _FULL,
    "fsyncdir": _FULL,
    "create": _OF_NEW_NAME,
    "mkdir": _OF_NEW_NAME,
    "mknod": _OF_NEW_NAME,
    "link": _OF_NEW_NAME | {errno.EMLINK, errno.ENOENT},
    "unlink": _OF_LOST_NAME,
    "rmdir": _OF_LOST_NAME,
    "rename": _OF_NEW_NAME | _OF_LOST_NAME | {errno.EINVAL, errno.EXDEV},
}


def errno_of(error: Exception) -> int:
    """Return the errno that reports `error`."""
    for kind, number in ERRNO:
        if isinstance(error, kind):
            return number
    return errno.EIO


def guarded(
    handler: Callable[P, Coroutine[Any, Any, R]],
) -> Callable[P, Coroutine[Any, Any, R]]:
    """Turn all that a handler raises into an errno; faults of ours are logged and give EIO."""
    name = handler.__name__

    @functools.wraps(handler)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(*args, **kwargs)
        except (trio.TooSlowError, TookTooLong):
            logger.warning("%s took too long", name)
            raise FUSEError(errno.ETIMEDOUT) from None
        except errors.NotFound as error:
            raise FUSEError(_missing(name, error)) from None
        except (refusals.Refused, errors.Frozen, errors.NameTaken) as error:
            logger.debug("%s: %s", name, error)
            raise FUSEError(errno_of(error)) from None
        except errors.DserverfsError as error:
            logger.warning("%s: %s", name, error)
            raise FUSEError(errno_of(error)) from None
        except OSError as error:
            raise FUSEError(_of_disk(name, error)) from None
        except Exception:
            logger.exception("%s: a fault of ours", name)
            raise FUSEError(errno.EIO) from None

    return answer


def _missing(request: str, error: errors.NotFound) -> int:
    """Return the errno of a name or a file that is missing."""
    if request in _OF_OPEN:
        logger.warning("%s: gone while it is open: %s", request, error)
        return errno.EIO
    logger.debug("%s: %s", request, error)
    return errno.ENOENT


def _of_disk(request: str, error: OSError) -> int:
    """Return the errno of an error of the local disk."""
    if error.errno is not None and error.errno in _HONEST.get(request, ()):
        level = logging.WARNING if error.errno in _FULL else logging.DEBUG
        logger.log(level, "%s: %s", request, error)
        return error.errno
    logger.warning("%s: a file of dserverfs itself cannot be used: %s", request, error)
    return errno.EIO
