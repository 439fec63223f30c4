"""Turns that run beside each other, each a process; their output line by line as it comes.

One thread for all of them: the kernel ends a turn, which then takes away what it made, when
the thread that began it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from tests.soak.turns import Part
from tests.support.child_processes import SETPRIV

# A turn ends its last round after its time; one that takes this much longer hangs.
LATE_S = 900.0
# How long a turn may take to unmount, to end its servers and to delete.
END_S = 90.0
TURN = (sys.executable, "-m", "tests.soak.turn")
KEPT_LINES = 40  # of the output of a turn that failed


class Result(NamedTuple):
    """What came of a turn; `error` is empty if it passed."""

    part: str
    seed: int
    seconds: int
    figures: dict[str, Any]
    error: str


class Share(NamedTuple):
    """A part and its time."""

    part: Part
    seconds: float


Say = Callable[[str, str], None]  # the part's name, and a line


class _Output:
    """The lines of one output of a turn; `name` is said with each, "" for none that are shown."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.lines: list[str] = []
        self.begun = b""  # of a line whose end has not come


class _Running:
    """A turn that is under way."""

    def __init__(self, share: Share, seed: int) -> None:
        self.share = share
        self.seed = seed
        self.begun_s = time.monotonic()
        self.end_s = self.begun_s + share.seconds + LATE_S
        self.is_late = False
        name = share.part.name
        self.printed, self.said = _Output(), _Output(name)
        turn = [*TURN, name, str(seed), f"{share.seconds:.0f}"]
        self.process = subprocess.Popen(
            [SETPRIV, "--pdeathsig", "TERM", "--", *turn],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the runner, which tells the turns
        )

    @property
    def outputs(self) -> dict[IO[bytes], _Output]:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        return {self.process.stdout: self.printed, self.process.stderr: self.said}

    def result(self) -> Result:
        error = ""
        figures: dict[str, Any] = {}
        if self.is_late:
            error = f"hangs: not over {LATE_S:.0f} s after its time\n"
        if self.process.returncode == 0:
            figures = json.loads(self.printed.lines[-1])
        else:
            error += "\n".join(self.said.lines[-KEPT_LINES:]) or f"ended {self.process.returncode}"
        took_s = round(time.monotonic() - self.begun_s)
        return Result(self.share.part.name, self.seed, took_s, figures, error)


def run(shares: Sequence[Share], seed: int, jobs: int, say: Say) -> Iterator[Result]:
    """Give each part its turn, `jobs` beside each other; yield the results as they come.

    KeyboardInterrupt ends all turns, which take away what they made, and is raised.
    """
    pending = list(shares)
    going: list[_Running] = []
    with selectors.DefaultSelector() as selector:
        try:
            while pending or going:
                while pending and len(going) < jobs:
                    going.append(_begin(pending.pop(0), seed, selector, say))
                _listen(selector, say, timeout_s=1.0)
                for turn in going:
                    _end_if_late(turn)
                for turn in [turn for turn in going if _has_ended(turn, selector, say)]:
                    going.remove(turn)
                    _tell(turn.result(), say)
                    yield turn.result()
        finally:
            _end_all(going, selector, say)


def _begin(share: Share, seed: int, selector: selectors.BaseSelector, say: Say) -> _Running:
    turn = _Running(share, seed)
    say(share.part.name, f"begins, {share.seconds:.0f} s, seed {seed}")
    for pipe, output in turn.outputs.items():
        selector.register(pipe, selectors.EVENT_READ, output)
    return turn


def _listen(selector: selectors.BaseSelector, say: Say, *, timeout_s: float) -> None:
    for key, _ in selector.select(timeout_s):
        output: _Output = key.data
        piece = os.read(key.fd, 1 << 16)
        if not piece:
            selector.unregister(key.fileobj)
        *lines, output.begun = (output.begun + (piece or b"\n")).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            if not text:
                continue
            output.lines.append(text)
            if output.name:
                say(output.name, text)


def _has_ended(turn: _Running, selector: selectors.BaseSelector, say: Say) -> bool:
    if turn.process.poll() is None:
        return False
    while any(key.fileobj in turn.outputs for key, _ in selector.select(0)):
        _listen(selector, say, timeout_s=0)
    for pipe in turn.outputs:
        with contextlib.suppress(KeyError):  # held open by a process that it left behind
            selector.unregister(pipe)
        pipe.close()
    return True


def _end_if_late(turn: _Running) -> None:
    now_s = time.monotonic()
    if now_s < turn.end_s:
        return
    # First it is told, so that it takes away what it made.
    turn.process.send_signal(signal.SIGKILL if turn.is_late else signal.SIGTERM)
    turn.is_late = True
    turn.end_s = now_s + END_S


def _end_all(going: Sequence[_Running], selector: selectors.BaseSelector, say: Say) -> None:
    for turn in going:
        turn.process.terminate()
    end_s = time.monotonic() + END_S
    for turn in going:
        while not _has_ended(turn, selector, say):
            _listen(selector, say, timeout_s=0.1)
            if time.monotonic() > end_s:
                turn.process.kill()


def _tell(result: Result, say: Say) -> None:
    if result.error:
        say(result.part, f"FAILED after {result.seconds} s")
        say(result.part, f"again: scripts/soak --part {result.part} --seed {result.seed}")
    else:
        figures = ", ".join(f"{value} {name}" for name, value in result.figures.items())
        say(result.part, f"passed in {result.seconds} s: {figures}")
