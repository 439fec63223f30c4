"""The freezing of one staged dataset: what was asked for, how far it is, what comes of it.

Used by the freezer, whose threads carry it out. No I/O but the state's.
"""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import Future
from typing import NamedTuple

from dserverfs.base.errors import Cancelled, LocalDiskError
from dserverfs.writing.staging.dataset import StagedDataset, is_full
from dserverfs.writing.staging.states import Move
from dserverfs.writing.staging.survey import Layout


class Progress(NamedTuple):
    """How far an upload is."""

    bytes_done: int
    bytes_total: int
    items_done: int
    items_total: int


class Frozen(NamedTuple):
    """What came of a freeze."""

    uri: str  # in its backend
    notes: list[str]  # a line each: what was lost, or may surprise


class Noted(NamedTuple):
    """What there is to know of a dataset that was frozen."""

    name: str
    notes: list[str]
    by_itself: bool  # nobody waited, who was told


class Job:
    """The freezing of one staged dataset."""

    def __init__(self, staged: StagedDataset, layout: Layout | None, by_itself: bool) -> None:
        self.staged = staged
        self.by_itself = by_itself
        self.layout = layout
        self.future: Future[Frozen] = Future()
        self.stop = threading.Event()
        self.progress: Progress | None = None
        self.notes: list[str] = []
        self.changes = staged.changes

    def before_complete(self) -> None:
        """Rule out writes from now on, unless there was one."""
        if self.stop.is_set():
            raise Cancelled(f"{self.staged.record.name}: was written to, or the mount is ending")
        self.staged.move(Move.COMPLETE)

    def note_progress(self, *counts: int) -> None:
        self.progress = Progress(*counts)


def told(error: BaseException, staged: StagedDataset) -> BaseException:
    """Return the error as whoever waits is told of it: a full disk is no fault of ours."""
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and is_full(cause)) or (
            isinstance(cause, sqlite3.OperationalError) and "full" in str(cause)
        ):
            disk = staged.directory.parent.parent.parent
            return LocalDiskError(
                f"{staged.record.name}: the disk that has {disk} is full: free some of it, or"
                " discard a dataset, and try again; nothing of it is lost"
            )
        cause = cause.__cause__
    return error
