"""Which errors leave a copy incomplete, whatever the program that made it says in the end.

Used by the operations that change staged datasets, which disarm them then.
"""

from __future__ import annotations

import errno
import os

import trio

from dserverfs import errors

_NUMBERS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EFBIG,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)
_ERRORS = (errors.CannotHold, errors.NotUTF8, errors.NameTooLong, errors.TooLarge)


def reason_of(error: Exception) -> str | None:
    """Return what to tell the user if a copy is incomplete after `error`; None if it is not."""
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return os.strerror(error.errno)
    if isinstance(error, trio.TooSlowError):
        return os.strerror(errno.ETIMEDOUT)
    return str(error) if isinstance(error, _ERRORS) else None
