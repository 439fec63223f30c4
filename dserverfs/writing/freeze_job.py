"""One freeze: a staged dataset is hashed, uploaded while it is sealed, registered, checked.

Used by the freezer, whose threads carry it out. Knows no schedule and no other job.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol

from dserverfs.base.disk_tables import DiskDict
from dserverfs.base.dtool_layout import DATA
from dserverfs.base.errors import Cancelled, LocalDiskError, UsageError
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.local_files import is_full
from dserverfs.base.model import UUID, Dataset
from dserverfs.base.pools import begun
from dserverfs.base.printable import counted
from dserverfs.base.progress import Doing, Phases, Progress
from dserverfs.writing.staging import sealing
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.staging.sealing import Described
from dserverfs.writing.staging.states import Move, State, next_state
from dserverfs.writing.staging.survey import Layout
from dserverfs.writing.upload.uploader import Uploader

logger = logging.getLogger(__name__)

# RELEASE comes after close(2) has returned, so what was just closed may look open.
LATE_CLOSE_S = 2.0

HASHING, UPLOADING, REGISTERING = "hashing", "uploading", "registering"


class FreezeResult(NamedTuple):
    """The result of a freeze."""

    uri: str  # in its backend
    notes: list[str]  # a line each: what was lost, or may surprise


class Noted(NamedTuple):
    """A dataset that was frozen."""

    name: str
    notes: list[str]
    by_itself: bool  # no caller waited for the result


class Registry(Protocol):
    """The registered datasets: the server's catalogue, as the mount sees it."""

    def registered(
        self,
        local: LocalDataset,
        base_uri: str,
        taken: Container[object],
        stop: threading.Event,
    ) -> Dataset:
        """Return the dataset as the server has it; IntegrityError if it is not the same.

        Items that are not among those `taken` by the store from us are looked for there.
        """

    def require_same(self, local: LocalDataset, base_uri: str) -> None:
        """Raise Conflict if what is registered has other metadata; its items are the same."""

    def learn(self, dataset: Dataset, as_staged: UUID) -> str | None:
        """Show it from now on as it was named while staged; return what may surprise of that."""

    def adopt(self, dataset: Dataset, local: LocalDataset, stop: threading.Event) -> None:
        """Take the items' bytes over into the cache, until `stop`; they can be fetched, too."""


