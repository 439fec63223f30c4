"""What traced commands read from a mount: which items, which of their bytes, in which order.

Used by the operations, which tell of every item that is opened while a trace is on and of
reads by such handles, and by the commander, which begins and ends traces. A command is the
process that asked for its trace, with all processes below it. Bounded; a trace whose
process has ended is dropped. For the event loop alone.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

from dserverfs.base.errors import UsageError
from dserverfs.base.items import ItemContent
from dserverfs.base.processes import Process, Processes
from dserverfs.reading.traced_items import TracedItem

MAX_TRACES = 16
MAX_ITEMS = 200_000  # of a trace; 1 KB of memory each
LOOK_S = 10.0  # a command that was killed is traced no longer


class Trace:
    """The items that a command opened."""

    def __init__(self, number: int, root: Process) -> None:
        self.number = number
        self.root = root
        self.items: dict[str, TracedItem] = {}  # by key
        self.left_out = 0  # times that an item was opened of which there was no room for a note

    def item(self, content: ItemContent) -> TracedItem | None:
        """Return the item to note reads of; None if there are too many."""
        found = self.items.get(content.key)
        if found is None:
            if len(self.items) >= MAX_ITEMS:
                self.left_out += 1
                return None
            found = self.items[content.key] = TracedItem(content)
        return found


class Traces:
    """The traces of one mount."""

    def __init__(
        self,
        processes: Processes | None = None,
        clock_s: Callable[[], float] = time.time,
        on_change: Callable[[bool], None] = lambda is_active: None,
    ) -> None:
        """`on_change` is told when the first trace begins, and when there is none any more."""
        self._processes = processes or Processes()
        self._clock_s = clock_s
        self._numbers = itertools.count(1)
        self.active: dict[int, Trace] = {}
        self._looked_s = clock_s()  # for commands that have ended
        self._on_change = on_change

    def begin(self, pid: int) -> int:
        """Trace a process and all below it; return the number of the trace.

        Raises UsageError if it cannot be seen, or there are too many.
        """
        self._drop_ended()
        root = self._processes.of_thread(pid)
        if root is None:
            raise UsageError("the mount does not see the processes of the command: in a container?")
        if len(self.active) >= MAX_TRACES:
            raise UsageError(f"the mount is traced by {MAX_TRACES} commands already")
        number = next(self._numbers)
        self.active[number] = Trace(number, root)
        if len(self.active) == 1:
            self._on_change(True)
        return number

    def end(self, number: int) -> Trace:
        """Return a trace, which notes nothing more; raises UsageError if there is no such one."""
        try:
            ended = self.active.pop(number)
        except KeyError as error:
            raise UsageError(f"no trace {number}") from error
        if not self.active:
            self._on_change(False)
        return ended

    def _drop_ended(self) -> None:
        """Drop the traces of commands that were killed, which nobody ends."""
        self._looked_s = self._clock_s()
        for number, trace in list(self.active.items()):
            now = self._processes.find(trace.root.pid)
            if now is None or now.identity != trace.root.identity:
                self.end(number)

    def opened(self, content: ItemContent, thread: int) -> Sequence[TracedItem]:
        """Return where reads of an item are to be noted that a thread opens just now."""
        if not 0 <= self._clock_s() - self._looked_s < LOOK_S:
            self._drop_ended()
        process = self._processes.of_thread(thread)
        if process is None:
            return []
        line = {process.identity, *(each.identity for each in self._processes.above(process))}
        found = [
            trace.item(content) for trace in self.active.values() if trace.root.identity in line
        ]
        return [item for item in found if item is not None]

    def read(self, items: Sequence[TracedItem], offset: int, length: int) -> None:
        """Note that these bytes were given to a program."""
        for item in items:
            item.read(offset, length, self._clock_s())
