"""Which errno programs are told: never one that means less than that something went wrong."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest
from pyfuse3 import FUSEError

from dserverfs.base import errors
from dserverfs.mount.callers import Callers
from dserverfs.mount.errnos import Told, guarded
from dserverfs.mount.operations import Operations
from dserverfs.mount.request_counts import RequestCounts
from dserverfs.tree import refusals
from dserverfs.tree.steps import TookTooLong

REQUESTS = sorted(
    name for name, handler in vars(Operations).items() if hasattr(handler, "__wrapped__")
)
OF_LOST_NAMES = {"link", "rename", "rmdir", "unlink"}
OF_OPEN = {
    *("read", "readdir", "write", "fsync", "fsyncdir", "release", "releasedir", "statfs"),
    *("open_as_channel", "tell_rows"),
}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def errno_for(request: str, error: Exception) -> int:
    """Return what a program is told when a handler of that name raises `error`."""

    return told(request, error)[0]


def told(request: str, error: Exception) -> tuple[int, list[Told]]:
    """Return what a program is told, and what is remembered of it."""

    class World:
        def __init__(self) -> None:
            self.remembered: list[Told] = []
            self.counts = RequestCounts()
            self.callers: Callers | None = None

        def remember(self, request: str, arguments: Mapping[str, Any], told: Told) -> None:
            assert arguments == {"inode": 7}
            self.remembered.append(told)

    async def handler(world: World, inode: int) -> None:
        raise error

    handler.__name__ = request
    call: Callable[[World, int], Coroutine[Any, Any, None]] = guarded(handler)
    world = World()
    with pytest.raises(FUSEError) as raised:
        call(world, 7).send(None)  # it waits for nothing
    assert world.counts.errors == {(request, raised.value.errno): 1}
    assert sum(world.counts.durations[request].counts) == 1
    return int(raised.value.errno), world.remembered


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dserverfs.mount.errnos.logger.disabled", True)


def test_requests_are_those_of_a_mount() -> None:
    assert {"lookup", "getattr", "opendir", "open", "mkdir", "create"} <= set(REQUESTS)
    assert set(REQUESTS) >= OF_LOST_NAMES | OF_OPEN


@pytest.mark.parametrize("request_name", REQUESTS)
def test_what_a_disk_says_is_told_only_where_it_is_about_what_was_asked(request_name: str) -> None:
    for number in errno.errorcode:
        told = errno_for(request_name, OSError(number, os.strerror(number)))
        assert told in (number, errno.EIO)
        if number == errno.ENOENT:
            assert (told == errno.ENOENT) == (request_name in OF_LOST_NAMES)
        if number in (errno.EACCES, errno.EROFS, errno.ESTALE, errno.EPERM, errno.EMFILE):
            assert told == errno.EIO
    assert errno_for(request_name, OSError("no number")) == errno.EIO
    assert errno_for(request_name, sqlite3.OperationalError("locked")) == errno.EIO


@pytest.mark.parametrize("number", sorted(FULL))
def test_full_disk_is_told_to_who_writes_and_to_nobody_else(number: int) -> None:
    error = OSError(number, os.strerror(number))

    for request in ("write", "create", "mkdir", "rename", "fsync", "setattr"):
        assert errno_for(request, error) == number
    for request in ("getattr", "lookup", "opendir", "readdir", "read", "statfs", "getxattr"):
        assert errno_for(request, error) == errno.EIO


@pytest.mark.parametrize("request_name", REQUESTS)
def test_missing_is_told_of_names_and_not_of_what_is_open(request_name: str) -> None:
    told = errno_for(request_name, errors.NotFound("gone"))

    assert told == (errno.EIO if request_name in OF_OPEN else errno.ENOENT)


@pytest.mark.parametrize(
    "error",
    [errors.NotStored("lost"), errors.LocalDiskError("broken"), errors.ProtocolError("odd")],
    ids=lambda error: type(error).__name__,
)
def test_what_is_lost_elsewhere_is_never_missing(error: errors.DserverfsError) -> None:
    assert {errno_for(request, error) for request in REQUESTS} == {errno.EIO}


ANSWERS = [
    errors.NotFound("no such name"),
    errors.NameTaken("there is one"),
    refusals.NotEmpty("is not empty"),
    refusals.NoAttribute("has none"),
    refusals.NoAttributes("has none"),
    refusals.NotSettable("has none"),
    refusals.AcrossDatasets("copy it"),
    refusals.NotADirectory("is a file"),
    refusals.OnlyTried("holds no links"),
    refusals.StillGoingOn("goes on"),
    *(
        OSError(number, os.strerror(number))
        for number in (errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR)
    ),
]
TROUBLES = [
    errors.CannotHold("is a symbolic link"),
    errors.Frozen("is frozen"),
    errors.NotAuthenticated("the token expired"),
    errors.Stalled("does not answer"),
    errors.IntegrityError("is wrong"),
    errors.LocalDiskError("cannot be read"),
    errors.UsageError("cannot be a name"),
    refusals.NotPermitted("not beside datasets"),
    TookTooLong("too long"),
    OSError(errno.ENOSPC, "full"),
    OSError(errno.EACCES, "a file of ours"),
    ValueError("a fault"),
]


@pytest.mark.parametrize("error", ANSWERS, ids=str)
def test_answers_that_every_file_system_gives_are_not_remembered(error: Exception) -> None:
    assert told("rename", error)[1] == []


@pytest.mark.parametrize("error", TROUBLES, ids=str)
@pytest.mark.parametrize("request_name", REQUESTS)
def test_what_a_program_is_refused_with_a_reason_is_remembered(
    request_name: str, error: Exception
) -> None:
    number, remembered = told(request_name, error)

    if request_name in ("forget", "release", "releasedir"):  # which nobody waits for
        assert remembered == []
        return
    (one,) = remembered
    assert one.number == number
    assert one.reason
