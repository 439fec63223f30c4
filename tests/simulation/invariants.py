"""The invariants of each state class, checked while the simulation goes on.

Each class has them as `check()`. They hold whenever its lock is free. At each seam one
object of the process is checked, in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation.daemon import Daemon
from tests.simulation.scheduler import Process
from tests.simulation.threads import Busy, looking

_Check = tuple[Any, Callable[[], None]]  # a lock, and what is checked while it is free


class Invariants:
    """The objects of the daemons that are alive."""

    def __init__(self) -> None:
        self.checks = 0
        self._daemons: dict[Process, Daemon] = {}
        self._turns: dict[Process, int] = {}

    def watch(self, daemon: Daemon) -> None:
        self._daemons[daemon.process] = daemon
        self._turns[daemon.process] = 0

    def forget(self, daemon: Daemon) -> None:
        self._daemons.pop(daemon.process, None)

    def check_some(self, process: Process) -> None:
        """Check the next object of a process; raises AssertionError."""
        daemon = self._daemons.get(process)
        if daemon is None:
            return
        checks = self._of(daemon)
        turn = self._turns[process] = self._turns[process] + 1
        lock, check = checks[turn % len(checks)]
        if _is_held(lock):
            return
        try:
            with looking():
                check()
        except Busy:
            return
        self.checks += 1

    def _of(self, daemon: Daemon) -> list[_Check]:
        client = daemon.client
        flight = client.reader.flight
        checks: list[_Check] = [
            (flight._lock, flight._hot.check),
            (flight._lock, flight._pending.check),
            (client.resolver._signing._urls._lock, client.resolver._signing._urls.check),
            (client.freezer._condition, client.freezer.check),
        ]
        edits = client.edits._local
        checks += [(edits.lock, each.check) for each in list(edits._edited.values())]
        catalogue = client.catalogue
        checks += [(catalogue._lock, names.check) for names in list(catalogue._names.values())]
        staged = list(client.staging._known.values())
        checks += [(each._lock, each.check) for each in staged]
        return checks


def _is_held(lock: Any) -> bool:
    inner = getattr(lock, "_lock", lock)  # of a Condition, of an RLock
    inner = getattr(inner, "_lock", inner)
    return bool(inner.locked())
