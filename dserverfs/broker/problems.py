"""Errors as dtool's commands show them: one line and a status, no traceback.

click shows a `ClickException` that way, and dtool's commands are click's. Under
them, and nowhere else, an error of ours becomes one as well; its own class stays among
its bases, for programs. click is never imported for that.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from dtoolcore.storagebroker import StorageBrokerOSError

from dserverfs.base.errors import Conflict, DserverfsError
from dserverfs.base.retry import AWAY

P = ParamSpec("P")
T = TypeVar("T")


def shown(error: DserverfsError) -> DserverfsError:
    """Return `error`, as one that click shows in a line if click is there."""
    click = sys.modules.get("click")
    if click is None or isinstance(error, click.ClickException):
        return error
    kind = type(error)
    both: type[DserverfsError] = type(
        kind.__name__, (kind, click.ClickException), {"__module__": __name__}
    )
    shown_as = both(str(error), uri=error.uri, status=error.status)
    click.ClickException.__init__(shown_as, str(error))  # an OSError among its bases does not
    shown_as.__dict__.update(error.__dict__)  # and what else its kind carries
    return shown_as


class ExistsAlready(Conflict, StorageBrokerOSError):  # type: ignore[misc]  # no types of dtoolcore's
    """The error that dtoolcore and its callers expect of a dataset that exists already."""


@contextlib.contextmanager
def needs_server(problem: str) -> Iterator[None]:
    """Raise an Unreachable with the problem in its message: nothing that is kept helps here."""
    try:
        yield
    except AWAY as error:
        message = f"{problem} while the server or its store is away: {error}"
        raise type(error)(message, uri=error.uri, status=error.status) from error


@contextlib.contextmanager
def dataset_made() -> Iterator[None]:
    """Raise a Conflict as dtoolcore's brokers do."""
    try:
        yield
    except Conflict as error:
        raise ExistsAlready(str(error), uri=error.uri, status=error.status) from error


def in_one_line(method: Callable[P, T]) -> Callable[P, T]:
    """Return `method`, raising errors of ours as `shown`."""

    @functools.wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except DserverfsError as error:
            raise shown(error) from error

    return wrapper


def all_in_one_line(cls: type[T]) -> type[T]:
    """Return the class with every method of its own wrapped by `in_one_line`."""
    for name, value in list(vars(cls).items()):
        if isinstance(value, types.FunctionType):
            setattr(cls, name, in_one_line(value))
        elif isinstance(value, classmethod):
            function: Any = value.__func__
            setattr(cls, name, classmethod(in_one_line(function)))
    return cls
