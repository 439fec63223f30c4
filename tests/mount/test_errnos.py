"""Which errno programs are told: never one that means less than that something went wrong."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from pyfuse3 import FUSEError

from dserverfs.base import errors
from dserverfs.mount.errnos import guarded
from dserverfs.mount.operations import Operations

REQUESTS = sorted(
    name for name, handler in vars(Operations).items() if hasattr(handler, "__wrapped__")
)
OF_LOST_NAMES = {"link", "rename", "rmdir", "unlink"}
OF_OPEN = {"read", "readdir", "write", "fsync", "fsyncdir", "release", "releasedir", "statfs"}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def errno_for(request: str, error: Exception) -> int:
    """Return what a program is told when a handler of that name raises `error`."""

    async def handler() -> None:
        raise error

    handler.__name__ = request
    call: Callable[[], Coroutine[Any, Any, None]] = guarded(handler)
    with pytest.raises(FUSEError) as told:
        call().send(None)  # it waits for nothing
    return int(told.value.errno)


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
