"""Who holds a lock, and what the others are told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

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
