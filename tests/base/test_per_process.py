"""What a process makes once: for each key, closed at its end, and not inherited by a fork."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from dserverfs.base.per_process import PerProcess


class Value:
    """Counts how often it is closed."""

    made: list[Value]

    def __init__(self, key: str) -> None:
        self.key = key
        self.closed = 0
        Value.made.append(self)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def values() -> PerProcess[str, Value]:
    Value.made = []
    return PerProcess(Value)


def test_value_is_made_once_for_each_key(values: PerProcess[str, Value]) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(values.get, "ab" * 20))

    assert sorted(value.key for value in Value.made) == ["a", "b"]
    assert {id(value) for value in found} == {id(value) for value in Value.made}


def test_closed_values_are_made_anew(values: PerProcess[str, Value]) -> None:
    first = values.get("a")
    values.close()
    values.close()

    assert first.closed == 1
    assert values.get("a") is not first


def test_failure_to_make_one_is_the_caller_s_and_is_not_kept() -> None:
    def fail(key: str) -> Value:
        raise ZeroDivisionError(key)

    values = PerProcess(fail)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="a"):
            values.get("a")


def test_child_makes_its_own_while_its_parent_makes_one(values: PerProcess[str, Value]) -> None:
    """The lock that a thread of the parent holds is not held in the child."""
    mine = values.get("a")
    with values._lock:
        child = os.fork()
        if not child:
            is_own = values.get("a") is not mine
            os._exit(0 if is_own and not mine.closed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert values.get("a") is mine


def test_end_of_the_process_closes_all_before_it_waits_for_threads_and_makes_none() -> None:
    code = """
import atexit, threading
from concurrent.futures import ThreadPoolExecutor
from dserverfs.base.per_process import PerProcess
over = threading.Event()
class Value:
    def __init__(self, key):
        self.pool = ThreadPoolExecutor(1)
        self.pool.submit(over.wait)
    def close(self):
        print("closed")
        over.set()
values = PerProcess(Value)
values.get("a")
def late():
    try:
        values.get("a")
    except Exception as error:
        print(type(error).__name__, error)
atexit.register(late)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.splitlines() == [
        "closed",
        "Cancelled the process is ending: nothing more is read or written",
    ]
