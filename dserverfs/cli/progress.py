"""Progress of what takes long: a line that is redrawn on a terminal, one a minute elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

from dserverfs.base.printable import counted, printable
from dserverfs.base.printable import size as size  # as all of the command line shows it
from dserverfs.base.progress import Meter, Progress
from dserverfs.cli.arguments import duration

REDRAWN_S = 0.1
IN_PIPE_S = 60.0  # a log of a job of hours stays short, and shows that it lives
_MANY_COLUMNS = 1 << 16  # of what is no terminal


class ProgressLine:
    """A line on standard error; use as a context manager, which takes it away at the end."""

    def __init__(
        self, stream: TextIO | None = None, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._clock_s = clock_s
        self._length = 0
        self._shown_s = -math.inf if self._is_terminal else clock_s()
        self._what = ""
        self._meter = Meter(clock_s)

    @property
    def is_terminal(self) -> bool:
        """Whether what is shown is looked at, so that it may cost something."""
        return self._is_terminal

    def show(self, text: str) -> None:
        """Show `text` in place of what was there, unless that came just now."""
        now_s = self._clock_s()
        if now_s - self._shown_s < (REDRAWN_S if self._is_terminal else IN_PIPE_S):
            return
        self._shown_s = now_s
        text = printable(text)
        if not self._is_terminal:
            print(text, file=self._stream, flush=True)
            return
        text = text[: self._columns() - 1]  # a longer one would be two, of which one stays
        self._stream.write(f"\r{text:<{self._length}}")
        self._stream.flush()
        self._length = len(text)

    def progress(self, what: str, progress: Progress) -> None:
        """Show how far a task is, which `what` names, with its rate and the time that is left."""
        meter = self._metered(what, progress.bytes_done)
        left_s = meter.left_s(max(progress.bytes_total - progress.bytes_done, 0))
        self.show(f"{what}: {text_of(progress, meter.per_s(), left_s)}")

    def count(self, what: str, done: int, total: int, noun: str) -> None:
        """As `progress`, of a task whose steps take about the same time each; see `counted`."""
        left_s = self._metered(what, done).left_s(total - done)
        left = "" if left_s is None else f", {duration(left_s)} left"
        self.show(f"{what}: {done} of {counted(total, noun)}{left}")

    def clear(self) -> None:
        """Take the line away, for others to be printed in its place."""
        if self._length:
            self._stream.write(f"\r{'':<{self._length}}\r")
            self._stream.flush()
            self._length = 0
            self._shown_s = -math.inf

    def _metered(self, what: str, number: int) -> Meter:
        if what != self._what:  # another task
            self._what, self._meter = what, Meter(self._clock_s)
        self._meter.note(number)
        return self._meter

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or _MANY_COLUMNS
        except (OSError, ValueError):
            return _MANY_COLUMNS

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()


def text_of(progress: Progress, bytes_per_s: float | None, left_s: float | None) -> str:
    """Return how far a task is; a total of 0, a rate or a time that is None are not known."""
    parts = [size(progress.bytes_done)]
    if progress.bytes_total:
        share = min(progress.bytes_done / progress.bytes_total, 1.0)
        parts = [f"{int(share * 100)} % of {size(progress.bytes_total)}"]
    items = counted(progress.items_total or progress.items_done, "item")
    parts.append(f"{progress.items_done} of {items}" if progress.items_total else items)
    if bytes_per_s is not None:
        parts.append(f"{size(bytes_per_s)}/s")
    if left_s:
        parts.append(f"{duration(left_s)} left")
    return ", ".join(parts)
