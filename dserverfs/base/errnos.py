"""The errno of each kind of error that dserverfs raises, for all who tell a program one."""

from __future__ import annotations

import errno

from dserverfs.base import errors

# The first that fits counts.
ERRNO: tuple[tuple[type[Exception], int], ...] = (
    (errors.StaleInode, errno.ESTALE),
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


def errno_of(error: BaseException) -> int:
    """Return the errno that reports `error`."""
    for kind, number in ERRNO:
        if isinstance(error, kind):
            return number
    return errno.EIO
