"""What commands show of how far they are."""

from __future__ import annotations

import io
import os
import sys
import threading

import pytest

from dserverfs.base.progress import Progress
from dserverfs.cli.progress import IN_PIPE_S, ProgressLine, text_of
from dserverfs.cli.whole_items import BytesSoFar, Summary, Totals, WholeItem
from tests.support.patience import LATE_S


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((40, 24)))
    return Terminal()


def screen(terminal: Terminal) -> list[str]:
    """Return the lines of a terminal that was written to, as they look."""
    lines = []
    for written in terminal.getvalue().split("\n"):
        line = ""
        for part in written.split("\r"):
            line = part + line[len(part) :]
        lines.append(line.rstrip())
    return lines


def test_line_is_redrawn_and_taken_away(terminal: Terminal) -> None:
    clock = Clock()
    with ProgressLine(terminal, clock_s=clock) as line:
        line.show("a long line of progress")
        clock.now_s += 1
        line.show("short")
        assert screen(terminal) == ["short"]

        line.clear()
        terminal.write("bad: x\n")
        line.show("again")
        assert screen(terminal) == ["bad: x", "again"]
        line.show("not drawn so soon")
        assert screen(terminal) == ["bad: x", "again"]

    assert screen(terminal) == ["bad: x", ""]


def test_line_is_never_wider_than_the_terminal(terminal: Terminal) -> None:
    with ProgressLine(terminal) as line:
        line.show("x" * 100)

    assert max(map(len, terminal.getvalue().split("\r"))) < 40


def test_bytes_of_items_that_are_under_way_are_shown(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item that takes an hour gets on all the time."""
    shown: list[Progress] = []
    is_under_way = threading.Event()

    def show(line: ProgressLine, what: str, progress: Progress) -> None:
        shown.append(progress)
        if progress.bytes_done in (300, 310):  # the small one may be done by then
            is_under_way.set()

    monkeypatch.setattr(ProgressLine, "progress", show)
    monkeypatch.setattr("dserverfs.cli.whole_items.SHOWN_S", 0.01)
    monkeypatch.setattr(sys, "stderr", terminal)
    so_far = BytesSoFar()

    def work() -> None:
        so_far.update(b"x" * 300)
        assert is_under_way.wait(LATE_S)

    items = [WholeItem("large", 1000, work, so_far), WholeItem("small", 10, lambda: None)]
    summary = Summary()
    summary.run("verifying", items, lambda: Totals(2, 1010))

    assert is_under_way.is_set()
    assert shown[-1] == Progress(1010, 1010, 2, 2)
    assert not summary.failed


def test_pipe_gets_a_line_a_minute() -> None:
    clock, pipe = Clock(), io.StringIO()
    with ProgressLine(pipe, clock_s=clock) as line:
        for second in range(int(2 * IN_PIPE_S) + 30):
            clock.now_s += 1
            line.progress("verifying", Progress(second * 1024**2, 1024**3, second, 1024))

    after_one, after_two = pipe.getvalue().splitlines()
    assert after_one == "verifying: 5 % of 1.0 GiB, 59 of 1024 items, 1.0 MiB/s, 16 minutes left"
    assert after_two == "verifying: 11 % of 1.0 GiB, 119 of 1024 items, 1.0 MiB/s, 15 minutes left"


@pytest.mark.parametrize(
    ("progress", "told"),
    [
        (Progress(0, 0, 0, 0), "0 B, 0 items"),
        (Progress(2048, 0, 3, 0), "2.0 KiB, 3 items"),
        (Progress(0, 0, 3, 10), "0 B, 3 of 10 items"),
        (Progress(999, 1000, 9, 10), "99 % of 1000 B, 9 of 10 items"),
        (Progress(2000, 1000, 10, 10), "100 % of 1000 B, 10 of 10 items"),
    ],
)
def test_progress_is_told_as_far_as_it_is_known(progress: Progress, told: str) -> None:
    assert text_of(progress, None, None) == told


def test_steps_are_counted_with_the_time_that_is_left(terminal: Terminal) -> None:
    clock = Clock()
    with ProgressLine(terminal, clock_s=clock) as line:
        for done in range(5):
            line.count("indexing", done, 20, "set")
            clock.now_s += 2
        line.count("indexing", 5, 20, "set")

        assert screen(terminal) == ["indexing: 5 of 20 sets, 30 seconds left"]
