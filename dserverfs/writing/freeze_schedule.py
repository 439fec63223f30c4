"""The moment at which a staged dataset is frozen by itself, and the reasons to wait.

Used by the freezer. A dataset may be complete when nothing in it is open, all processes
that wrote to it have ended, and nothing changed for a while. Thread-safe; never waits,
but reads /proc where it says so.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from dserverfs.base import retry
from dserverfs.base.printable import counted
from dserverfs.writing.staging.dataset import PAUSES, StagedDataset
from dserverfs.writing.staging.states import State
from dserverfs.writing.staging.writers import sentence

LOOK_AGAIN_S = 0.5
# Between attempts while server or store is away or the token refused, first and most: a
# server that is restarted is back in seconds.
RETRY_S = (5.0, 600.0)


class Schedule:
    """The times of one mount's staged datasets."""

    def __init__(self, delay_s: float | None) -> None:
        """`delay_s` is how long nothing may change before one is frozen by itself; None: never."""
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self._retry_at_s: dict[Path, tuple[float, float]] = {}  # when, and the pause before it
        # Could not be frozen as it was: not tried again by itself until it changes.
        self._tried: dict[Path, int] = {}

    def is_armed(self, staged: StagedDataset) -> bool:
        """Return whether it is open, ours, and to be frozen without a command."""
        if self._delay_s is None or not staged.is_owned:
            return False
        record = staged.record
        return record.state is State.OPEN and record.armed and not record.manual

    def due_in_s(self, staged: StagedDataset) -> float | None:
        """Return the seconds until it may be frozen; None if that is not known."""
        if not staged.is_owned:
            return None
        now_s = time.monotonic()
        if is_sealed(staged):
            retry_at_s, _ = self._retry_at_s.get(staged.directory, (now_s, 0.0))
            return retry_at_s - now_s
        if self._delay_s is None or not self.is_armed(staged):
            return None
        if staged.writers or self._tried.get(staged.directory) == staged.changes:
            return max(self._delay_s, LOOK_AGAIN_S)  # closing does not wake the freezer
        retry_at_s, _ = self._retry_at_s.get(staged.directory, (now_s, 0.0))
        return max(staged.settles_in_s(self._delay_s), retry_at_s - now_s)

    def may_be_complete(self, staged: StagedDataset, *, asked_by: int = 0) -> bool:
        """Return whether all processes that wrote to it have ended, but `asked_by`.

        Reads /proc. Before its time only where all writers are known: of those
        elsewhere nothing is known but the pauses.
        """
        if staged.written_by.running(asked_by=asked_by):
            return False
        return not staged.written_by.unknown or staged.settles_in_s(self._delay_s or 0.0) <= 0

    def waits_for(self, staged: StagedDataset, *, asked_by: int = 0) -> str | None:
        """Return what has to happen before it is frozen by itself; None if nothing has to.

        Reads /proc.
        """
        if self._delay_s is None or not self.is_armed(staged):
            return None
        if staged.writers:
            return f"open for writing in it: {counted(staged.writers, 'file')}"
        if running := staged.written_by.running(asked_by=asked_by):
            return f"{sentence(running)}; dserverfs freeze DIR freezes it now"
        wait_s = staged.settles_in_s(self._delay_s)
        if wait_s <= 0:
            return None
        whole_s = wait_s + staged.quiet_s()
        is_longer = PAUSES * staged.longest_pause_s > self._delay_s
        why = f", {PAUSES:.0f} times its longest pause so far," if is_longer else ""
        return (
            f"it is frozen {whole_s:.0f} s{why} after its last change, in {wait_s:.0f} s;"
            " dserverfs freeze DIR freezes it now"
        )

    def put_off(self, staged: StagedDataset) -> float:
        """Return for how long it is not tried again by itself: twice as long each time."""
        with self._lock:
            _, last_s = self._retry_at_s.get(staged.directory, (0.0, 0.0))
            pause_s = retry.pause_s(last_s, *RETRY_S)
            self._retry_at_s[staged.directory] = (time.monotonic() + pause_s, pause_s)
            return pause_s

    def not_before_it_changes(self, staged: StagedDataset, changes: int) -> None:
        """Note that it cannot be frozen as it was after so many changes."""
        self._tried[staged.directory] = changes


def is_sealed(staged: StagedDataset) -> bool:
    """Return whether it is ours and on its way to be frozen."""
    return staged.is_owned and staged.is_on_its_way
