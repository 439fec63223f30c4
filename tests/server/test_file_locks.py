"""Locks by name: between threads, between processes, and after the end of one that held some."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dserverfs.base.errors import Busy
from dserverfs.server.database.file_locks import FileLocks
from tests.support.child_processes import spawn

HOLDING = """
import sys
from pathlib import Path
from dserverfs.server.database.file_locks import FileLocks
with FileLocks(Path(sys.argv[1])).holding("a", 0.0):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_name_is_held_once_and_others_are_free(tmp_path: Path) -> None:
    locks, others = FileLocks(tmp_path / "locks"), FileLocks(tmp_path / "locks")

    with locks.holding("a", 0.0), locks.holding("b", 0.0):
        for each in (locks, others):
            with pytest.raises(Busy, match="at work on a") as refused, each.holding("a", 0.05):
                pass
            assert refused.value.status == 503

    with others.holding("a", 0.0), locks.holding("b", 0.0):
        pass
    assert (tmp_path / "locks").read_bytes() == b""


def test_process_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    locks = FileLocks(path)
    command = [sys.executable, "-c", HOLDING, str(path)]
    with spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(Busy), locks.holding("a", 0.0):
            pass

        process.kill()
        process.wait()
        with locks.holding("a", 0.0):
            pass
        process.communicate()
