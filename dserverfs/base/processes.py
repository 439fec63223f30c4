"""Processes as /proc shows them: name, parent, group, whether it runs.

Used by the writers of staged datasets. Reads only what the kernel answers by itself:
of some files of /proc (cmdline, environ) it waits for the process's memory, which may
wait for a file of the very mount that asks. Thread-safe; keeps nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.printable import printable

# Of /proc/PID/stat behind the name, counted from 0: proc_pid_stat(5).
_STATE, _PARENT, _GROUP, _SESSION, _TERMINAL, _FOREGROUND, _FLAGS = range(7)
_THREADS, _STARTED = 17, 19
_ENDED = frozenset({"Z", "X", "x"})
_STOPPED = frozenset({"T", "t"})  # by a signal, by a debugger
_IS_KERNEL = 0x00200000  # PF_KTHREAD of the kernel's include/linux/sched.h


class Process(NamedTuple):
    """A process at one moment."""

    pid: int
    started: int  # clock ticks since boot: with the pid, no other process has it
    name: str  # of the program, at most 15 bytes
    parent: int
    # 0 are those that began outside this pid namespace, as of a container that has no `init`.
    group: int
    session: int
    terminal: int  # that controls it; 0: none
    foreground: int  # the process group that has this terminal; -1: none
    has_ended: bool  # and its parent has not asked for its exit status yet
    is_kernel: bool  # a thread of the kernel, as of its NFS server
    is_stopped: bool = False

    @property
    def identity(self) -> tuple[int, int]:
        return self.pid, self.started


class Processes:
    """All processes that this one can see."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self._root = root
        self._is_ours: bool | None = None

    def of_thread(self, thread: int) -> Process | None:
        """Return the process that has a thread; None if it cannot be known."""
        if thread <= 0 or not self._shows_us():
            return None
        try:
            status = (self._root / str(thread) / "status").read_text("utf-8", "replace")
            for line in status.splitlines():
                if line.startswith("Tgid:"):
                    return self.find(int(line.removeprefix("Tgid:")))
        except (OSError, ValueError):
            pass  # of another user, where /proc hides these
        return None

    def find(self, pid: int) -> Process | None:
        """Return a process; None if there is none, or it cannot be read."""
        try:
            text = (self._root / str(pid) / "stat").read_text("utf-8", "replace")
            # The name is in parentheses, and may hold any letter, these as well.
            head, _, rest = text.rpartition(")")
            fields = rest.split()
            return Process(
                pid=pid,
                started=int(fields[_STARTED]),
                name=printable(head.partition("(")[2]),
                parent=int(fields[_PARENT]),
                group=int(fields[_GROUP]),
                session=int(fields[_SESSION]),
                terminal=int(fields[_TERMINAL]),
                foreground=int(fields[_FOREGROUND]),
                # Its first thread may have ended before the others.
                has_ended=fields[_STATE] in _ENDED and int(fields[_THREADS]) <= 1,
                is_kernel=bool(int(fields[_FLAGS]) & _IS_KERNEL),
                is_stopped=fields[_STATE] in _STOPPED,
            )
        except (OSError, ValueError, IndexError):
            return None

    def all(self) -> Iterator[Process]:
        """Yield every process that can be read."""
        for name in os.listdir(self._root):
            if name.isdecimal() and (process := self.find(int(name))) is not None:
                yield process

    def control_group(self, process: Process) -> str:
        """Return which control groups a process is in; services and desktop programs have own."""
        try:
            path = self._root / str(process.pid) / "cgroup"
            return path.read_text("utf-8", "replace")
        except OSError:
            return ""

    def above(self, process: Process) -> Iterator[Process]:
        """Yield a process's parent, the parent's parent, and so on."""
        seen = {process.pid}
        parent = self.find(process.parent)
        while parent is not None and parent.pid not in seen:
            seen.add(parent.pid)
            yield parent
            parent = self.find(parent.parent)

    def _shows_us(self) -> bool:
        """Return whether the numbers of `root` are ours: it may be of another pid namespace."""
        if self._is_ours is None:
            try:
                self._is_ours = os.readlink(self._root / "self") == str(os.getpid())
            except OSError:
                self._is_ours = False
        return self._is_ours
