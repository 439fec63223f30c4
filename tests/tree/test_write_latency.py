"""When a mount writes to the local disk by itself, and when it has a thread wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.tree.write_latency import SLOW_S, WARY_S, WriteLatency


class Clock:
    """Time that passes by as much as each look at it is told to cost."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.per_look_s = 0.0

    def __call__(self) -> float:
        self.now_s += self.per_look_s
        return self.now_s


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        yield file.fileno()


def test_pace_is_quick_before_anything_was_written() -> None:
    assert WriteLatency().is_quick()


def test_quick_writes_leave_it_quick(file: int) -> None:
    clock = Clock()
    latency = WriteLatency(clock)
    clock.per_look_s = SLOW_S / 2

    latency.write(file, b"content", 0)

    assert latency.is_quick()


def test_slow_write_makes_it_wary_for_a_while(file: int) -> None:
    clock = Clock()
    latency = WriteLatency(clock)
    clock.per_look_s = SLOW_S * 2
    latency.write(file, b"content", 0)
    clock.per_look_s = 0.0

    wary = not latency.is_quick()
    clock.now_s += WARY_S

    assert wary
    assert latency.is_quick()


def test_failed_slow_write_makes_it_wary_too(tmp_path: Path) -> None:
    clock = Clock()
    latency = WriteLatency(clock)
    clock.per_look_s = SLOW_S * 2

    with (tmp_path / "new").open("wb") as new, (tmp_path / "new").open("rb") as file:
        assert new.writable()
        with pytest.raises(OSError, match="Bad file descriptor"):
            latency.write(file.fileno(), b"content", 0)
    clock.per_look_s = 0.0

    assert not latency.is_quick()


def test_pace_writes_all_of_it_in_its_place(file: int, tmp_path: Path) -> None:
    WriteLatency().write(file, b"content", 3)

    assert (tmp_path / "file").read_bytes() == b"\0\0\0content"
