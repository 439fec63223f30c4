"""From what is raised to what the kernel is told: the one table of errnos."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import trio
from pyfuse3 import FUSEError

from dserverfs import errors

logger = logging.getLogger(__name__)

# What programs expect to be told by a local file system every now and then.
_ORDINARY = frozenset(
    {
        errno.ENOENT,
        errno.EEXIST,
        errno.ENOTEMPTY,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EXDEV,
        errno.ENAMETOOLONG,
    }
)

P = ParamSpec("P")
R = TypeVar("R")

# The errno an error becomes; the first that fits counts.
ERRNO: tuple[tuple[type[Exception], int], ...] = (
    (errors.NotFound, errno.ENOENT),
    (errors.Frozen, errno.EROFS),
    (errors.PermissionDenied, errno.EACCES),
    (errors.DeadlineExceeded, errno.ETIMEDOUT),
    (errors.Unreachable, errno.EHOSTUNREACH),
    (errors.Unsupported, errno.EOPNOTSUPP),
    (errors.NameTaken, errno.EEXIST),
    (errors.Conflict, errno.EBUSY),
    (errors.TooLarge, errno.EFBIG),
    (errors.NameTooLong, errno.ENAMETOOLONG),
    (errors.NotUTF8, errno.EILSEQ),
    (errors.CannotHold, errno.EPERM),
    (errors.ItemChanged, errno.EBUSY),
    (errors.TooLarge, errno.EFBIG),
    (errors.Cancelled, errno.EINTR),
    (errors.UsageError, errno.EINVAL),
    (errors.DserverfsError, errno.EIO),
)


def errno_of(error: Exception) -> int:
    """Return the errno that reports `error`."""
    for kind, number in ERRNO:
        if isinstance(error, kind):
            return number
    return errno.EIO


def guarded(
    handler: Callable[P, Coroutine[Any, Any, R]],
) -> Callable[P, Coroutine[Any, Any, R]]:
    """Turn whatever a handler raises into an errno; faults of ours are logged and give EIO."""
    name = handler.__name__

    @functools.wraps(handler)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except trio.TooSlowError:
            logger.warning("%s took too long", name)
            raise FUSEError(errno.ETIMEDOUT) from None
        except (errors.NotFound, errors.Frozen, errors.NameTaken) as error:
            logger.debug("%s: %s", name, error)
            raise FUSEError(errno_of(error)) from None
        except errors.DserverfsError as error:
            logger.warning("%s: %s", name, error)
            raise FUSEError(errno_of(error)) from None
        except OSError as error:
            level = logging.DEBUG if error.errno in _ORDINARY else logging.WARNING
            logger.log(level, "%s: %s", name, error)
            raise FUSEError(error.errno or errno.EIO) from None
        except Exception:
            logger.exception("%s: a fault of ours", name)
            raise FUSEError(errno.EIO) from None

    return answer
