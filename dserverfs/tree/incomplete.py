"""The errors that leave a copy incomplete, even if the program that made it reports success.

Used by the changes of staged datasets, which disarm them then.
"""

from __future__ import annotations

import errno
import os
import re

from dserverfs.base import errors
from dserverfs.tree.steps import TookTooLong

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
# Emacs locks a file that it changes by `.#name`, a link; refused, it goes on without a lock.
_EMACS_LOCK = ".#"
# `git init` tries whether there are links: it names a file as mkstemp(3) does and links it.
_GIT_PROBE = re.compile("t[0-9A-Za-z]{6}")
_GIT_TARGET = b"testing"
_ERRORS = (
    errors.CannotHold,
    errors.NotUTF8,
    errors.NameTooLong,
    errors.TooLarge,
    errors.TooManyOpen,
)


def is_tried_only(name: str, target: bytes) -> bool:
    """Return whether a program makes a symbolic link to see whether it can, or beside its work.

    Refusing it leaves nothing incomplete.
    """
    return name.startswith(_EMACS_LOCK) or (
        target == _GIT_TARGET and _GIT_PROBE.fullmatch(name) is not None
    )


def reason_of(error: Exception) -> str | None:
    """Return what to tell the user if a copy is incomplete after `error`; None if it is not."""
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return os.strerror(error.errno)
    if isinstance(error, TookTooLong):
        return os.strerror(errno.ETIMEDOUT)
    return str(error) if isinstance(error, _ERRORS) else None
