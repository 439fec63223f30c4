"""The processes that wrote to a staged dataset: a job that pauses is not done.

Used by staging, told by the operations and asked by the freezer. A process that wrote
counts until it ends, and so does its job: most scripts write nothing themselves, but by
programs they run (`for i in ...; do compute; cp out-$i DIR; done`), which end at once.
The job of a process is, within its session and its control groups,

    the processes that began it, up to a shell that a user types into,
    its process group, of which some may not have written yet.

Such a shell does not count, or what is typed there would never be frozen; but while it runs
a command it may be in the middle of a line that goes on to write. It is let go when it was
seen waiting for the next line. A process that cannot be known (of another pid namespace,
or hidden) is remembered as that.

In memory only. Thread-safe; `wrote` never waits for `running`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from dserverfs.base.processes import Process, Processes

# A shell that has a terminal and leads its session is a user's; another program there is a
# job that was given a terminal of its own, as `tmux new 'python job.py'` does.
SHELLS = frozenset(
    {"ash", "bash", "busybox", "csh", "dash", "elvish", "fish", "ksh", "ksh93", "mksh", "nu"}
    | {"pwsh", "rbash", "sh", "tcsh", "xonsh", "yash", "zsh"}
)
# Between two commands of one line a shell has its terminal back for microseconds.
PROMPT_S = 0.4
# A program that writes file after file is looked up once in that time: no number of a process
# comes again so soon.
_SAME_S = 0.1
_KNOWN_AT_LEAST = 64
_WROTE = "which wrote to it"

_Identity = tuple[int, int]


class Running(NamedTuple):
    """A process that has to end first."""

    pid: int
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}), {self.why}"


class _Group(NamedTuple):
    """The process group of a job."""

    number: int
    session: int
    # When the leader of the session began: its number may come again once the session is
    # over. None: it had ended by then.
    session_started: int | None
    control_group: str


class Writers:
    """The processes that wrote to one staged dataset."""

    def __init__(
        self,
        processes: Processes | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._processes = processes or Processes()
        self._clock_s = clock_s
        self._lock = threading.Lock()  # held for moments
        self._known: dict[_Identity, Running] = {}
        self._groups: dict[_Group, str] = {}  # with the name of one that wrote
        # Shells, and since when each was seen waiting for a line; None: not.
        self._shells: dict[_Identity, float | None] = {}
        self._last: tuple[int, float] = (-1, 0.0)
        self._prune_at = _KNOWN_AT_LEAST
        self.unknown = False  # a process wrote that cannot be known

    def wrote(self, thread: int) -> None:
        """Note that a thread is changing something; 0 is one of another pid namespace."""
        now_s = self._clock_s()
        if self._last[0] == thread and now_s - self._last[1] < _SAME_S:
            return
        self._last = (thread, now_s)
        process = self._processes.of_thread(thread)
        if process is None or process.is_kernel:  # for whom that writes is not known
            self.unknown = True
        else:
            known = self._known.get(process.identity)
            if known is None or known.why != _WROTE:
                self._note(process)

    def name_of(self, thread: int) -> str | None:
        """Return what program a thread is of, if it is known to have written."""
        process = self._processes.of_thread(thread)
        known = self._known.get(process.identity) if process else None
        return known.name if known is not None and known.why == _WROTE else None

    @property
    def has_shell(self) -> bool:
        """Whether a shell is to be looked at now and then, for when it waits for a line."""
        return bool(self._shells)

    def running(self, *, asked_by: int = 0) -> list[Running]:
        """Return the processes that have to end before no more is written.

        The process `asked_by` and those that began it do not count: it asks whether
        all is written, so it has written all. Reads /proc; those that have
        ended are forgotten.
        """
        askers = self._askers(asked_by)
        with self._lock:
            known, groups, shells = dict(self._known), dict(self._groups), dict(self._shells)
        ended = {identity for identity in known if not self._runs(identity)}
        found = [
            one
            for identity, one in known.items()
            if identity not in ended and identity not in askers
        ]
        found += self._busy(shells, askers)
        over: list[_Group] = []
        if not found:  # all processes are gone through only for the last look
            found, over = self._members(groups, askers)
        with self._lock:
            for identity in ended:
                self._known.pop(identity, None)
            for group in over:
                self._groups.pop(group, None)
        return found

    # Noting

    def _note(self, process: Process) -> None:
        if process.name in SHELLS and process.pid == process.session and process.terminal:
            with self._lock:
                self._shells[process.identity] = None
            return
        control_group = self._processes.control_group(process)
        leader = self._processes.find(process.session)
        session = (process.session, leader.started if leader else None, control_group)
        known = {process.identity: Running(process.pid, process.name, _WROTE)}
        groups = {_Group(process.group, *session): process.name}
        shell = None
        child = process
        for parent in self._processes.above(process):
            if (
                parent.session != child.session
                or self._processes.control_group(parent) != control_group
            ):
                break
            if _is_shell_of(parent, child):
                shell = parent
                break
            why = f"which began {process.name}, which wrote to it"
            known[parent.identity] = Running(parent.pid, parent.name, why)
            groups[_Group(parent.group, *session)] = process.name
            child = parent
        with self._lock:
            for identity, one in known.items():
                if identity == process.identity or identity not in self._known:
                    self._known[identity] = one
            self._groups.update(groups)
            if shell is not None:
                self._shells[shell.identity] = None
            is_time = len(self._known) >= self._prune_at
        if is_time:
            self._prune()

    def _prune(self) -> None:
        """Forget the ended ones: a script that runs many programs makes many."""
        ended = [identity for identity in list(self._known) if not self._runs(identity)]
        with self._lock:
            for identity in ended:
                self._known.pop(identity, None)
            self._prune_at = max(_KNOWN_AT_LEAST, 2 * len(self._known))

    # Asking

    def _runs(self, identity: _Identity) -> bool:
        process = self._processes.find(identity[0])
        return process is not None and process.identity == identity and not process.has_ended

    def _askers(self, pid: int) -> set[_Identity]:
        asker = self._processes.find(pid) if pid > 0 else None
        if asker is None:
            return set()
        return {asker.identity, *(one.identity for one in self._processes.above(asker))}

    def _busy(self, shells: dict[_Identity, float | None], askers: set[_Identity]) -> list[Running]:
        """Return the shells that run a command; let those go that wait for a line."""
        found = []
        now_s = self._clock_s()
        for identity, since_s in shells.items():
            shell = self._processes.find(identity[0])
            if shell is None or shell.identity != identity or shell.has_ended:
                self._let_go(identity, since_s)
            elif identity in askers:
                continue  # it runs the command that asks
            elif shell.foreground != shell.group:
                self._seen_waiting(identity, since_s, None)
                why = "the shell it was written from, which runs a command"
                found.append(Running(shell.pid, shell.name, why))
            elif since_s is None:
                self._seen_waiting(identity, since_s, now_s)
            elif now_s - since_s >= PROMPT_S:
                self._let_go(identity, since_s)
        return found

    def _seen_waiting(self, shell: _Identity, before_s: float | None, now_s: float | None) -> None:
        with self._lock:
            if shell in self._shells and self._shells[shell] == before_s:  # else it wrote again
                self._shells[shell] = now_s

    def _let_go(self, shell: _Identity, since_s: float | None) -> None:
        with self._lock:
            if self._shells.get(shell) == since_s:
                self._shells.pop(shell, None)

    def _members(
        self, groups: dict[_Group, str], askers: set[_Identity]
    ) -> tuple[list[Running], list[_Group]]:
        """Return the others that run in the jobs' process groups, and the groups that are over."""
        numbers = {}
        for group in groups:
            leader = self._processes.find(group.session)
            if leader is None or leader.started == group.session_started:
                numbers[group.number, group.session, group.control_group] = group
        places = {(number, session) for number, session, _ in numbers}
        members = [
            process
            for process in (self._processes.all() if places else ())
            if (process.group, process.session) in places
            and not process.has_ended
            and not process.is_kernel
            and process.pid != os.getpid()
        ]
        found, alive = [], set()
        of_askers = {process.group for process in members if process.identity in askers}
        for process in members:
            control_group = self._processes.control_group(process)
            its_group = numbers.get((process.group, process.session, control_group))
            if its_group is None:
                continue
            alive.add(its_group)
            # The asking process's group is its own job: all of that is at its end.
            if process.group not in of_askers:
                why = f"of one job with {groups[its_group]}, which wrote to it"
                found.append(Running(process.pid, process.name, why))
        return found, [group for group in groups if group not in alive]


def sentence(running: Iterable[Running]) -> str:
    """Return in one line which processes still run."""
    first, *others = running
    more = f", and {len(others)} more" if others else ""
    verb = "still run" if others else "still runs"
    return f"{first}{more}, {verb}"


def _is_shell_of(parent: Process, child: Process) -> bool:
    """Return whether `parent` is a shell that made `child` a job of its own, as typed."""
    # `timeout` and GNU parallel make process groups, too, but leave the terminal to their script.
    return bool(
        parent.terminal
        and child.group != parent.group
        and (parent.pid == parent.session or child.foreground == child.group)
    )
