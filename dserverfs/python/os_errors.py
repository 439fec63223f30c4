"""Errors as programs that read files expect them: OSError, of the class that its errno has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dserverfs.base.errnos import errno_of
from dserverfs.base.errors import DserverfsError


@contextlib.contextmanager
def os_errors(path: str) -> Iterator[None]:
    """Raise an OSError with the errno that a mount gives, in place of an error of ours.

    FileNotFoundError, PermissionError and the like are chosen by the errno. The error of ours is
    its cause, and its line is a part of the message.
    """
    try:
        yield
    except DserverfsError as error:
        raise OSError(errno_of(error), str(error), path) from error
