"""Freezing: what makes a staged dataset a registered one, by command or by itself.

Used by the operations and the control socket of a mount, and by the broker. One
job at a time for each staged dataset: hashed, uploaded while it is sealed,
registered, checked, its blocks handed to the cache, deleted. A job that fails leaves
everything staged, with the reason in its state. Thread-safe; the jobs run in threads
of their own.

After a crash at each step: not yet sealed, it is open, whatever of it is stored;
sealed or uploading, a mount carries on; completing, a mount asks the server again;
frozen, a mount only deletes. That mount is the next one, or one that runs and finds that
nobody owns it any more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from dserverfs.base import pools
from dserverfs.base.errors import (
    Cancelled,
    Conflict,
    DserverfsError,
    IntegrityError,
    ItemChanged,
    LocalDiskError,
    UsageError,
)
from dserverfs.base.progress import Doing, Progress
from dserverfs.base.retry import AWAY_OR_EXPIRED
from dserverfs.writing.freeze_job import FreezeJob, FreezeResult, Noted, Registry, told
from dserverfs.writing.freeze_schedule import LOOK_AGAIN_S, Schedule, is_sealed
from dserverfs.writing.staging import left_over, sealing
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.staging.states import Move, State
from dserverfs.writing.staging.survey import Ambiguous, Layout
from dserverfs.writing.upload.uploader import Uploader

logger = logging.getLogger(__name__)

JOBS = 2
CLOSE_GRACE_S = 5.0
# Between looks for what another process left on its way: who runs that again comes first.
LOOK_AROUND_S = 10.0


class Freezer:
    """Freezes the staged datasets of one server."""

    def __init__(self, uploader: Uploader, registry: Registry, *, delay_s: float | None) -> None:
        """`delay_s` is how long nothing may change before one is frozen by itself; None: never."""
        self._uploader = uploader
        self._registry = registry
        self._schedule = Schedule(delay_s)
        self._pool = ThreadPoolExecutor(JOBS, thread_name_prefix="freeze")
        self._condition = threading.Condition()
        self._watched: dict[Path, StagedDataset] = {}
        self._jobs: dict[Path, FreezeJob] = {}
        self._others: dict[Path, StagedDataset] = {}  # that another process owned
        self._frozen: dict[str, Noted] = {}  # by this process, by their URIs
        self._working = 0  # threads at work on a job, or on putting away what it froze
        self._closed = False
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._find_left_behind: Callable[[], Iterable[StagedDataset]] = tuple
        self._look_around_at_s = 0.0
        self.max_item_bytes: int | None = None  # of one item; None: no limit is known
        self._knows_limit = False

    def open(self, find_left_behind: Callable[[], Iterable[StagedDataset]] = tuple) -> None:
        """Start to freeze by itself, also what is found now and then that others left behind."""
        self._find_left_behind = find_left_behind
        self._look_around_at_s = time.monotonic() + LOOK_AROUND_S
        self._thread = threading.Thread(target=self._run, name="freezer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; what is not frozen stays staged.

        A job that waits for a store that does not answer is left behind after
        CLOSE_GRACE_S: on disk it is like one whose daemon was killed, and what it does
        from now on is refused when the staged datasets are no longer owned.
        """
        self._ending.set()
        with self._condition:
            self._closed = True
            for job in self._jobs.values():
                job.stop.set()
            self._condition.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._condition:
            self._condition.wait_for(lambda: not self._working, CLOSE_GRACE_S)

    def watch(self, staged: StagedDataset) -> None:
        """Freeze it when it is due: armed, closed, unchanged for a while and left by all
        its writers; or sealed before."""
        with self._condition:
            self._watched[staged.directory] = staged
            self._condition.notify_all()

    def resume(self, staged: StagedDataset) -> None:
        """Carry on with one that an earlier daemon left behind, or when that one has ended.

        A daemon that was unmounted may live for a moment more.
        """
        if not self._take_over(staged):
            with self._condition:
                self._others[staged.directory] = staged
                self._condition.notify_all()

    def _take_over(self, staged: StagedDataset) -> bool:
        """Return whether no other process owns it."""
        try:
            staged.own()  # and so no longer armed, if it is open
        except Conflict as error:
            logger.debug("%s", error)
            return False
        except FileNotFoundError:
            return True  # frozen or discarded
        except (OSError, DserverfsError) as error:
            staged.problem = f"cannot be carried on with: {error}"
            logger.warning("%s: %s", staged, staged.problem)
            return True
        if staged.record.state in (State.OPEN, State.FAILED):
            # Not armed any more by being owned. The next writer may own it.
            staged.disown()
        else:
            self.watch(staged)
        return True

    def learn_limit(self) -> None:
        """Find out how large an item may be, unless that is known; blocks."""
        if self._knows_limit:
            return
        try:
            self.max_item_bytes = self._uploader.max_item_bytes()
            self._knows_limit = True
        except DserverfsError as error:
            logger.info("how large items may be is not known yet: %s", error)

    def freeze(
        self, staged: StagedDataset, layout: Layout | None = None, *, by_itself: bool = False
    ) -> Future[FreezeResult]:
        """Begin to freeze it at once, armed or not; the result is what came of it.

        `by_itself` is without a person who says that it is complete. Fails with what
        keeps it from being frozen: everything is staged as before then.
        """
        with self._condition:
            job = self._jobs.get(staged.directory)
            if job is None:
                if self._closed:
                    raise _ending(staged)
                job = self._jobs[staged.directory] = FreezeJob(
                    staged,
                    layout,
                    self._uploader,
                    self._registry,
                    by_itself=by_itself,
                    ending=self._ending,
                )
                pools.submit(
                    self._pool, partial(self._work, job), dropped=partial(self._dropped, job)
                )
            self._watched[staged.directory] = staged
            return job.future

    def stop(self, staged: StagedDataset) -> None:
        """Have its freeze end, if there is one, and it stay staged, unless it is too late."""
        with self._condition:
            job = self._jobs.get(staged.directory)
        if job is not None:
            job.stop.set()

    def discard(self, staged: StagedDataset) -> None:
        """Delete it with all that is in it; raises Frozen if it is too late, or Conflict."""
        self.stop(staged)
        staged.discard()
        with self._condition:
            self._watched.pop(staged.directory, None)

    def progress(self, staged: StagedDataset) -> Progress | None:
        """Return how far its upload is, if there is one."""
        job = self._jobs.get(staged.directory)
        return job.progress if job else None

    def doing(self, staged: StagedDataset) -> Doing | None:
        """Return what its freeze does just now, if there is one."""
        job = self._jobs.get(staged.directory)
        return job.doing() if job else None

    def drain(self, *, asked_by: int = 0) -> list[tuple[StagedDataset, Future[FreezeResult]]]:
        """Begin to freeze what is armed, or sealed, without waiting for its time.

        Also what looks open: RELEASE may be on its way. Not what others than the
        process `asked_by` and those that began it may still write to.
        """
        with self._condition:
            watched = list(self._watched.values())
        due = [
            staged
            for staged in watched
            if is_sealed(staged)
            or (
                self._schedule.is_armed(staged)
                and self._schedule.may_be_complete(staged, asked_by=asked_by)
            )
        ]
        return [(staged, self.freeze(staged, by_itself=True)) for staged in due]

    def goes_on(self, staged: StagedDataset) -> bool:
        """Return whether one that could not be frozen is tried again by itself."""
        return self._thread is not None and is_sealed(staged)

    def waits_for(self, staged: StagedDataset, *, asked_by: int = 0) -> str | None:
        """Return what has to happen before it is frozen by itself; None if it will not be."""
        return self._schedule.waits_for(staged, asked_by=asked_by)

    def notes(self) -> dict[str, Noted]:
        """Return what there is to know of datasets that were frozen here, by their backend URIs."""
        return dict(self._frozen)

    def check(self) -> None:
        """Raise AssertionError unless the invariants hold; for tests."""
        assert 0 <= self._working <= JOBS
        assert all(not job.future.done() for job in self._jobs.values()), "a job is done and kept"

    # By itself

    def _run(self) -> None:
        while True:
            with self._condition:
                if self._closed:
                    return
                due = []
                shells = []
                wait_s: float | None = None
                for staged in list(self._watched.values()):
                    in_s = self._due_in_s(staged)
                    if in_s is None:
                        continue
                    if in_s <= 0:
                        due.append(staged)
                    else:
                        wait_s = in_s if wait_s is None else min(wait_s, in_s)
                        if staged.written_by.has_shell:
                            shells.append(staged)
                others = list(self._others.values())
                around_s = self._look_around_at_s - time.monotonic()
                if not due and not shells and not others and around_s > 0:
                    self._condition.wait(around_s if wait_s is None else min(wait_s, around_s))
                    continue
            if around_s <= 0:
                self._look_around()
            for staged in others:
                if self._take_over(staged):
                    with self._condition:
                        self._others.pop(staged.directory, None)
            # Without the lock: whole /proc may be read.
            for staged in shells:
                staged.written_by.running()
            if not self._freeze_all(due):
                with self._condition:
                    if not self._closed:
                        self._condition.wait(min(wait_s or LOOK_AGAIN_S, LOOK_AGAIN_S))

    def _look_around(self) -> None:
        """Carry on with what processes left behind that ended while this one runs."""
        for staged in self._find_left_behind():
            self._take_over(staged)
        self._look_around_at_s = time.monotonic() + LOOK_AROUND_S

    def _freeze_all(self, due: list[StagedDataset]) -> bool:
        """Freeze those whose writers have all ended; return whether there was one."""
        begun = False
        for staged in due:
            if is_sealed(staged) or self._schedule.may_be_complete(staged):
                try:
                    self.freeze(staged, by_itself=True)
                except Cancelled:
                    return False
                begun = True
        return begun

    def _due_in_s(self, staged: StagedDataset) -> float | None:
        """Return the seconds until it is to be frozen; None if that is not known."""
        if staged.is_gone or staged.frozen_as is not None:
            self._watched.pop(staged.directory, None)
            return None
        if staged.directory in self._jobs:
            return None
        return self._schedule.due_in_s(staged)

    # One job

    def _work(self, job: FreezeJob) -> None:
        with self._condition:
            self._working += 1
        try:
            self._carry_out(job)
        finally:
            with self._condition:
                self._working -= 1
                self._condition.notify_all()

    def _dropped(self, job: FreezeJob) -> None:
        """Tell the waiter of a job whose turn did not come before the mount's end."""
        with self._condition:
            del self._jobs[job.staged.directory]
        job.future.set_exception(_ending(job.staged))

    def _carry_out(self, job: FreezeJob) -> None:
        staged = job.staged
        try:
            dataset, local = job.run()
        except BaseException as caught:  # noqa: BLE001 - handed to the job's waiter
            error = told(caught, staged)
            try:
                self._failed(job, error)
            finally:
                with self._condition:
                    del self._jobs[staged.directory]
                    self._condition.notify_all()
                job.future.set_exception(error)
            return
        with self._condition:
            del self._jobs[staged.directory]
            self._watched.pop(staged.directory, None)
        if job.notes:
            self._frozen[dataset.uri] = Noted(dataset.name, job.notes, job.by_itself)
        job.future.set_result(FreezeResult(dataset.uri, job.notes))
        try:
            self._registry.adopt(dataset, local, self._ending)
            left_over.keep(staged, local)
            staged.delete()
        except OSError as error:
            logger.warning(
                "%s: is frozen; the next mount deletes what was staged: %s", staged, error
            )
        except Exception:
            # The next mount deletes it: it is frozen.
            logger.exception("%s: frozen, but what was staged cannot be put away", staged)

    def _failed(self, job: FreezeJob, error: BaseException) -> None:
        """Note on disk why it is not frozen, and when to try again."""
        staged, name = job.staged, job.staged.record.name
        state = staged.record.state
        reason = str(error)
        if staged.is_gone or not staged.is_owned:
            return  # discarded, or another's
        if not isinstance(error, (DserverfsError, OSError)):
            logger.error("%s: a fault of ours while freezing", staged, exc_info=error)
        try:
            was_written_to = isinstance(error, (Cancelled, ItemChanged)) or (
                # Any other error of the sealing stops the upload as well.
                job.stop.is_set() and isinstance(error, DserverfsError)
            )
            if was_written_to and state is State.OPEN:
                logger.info("%s: not frozen: %s", name, reason)  # later again
            elif isinstance(error, Cancelled):
                logger.info("%s: stays staged: %s", name, reason)
            elif isinstance(error, (UsageError, IntegrityError)) and state is State.OPEN:
                self._stays_open(job, error)
            elif state is State.OPEN and isinstance(error, LocalDiskError):
                staged.explain(reason)
                self._say(logging.WARNING, "%s: not frozen: %s", staged, reason)
                self._schedule.put_off(staged)
            elif state is State.OPEN:
                staged.disarm(f"not frozen: {reason}")
            elif state is State.FROZEN or isinstance(error, AWAY_OR_EXPIRED):
                if state is not State.FROZEN:
                    staged.move(Move.POSTPONE, reason=reason)
                pause_s = self._schedule.put_off(staged)
                self._say(logging.WARNING, "%s: tried again in %.0f s: %s", staged, pause_s, reason)
            else:
                if isinstance(error, ItemChanged):
                    sealing.forget_hashes(staged)
                staged.fail(reason)
                self._say(logging.ERROR, "%s: could not be frozen: %s", staged, reason)
        except (OSError, DserverfsError) as second:
            if state is not State.OPEN and staged.record.state is State.OPEN:
                logger.info("%s: not frozen: it is written to again", name)
            else:
                logger.error("%s: its state cannot be kept: %s", staged, second)

    def _say(self, level: int, message: str, *details: object) -> None:
        """Log what went wrong; where nothing is frozen by itself, the waiting caller is told."""
        logger.log(logging.INFO if self._thread is None else level, message, *details)

    def _stays_open(self, job: FreezeJob, error: BaseException) -> None:
        staged = job.staged
        if isinstance(error, Ambiguous):
            staged.disarm(str(error))
        elif staged.record.reason != str(error):
            staged.explain(str(error))
        self._schedule.not_before_it_changes(staged, job.changes)


def _ending(staged: StagedDataset) -> Cancelled:
    return Cancelled(f"{staged.record.name}: the mount is ending")
