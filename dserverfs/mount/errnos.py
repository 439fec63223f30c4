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
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from time import perf_counter
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

import trio
from pyfuse3 import FUSEError

from dserverfs.base import errnos, errors
from dserverfs.mount.callers import Callers
from dserverfs.mount.request_counts import RequestCounts
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
    *errnos.ERRNO,
)

# Requests about what is open, which was found before: it cannot be missing.
_OF_OPEN = frozenset(
    {
        *("readdir", "releasedir", "fsyncdir", "read", "write", "release", "fsync", "statfs"),
        *("tell_rows", "open_as_channel"),
    }
)

# Answers that every file system gives, and programs go on after.
_ORDINARY = (
    refusals.AcrossDatasets,
    refusals.Invalid,
    refusals.NoAttribute,
    refusals.NoAttributes,
    refusals.NotADirectory,
    refusals.NotEmpty,
    refusals.NotOpenForWriting,
    refusals.NotSettable,
    refusals.OnlyTried,
    refusals.StillGoingOn,
    errors.NameTaken,
)
# Requests whose answer the kernel gives to no program.
_UNHEARD = frozenset({"forget", "release", "releasedir"})

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


class Told(NamedTuple):
    """What a program is told in place of an answer."""

    number: int
    reason: str | None = None  # None: an ordinary answer, of which nobody asks why
    error: Exception | None = None  # that is the reason


class Handlers(Protocol):
    """Those of one mount."""

    counts: RequestCounts
    callers: Callers | None  # None: the kernel has compared modes

    def remember(self, request: str, arguments: Mapping[str, Any], told: Told) -> None:
        """Keep the reason for whoever asks what went wrong; must not raise."""


H = TypeVar("H", bound=Handlers)


def guarded(
    handler: Callable[Concatenate[H, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[H, P], Coroutine[Any, Any, R]]:
    """Turn all that a handler raises into an errno; faults of ours are logged and give EIO."""
    name = handler.__name__
    parameters = list(inspect.signature(handler).parameters)[1:]

    @functools.wraps(handler)
    async def answer(self: H, /, *args: P.args, **kwargs: P.kwargs) -> R:
        begun_s = perf_counter()
        try:
            if self.callers is not None:
                given = {**dict(zip(parameters, args, strict=False)), **kwargs}
                await self.callers.admit(name, given)
            return await handler(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - told to the program
            told = _told(name, error)
            self.counts.errors[name, told.number] += 1
            if told.reason is not None and name not in _UNHEARD:
                self.remember(name, {**dict(zip(parameters, args, strict=False)), **kwargs}, told)
            raise FUSEError(told.number) from None
        finally:
            self.counts.done(name, perf_counter() - begun_s)

    return answer


async def or_errno(answer: Awaitable[R]) -> R | int:
    """Return what a handler answers, or the negative of the errno that it raises."""
    try:
        return await answer
    except FUSEError as error:
        return -error.errno


def _told(request: str, error: Exception) -> Told:
    """Return what a program is told of an error, which is logged."""
    if isinstance(error, (trio.TooSlowError, TookTooLong)):
        logger.warning("%s took too long", request)
        return Told(errno.ETIMEDOUT, "it took too long", error)
    if isinstance(error, errors.NotFound):
        return _missing(request, error)
    number = errno_of(error)
    if isinstance(error, (refusals.Refused, errors.Frozen, errors.NameTaken)):
        logger.debug("%s: %s", request, error)
        return Told(number) if isinstance(error, _ORDINARY) else Told(number, str(error), error)
    if isinstance(error, errors.DserverfsError):
        logger.warning("%s: %s", request, error)
        return Told(number, str(error), error)
    if isinstance(error, OSError):
        return _of_disk(request, error)
    logger.error("%s: a fault of ours", request, exc_info=error)
    return Told(number, "a fault of dserverfs, whose log says more", error)


def _missing(request: str, error: errors.NotFound) -> Told:
    """Return what is told of a name or a file that is missing."""
    if request in _OF_OPEN:
        logger.warning("%s: gone while it is open: %s", request, error)
        return Told(errno.EIO, f"gone while it is open: {error}", error)
    logger.debug("%s: %s", request, error)
    return Told(errno_of(error))  # the kernel looks the path up again if it is ESTALE


def _of_disk(request: str, error: OSError) -> Told:
    """Return what is told of an error of the local disk."""
    if error.errno is not None and error.errno in _HONEST.get(request, ()):
        if error.errno in _FULL:
            logger.warning("%s: %s", request, error)
            return Told(error.errno, os.strerror(error.errno), error)
        logger.debug("%s: %s", request, error)
        return Told(error.errno)
    logger.warning("%s: a file of dserverfs itself cannot be used: %s", request, error)
    return Told(errno.EIO, f"a file of dserverfs itself cannot be used: {error}", error)
