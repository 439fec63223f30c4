"""A check of `dserverfs doctor`, and what it found; none takes longer than its time."""

from __future__ import annotations

import contextlib
import enum
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dserverfs.base import bounded_calls
from dserverfs.base.errors import DserverfsError


class State(enum.Enum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(NamedTuple):
    state: State
    said: str
    todo: str = ""


class Check(NamedTuple):
    """A look at one thing; what it raises is a problem."""

    name: str
    look: Callable[[], Finding]


def ok(said: str) -> Finding:
    return Finding(State.OK, said)


def warning(said: str, todo: str) -> Finding:
    return Finding(State.WARNING, said, todo)


def problem(said: str, todo: str = "") -> Finding:
    return Finding(State.PROBLEM, said, todo)


def finding_of(check: Check, timeout_s: float) -> Finding:
    """Return what a check finds, in that time at most."""
    try:
        return bounded_calls.within(timeout_s, check.look)
    except (bounded_calls.GivenUp, DserverfsError) as error:
        return problem(str(error))
    except OSError as error:
        return problem(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
    except Exception as error:  # noqa: BLE001 - of a program or library that is looked at
        return problem(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def warnings_of(found: list[Finding]) -> Iterator[None]:
    """Add to `found` what the block would log as a warning, in place of the log."""
    handler = _Handler(found)
    logger = logging.getLogger("dserverfs")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, found: list[Finding]) -> None:
        super().__init__(logging.WARNING)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        self._found.append(warning(record.getMessage(), ""))
