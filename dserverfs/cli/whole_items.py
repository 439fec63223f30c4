"""Work on many whole items: several at a time, a progress line, a line for each failure.

Used by `warm`, `verify` and `prove`. Blocking.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import NamedTuple

from dserverfs.base.errors import DserverfsError
from dserverfs.base.hashes import Buffer
from dserverfs.base.pools import begun
from dserverfs.base.printable import counted
from dserverfs.base.progress import Progress
from dserverfs.cli.arguments import say
from dserverfs.cli.progress import ProgressLine, size

EXIT_FAILED = 1
THREADS = 8
SHOWN_S = 0.5  # while items of many bytes are under way


class BytesSoFar:
    """How much of an item its work has done; a Taker of its bytes."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, data: Buffer, /) -> None:
        self.add(len(data))

    def add(self, count: int) -> None:
        self.count += count


class WholeItem(NamedTuple):
    """An item, and the work that is to be done with it."""

    name: str  # for messages
    size_in_bytes: int
    work: Callable[[], None]  # raises DserverfsError
    so_far: BytesSoFar | None = None  # that the work tells, if it does


class Totals(NamedTuple):
    """What is going to be done; 0 is what is not known."""

    items: int
    size_in_bytes: int


class Summary:
    """How many items were done, and how large they are."""

    def __init__(self) -> None:
        self.items = 0
        self.failed = 0
        self.bad: set[str] = set()  # the names of what failed
        self.size_in_bytes = 0

    def run(
        self, what: str, items: Iterable[WholeItem], totals: Callable[[], Totals] | None = None
    ) -> None:
        """Do the work of all, with progress; print a line for each that fails.

        `what` is the work; `totals` are asked for if somebody looks on.
        """
        with ProgressLine() as line:
            begun, begun_bytes = self.items, self.size_in_bytes
            number, size_in_bytes = totals() if totals and line.is_terminal else (0, 0)

            def show(bytes_under_way: int) -> None:
                bytes_done = self.size_in_bytes - begun_bytes + bytes_under_way
                items_done = self.items - begun
                line.progress(what, Progress(bytes_done, size_in_bytes, items_done, number))

            def done(item: WholeItem, error: DserverfsError | None) -> None:
                self.size_in_bytes += item.size_in_bytes
                if error is None:
                    self.items += 1
                else:
                    line.clear()
                    self.fail(item.name, str(error))

            for_each(items, done, show)

    def fail(self, name: str, reason: str) -> None:
        """Count an item that could not be done, and print a line for it, the first time."""
        if name in self.bad:
            return
        self.items += 1
        self.failed += 1
        self.bad.add(name)
        say(f"bad: {name}: {reason}")

    def text(self, all_well: str, not_well: str) -> str:
        """Return one line on the outcome."""
        if self.failed:
            return f"{self.failed} of {counted(self.items, 'item')} {not_well}"
        return f"{counted(self.items, 'item')}, {size(self.size_in_bytes)}: {all_well}"


def for_each(
    items: Iterable[WholeItem],
    done: Callable[[WholeItem, DserverfsError | None], None],
    show: Callable[[int], None],
) -> None:
    """Do the work of all, several at a time; tell `done` the outcome, one after the other.

    `show` is told every now and then how many bytes of those under way are done.
    Takes no more of `items` than are being worked on, so there may be a million.
    """
    stopped = threading.Event()

    def attempt(item: WholeItem) -> DserverfsError | None:
        if stopped.is_set():
            return None
        try:
            item.work()
        except DserverfsError as error:
            return error
        return None

    running: dict[Future[DserverfsError | None], WholeItem] = {}

    def collect() -> None:
        finished, _ = wait(running, timeout=SHOWN_S, return_when=FIRST_COMPLETED)
        for future in finished:
            done(running.pop(future), future.result())
        show(sum(item.so_far.count for item in running.values() if item.so_far is not None))

    with ThreadPoolExecutor(THREADS, thread_name_prefix="whole") as pool:
        try:
            for item in items:
                running[begun(pool, partial(attempt, item))] = item
                while len(running) >= 2 * THREADS:
                    collect()
            while running:
                collect()
        finally:
            stopped.set()
