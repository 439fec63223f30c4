"""Steps: an operation of the file system that may have to wait, without saying how one waits.

Used by the file system, whose operations are generators where they may block: each yields
the call that would, and is sent what it returned, or thrown what it raised. Between two
steps an operation is atomic for all others. The mount makes the calls in threads while
its event loop goes on; a test makes them at once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

from dserverfs.base.errors import DeadlineExceeded
from dserverfs.catalogue.refreshed import NotLoaded

R = TypeVar("R")


class Limit(enum.Enum):
    """The reasons why a call blocks; each has threads and a timeout of its own."""

    DISK = "files of dserverfs itself"
    WRITE = "what users write"
    EDIT = "a server that is told of an edit"
    FREEZE = "a freeze that was asked for"


class WouldBlock(NamedTuple):
    """A call to be made in a thread."""

    call: Callable[[], Any]
    limit: Limit


class Unloaded(NamedTuple):
    """A question to be asked again once what it lacks is loaded."""

    ask: Callable[[], Any]
    missing: NotLoaded


class TookTooLong(DeadlineExceeded):
    """A call was not done in time; it may go on."""


Steps = Generator[WouldBlock | Unloaded, Any, R]


def blocking(call: Callable[[], R], limit: Limit) -> Steps[R]:
    """Return what `call` returns, which may block; raises TookTooLong and what it raises."""
    result: R = yield WouldBlock(call, limit)
    return result


def loaded(ask: Callable[[], R]) -> Steps[R]:
    """Return what `ask` returns, having loaded what it lacks."""
    try:
        return ask()
    except NotLoaded as missing:
        result: R = yield Unloaded(ask, missing)
        return result