class FreezeJob:
    """The freezing of one staged dataset; `run` is for one thread, the rest for any."""

    def __init__(
        self,
        staged: StagedDataset,
        layout: Layout | None,
        uploader: Uploader,
        registry: Registry,
        *,
        by_itself: bool,
        ending: threading.Event,
    ) -> None:
        """`by_itself` is without a person who says that it is complete; `ending` is the mount."""
        self.staged = staged
        self.by_itself = by_itself
        self.future: Future[FreezeResult] = Future()
        self.stop = threading.Event()
        self.progress: Progress | None = None  # of the upload
        self._phases = Phases()
        self.notes: list[str] = []
        self.changes = staged.changes
        self._layout = layout
        self._uploader = uploader
        self._registry = registry
        self._ending = ending

    def doing(self) -> Doing | None:
        """Return what it does just now; None before it hashes."""
        return self._phases.doing()

    def run(self) -> tuple[Dataset, LocalDataset]:
        """Freeze it; return what it became, and as what of it was staged."""
        staged = self.staged
        staged.own()
        with staged.stopped_by_writes(self.stop):
            if staged.record.state in (State.OPEN, State.FAILED):
                described = self._describe()
                local = described.dataset
                dataset = self._seal_and_upload(described)
            else:
                local = sealing.load(staged)
                dataset = self._carry_on(local)
        is_noted = staged.record.state is State.FROZEN
        if not is_noted:
            next_state(staged.record.state, Move.REGISTER)  # before anything shows it as frozen
        surprise = self._registry.learn(dataset, UUID(staged.id))
        if surprise:
            self.notes.append(surprise)
        if staged.record.name != dataset.name:
            self.notes.append(f"its name is {dataset.name}, as when it was frozen first")
        staged.frozen_below = "" if sealing.has_dtool_layout(staged, local) else DATA
        staged.frozen_as = dataset
        if not is_noted:
            try:
                staged.move(Move.REGISTER)
            except OSError as error:  # the next mount asks the server, if it is there by then
                logger.warning("%s: frozen, which cannot be noted: %s", staged, error)
        logger.info("%s: frozen as %s", staged.record.name, dataset.uri)
        for note in self.notes:
            logger.info("%s: %s", staged.record.name, note)
        return dataset, local

    def _describe(self) -> Described:
        staged = self.staged
        end_s = time.monotonic() + LATE_CLOSE_S
        while staged.writers:
            if time.monotonic() > end_s:
                raise UsageError(
                    f"{staged.record.name}: open for writing in it:"
                    f" {counted(staged.writers, 'file')}"
                )
            self.stop.wait(0.02)
        described = sealing.describe(
            staged,
            self._layout,
            self.stop,
            by_itself=self.by_itself,
            on_progress=partial(self._phases.note, HASHING),
        )
        if described is None:
            raise UsageError(
                f"{staged.record.name}: is empty; dserverfs freeze does it all the same"
            )
        self.notes += described.notes
        return described

    def _seal_and_upload(self, described: Described) -> Dataset:
        """Upload while the disk takes what is to be sealed; register when it is.

        Until then it is open: after a crash objects are stored that nothing lists, as after
        any upload that was not completed.
        """

        def seal() -> None:
            try:
                described.keep()
                self._move(Move.UPLOAD)
            except BaseException:
                self.stop.set()  # what is sent is sent in vain
                raise

        with ThreadPoolExecutor(1, thread_name_prefix="seal") as pool:
            sealed = begun(pool, seal)

            def before_complete() -> None:
                sealed.result()
                self._before_complete()

            try:
                return self._upload(described.dataset, before_complete)
            finally:
                sealed.result()  # what kept it from that is told before what came of it

    def _carry_on(self, local: LocalDataset) -> Dataset:
        """Upload what was sealed before, or ask what became of it."""
        staged = self.staged
        if staged.record.state is State.FROZEN:
            # It was looked for before.
            taken = local.items.keys()
            return self._registry.registered(local, staged.record.base_uri, taken, self._ending)
        if staged.record.state is not State.COMPLETING:
            self._move(Move.UPLOAD)
        return self._upload(local, self._before_complete)

    def _upload(self, local: LocalDataset, before_complete: Callable[[], None]) -> Dataset:
        base_uri = self.staged.record.base_uri
        taken = DiskDict()
        # Then it was we who had it registered, and others may have changed it since.
        is_ours = self.staged.record.state is State.COMPLETING

        def compare() -> None:
            if not is_ours:
                self._registry.require_same(local, base_uri)
                self.notes.append("the server had it already, with the same content")

        self._uploader.upload(
            local,
            base_uri,
            on_progress=self._note_progress,
            stop=self.stop,
            before_complete=before_complete,
            on_taken=lambda item: taken.__setitem__(item.identifier, True),
            on_registered=compare,
        )
        return self._registry.registered(local, base_uri, taken, self._ending)

    def _before_complete(self) -> None:
        """Rule out writes from now on, unless there was one."""
        if self.stop.is_set():
            raise self._stopped()
        self._move(Move.COMPLETE)
        if self.progress is not None:
            self._phases.note(REGISTERING, self.progress)

    def _move(self, move: Move) -> None:
        """Change the state; raises Cancelled if a write came first, which sets `stop`."""
        try:
            self.staged.move(move)
        except UsageError:
            if self.stop.is_set():
                raise self._stopped() from None
            raise

    def _stopped(self) -> Cancelled:
        return Cancelled(f"{self.staged.record.name}: was written to, or the mount is ending")

    def _note_progress(self, progress: Progress) -> None:
        self.progress = progress
        self._phases.note(UPLOADING, progress)


def told(error: BaseException, staged: StagedDataset) -> BaseException:
    """Return the error for the waiting caller: a full disk is no fault of ours."""
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
