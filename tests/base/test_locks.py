"""Who holds a lock, and what the others are told."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dserverfs.base import locks
from dserverfs.base.locks import OwnerLock, locked, locked_within, open_lock, try_lock


def test_lock_is_held_by_one_and_free_after_its_block(tmp_path: Path) -> None:
    fd = open_lock(tmp_path / "lock")
    try:
        with locked(tmp_path / "lock"):
            assert not try_lock(fd)
        assert try_lock(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("timeout_s", [0.0, 0.03])
def test_lock_held_elsewhere_for_too_long_is_an_error_that_names_it(
    tmp_path: Path, timeout_s: float
) -> None:
    with (
        locked(tmp_path / "lock"),
        pytest.raises(BlockingIOError, match="lock"),
        locked_within(tmp_path / "lock", timeout_s),
    ):
        pass

    with locked_within(tmp_path / "lock", timeout_s):
        pass


def test_owner_is_named_to_others_until_it_releases(tmp_path: Path) -> None:
    mine, other = OwnerLock(tmp_path / "lock"), OwnerLock(tmp_path / "lock")

    assert mine.acquire()
    assert not other.acquire()
    assert other.owner().startswith(f"process {os.getpid()} on ")

    mine.release()
    assert not mine.held
    assert other.acquire()
    other.release()


def test_lock_of_another_machine_counts_as_held(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "machine": "other", "boot": "", "pid": 7}))
    before = os.listdir("/proc/self/fd")

    assert not OwnerLock(path).acquire()

    assert os.listdir("/proc/self/fd") == before
    assert OwnerLock(path).owner() == "process 7 on elsewhere"


def test_lock_that_is_given_up_in_time_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = open_lock(tmp_path / "lock")
    assert try_lock(fd)
    before = os.listdir("/proc/self/fd")
    waits: list[Callable[[], object]] = [lambda: None, lambda: fcntl.flock(fd, fcntl.LOCK_UN)]
    clock = SimpleNamespace(monotonic=lambda: 5.0, sleep=lambda pause_s: waits.pop(0)())
    monkeypatch.setattr(locks, "time", clock)

    with locked_within(tmp_path / "lock", 60.0):
        assert not try_lock(fd)

    assert not waits
    assert os.listdir("/proc/self/fd") == before
    os.close(fd)


def test_lock_of_an_owner_is_its_own_however_often_it_asks_and_carries_nothing_afterwards(
    tmp_path: Path,
) -> None:
    """A machine that shares the directory, but not the locks, goes by the text."""
    lock = OwnerLock(tmp_path / "lock")

    assert lock.acquire()
    assert lock.acquire()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()

    lock.release()
    lock.release()
    assert (tmp_path / "lock").read_bytes() == b""


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"pid": 1}', b"\xff"])
def test_owner_that_is_not_known_is_another_process(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "lock"
    if content is not None:
        path.write_bytes(content)

    assert OwnerLock(path).owner() == "another process"
    assert OwnerLock(path).acquire()


HERE, THERE = {"host": "a", "machine": "1"}, {"host": "b", "machine": "2"}


@pytest.mark.parametrize(
    ("owner", "me", "is_held"),
    [
        (HERE, HERE, False),  # of a process that was killed
        (THERE, HERE, True),
        (HERE | {"host": "renamed"}, HERE, False),
        (HERE | {"machine": ""}, HERE, False),  # without an id the name decides
        (THERE | {"machine": ""}, HERE, True),
        (HERE, HERE | {"machine": ""}, False),
        (THERE, HERE | {"machine": ""}, True),
        (THERE | {"machine": ""}, HERE | {"machine": ""}, True),
    ],
)
def test_machine_of_an_owner_is_known_by_its_id_or_else_by_its_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: dict[str, str],
    me: dict[str, str],
    is_held: bool,
) -> None:
    (tmp_path / "lock").write_text(json.dumps(owner | {"pid": 7, "boot": ""}))
    monkeypatch.setattr(socket, "gethostname", lambda: me["host"])
    (tmp_path / "machine-id").write_text(f"{me['machine']}\n")
    monkeypatch.setattr(locks, "_MACHINE_ID", tmp_path / "machine-id")
    lock = OwnerLock(tmp_path / "lock")

    assert lock.acquire() != is_held

    lock.release()


def test_machine_without_an_id_goes_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_MACHINE_ID", tmp_path / "missing")
    lock = OwnerLock(tmp_path / "lock")

    assert lock.acquire()
    assert json.loads((tmp_path / "lock").read_text())["machine"] == ""
    lock.release()


@pytest.mark.parametrize(("number", "is_held"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_full_disk_keeps_no_name_of_the_owner_and_the_lock_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_held: bool
) -> None:
    lock, other = OwnerLock(tmp_path / "lock"), OwnerLock(tmp_path / "lock")
    before = os.listdir("/proc/self/fd")

    def fail(fd: int, content: bytes, offset: int) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        if is_held:
            assert lock.acquire()
        else:
            with pytest.raises(OSError, match=os.strerror(number)):
                lock.acquire()

    assert other.acquire() != is_held
    other.release()
    lock.release()
    assert os.listdir("/proc/self/fd") == before
