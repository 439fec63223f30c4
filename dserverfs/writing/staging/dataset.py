"""One staged dataset: its state, its owner, and the writes that go on in it.

Used by the staging area, which lists them. The owner writes the files in its directory.
Thread-safe. Blocking, but only on the local disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from dserverfs.base.durable_files import write_durably
from dserverfs.base.errors import Conflict, Frozen, ProtocolError
from dserverfs.base.excluded import NOTHING, Excluded
from dserverfs.base.local_files import is_full
from dserverfs.base.locks import OwnerLock
from dserverfs.base.model import UUID, Dataset
from dserverfs.writing.staging.incremental_hash import HashAhead
from dserverfs.writing.staging.refused_files import RefusedFiles
from dserverfs.writing.staging.states import Move, Record, State, next_state
from dserverfs.writing.staging.writers import Writers

logger = logging.getLogger(__name__)

_STATE = "state"
_LOCK = "lock"
TREE = "tree"
GONE = ".gone-"
KEPT = ".kept-"
MAX_STATE_BYTES = 1 << 20  # a reason may quote a path of 4 KiB
PAUSES = 4.0  # a job may take that many times its longest pause so far
ORPHANED = "it was open when its mount ended; nobody knows whether it was complete"


class StagedDataset:
    """One proto dataset."""

    def __init__(
        self,
        directory: Path,
        record: Record,
        clock_s: Callable[[], float] = time.monotonic,
        *,
        excluded: Excluded = NOTHING,
    ) -> None:
        self.directory = directory
        self.excluded = excluded  # names that do not become items
        self.tree = directory / TREE
        self._record = record
        self._lock = threading.RLock()
        self._owner = OwnerLock(directory / _LOCK)
        # How many handles are open for writing, and how often something changed: both
        # of the process that owns it, in memory only.
        self._writers = 0
        self._changes = 0
        self._clock_s = clock_s
        self._changed_s = clock_s()
        self._was_opened = False
        self._has_content = False
        # Between two changes, since there is something in it.
        self.longest_pause_s = 0.0
        self.written_by = Writers()
        self._gone = False
        # The dataset it became; set before anything of `tree` is deleted.
        self.frozen_as: Dataset | None = None
        # Below which directory of that its top is now; None if only another process knows.
        self.frozen_below: str | None = None
        self._stopped_by_writes: threading.Event | None = None
        self.problem: str | None = None  # with a file of ours, that keeps it from being used
        self.refused = RefusedFiles(directory, self.tree)
        self.hash_ahead = HashAhead()  # told by all writers to `tree`

    @property
    def record(self) -> Record:
        """The record as of now; of another's staged dataset, as it was read last."""
        return self._record

    @property
    def id(self) -> str:
        return self._record.id

    @property
    def is_owned(self) -> bool:
        return self._owner.held

    @property
    def is_gone(self) -> bool:
        """Whether it was discarded, or deleted after it was frozen."""
        return self._gone

    @property
    def is_over(self) -> bool:
        """Whether it is staged no more: gone, or frozen and about to be deleted."""
        return self._gone or self.frozen_as is not None or self._record.state is State.FROZEN

    @property
    def is_on_its_way(self) -> bool:
        """Whether it was sealed, to be frozen or about to be deleted after that."""
        return self._record.state not in (State.OPEN, State.FAILED)

    @property
    def uuid(self) -> UUID:
        """The uuid of the dataset it becomes, as far as that is known."""
        return UUID(self._record.uuid or self._record.id)

    @property
    def kept_directory(self) -> Path:
        """Where files go that are no part of the dataset when it is frozen."""
        return self.directory.with_name(f"{KEPT}{self.id}")

    @property
    def changes(self) -> int:
        """A number that is another one after each change."""
        return self._changes

    @property
    def writers(self) -> int:
        return self._writers

    def quiet_s(self) -> float:
        """Return for how long nothing changed and nothing was closed, in seconds."""
        return self._clock_s() - self._changed_s

    def settles_in_s(self, delay_s: float) -> float:
        """Return in how many seconds nothing was changed for so long that it may be complete.

        For `delay_s`, or longer than its writers' pauses were: a job whose steps take
        an hour is not done after a minute.
        """
        return max(delay_s, PAUSES * self.longest_pause_s) - self.quiet_s()

    def own(self) -> None:
        """Make this process the owner; raises Conflict if another one is.

        One that comes from a process which ended while it was open is not armed
        from then on.
        """
        with self._lock:
            if self._owner.held:
                return
            if not self._owner.acquire():
                raise Conflict(
                    f"{self._record.name}: is being written by {self._owner.owner()}:"
                    " only that one may change it"
                )
            try:
                self._record = read_record(self.directory)
                if self._record.state is State.OPEN:
                    self.disarm(ORPHANED)
            except BaseException:
                self._owner.release()
                raise

    def disown(self) -> None:
        """Let another process own it."""
        with self._lock:
            self._owner.release()

    def reload(self) -> None:
        """Read the state of another's staged dataset again; raises OSError if it is gone."""
        with self._lock:
            if not self._owner.held:
                self._record = read_record(self.directory)

    def take_as_gone(self) -> None:
        """Note that its directory is gone: it was frozen or discarded before this process began."""
        self._gone = True

    # Changes of what is in it

    def require_writable(self) -> None:
        """Make it `open` if a write may; raises Frozen, or Conflict if another owns it.

        Waits for the disk at the first write after it was sealed, or failed.
        """
        with self._lock:
            if self._gone:
                raise Frozen(f"{self._record.name}: is not staged any more")
            self.own()
            if self._record.state is not State.OPEN:
                self.move(Move.WRITE)
                if self._stopped_by_writes is not None:
                    self._stopped_by_writes.set()

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold off the freezer while something in it is changed; raises as `require_writable`."""
        with self._lock:
            self.require_writable()
            try:
                yield
            finally:
                self.changed()

    def changed(self) -> None:
        """Note that something in it changed just now, by one of its writers."""
        now_s = self._clock_s()
        if self._has_content:  # before, it is a directory made for later
            self.longest_pause_s = max(self.longest_pause_s, now_s - self._changed_s)
        self._has_content = self._was_opened
        self._changes += 1
        self._changed_s = now_s

    def writer_opened(self) -> None:
        """Note a handle for writing; to be called while `changing`."""
        self._writers += 1
        self._was_opened = True

    def writer_closed(self) -> None:
        with self._lock:
            self._writers -= 1
            self.changed()

    @contextlib.contextmanager
    def stopped_by_writes(self, stop: threading.Event) -> Iterator[None]:
        """Set `stop` when a write reopens the dataset inside the block; one block at a time."""
        with self._lock:
            self._stopped_by_writes = stop
        try:
            yield
        finally:
            with self._lock:
                self._stopped_by_writes = None

    # Moves

    def move(self, move: Move, *, reason: str | None = None) -> None:
        """Change the state, on disk first; raises Frozen or UsageError if it may not be."""
        with self._lock:
            self._keep(self._record.moved(move, reason=reason))

    def fail(self, reason: str) -> None:
        """Move on to `failed`; whoever writes to it or freezes it next, owns it then."""
        with self._lock:
            self.move(Move.FAIL, reason=reason)
            if not self._writers:
                self._owner.release()

    def seal(self, changes: int, uuid: str) -> bool:
        """Move on to `sealed` if nothing is written or changed since `changes`; return whether."""
        with self._lock:
            if self._writers or self._changes != changes:
                return False
            self._keep(replace(self._record.moved(Move.SEAL), uuid=uuid))
            return True

    def disarm(self, reason: str) -> None:
        """Have it frozen only by command from now on, and remember the first reason."""
        with self._lock:
            if not self._record.armed or not self._owner.held:
                return
            logger.warning("%s: will be frozen only by command: %s", self, reason)
            self._note(replace(self._record, armed=False, reason=reason))

    def explain(self, reason: str) -> None:
        """Remember why it is as it is."""
        with self._lock:
            self._note(replace(self._record, reason=reason))

    def set_manual(self, manual: bool) -> None:
        """Freeze it by command only, or by itself again."""
        with self._lock:
            self._keep(replace(self._record, manual=manual))

    def delete(self) -> None:
        """Delete it from the disk; after a crash in between, the next start goes on."""
        with self._lock:
            gone = self.directory.with_name(f"{GONE}{self.id}")
            self.directory.rename(gone)
            self._gone = True
            self._owner.release()
        delete_tree(gone)

    def discard(self) -> None:
        """Delete it with everything in it, which needs no space; raises Frozen if it is too late.

        After a crash in between it is deleted at the next start.
        """
        with self._lock:
            self.own()
            next_state(self._record.state, Move.DISCARD)
            self.delete()

    def check(self) -> None:
        """Raise AssertionError unless the invariants hold; for tests."""
        assert self._writers >= 0, f"{self}: more handles were closed than opened"
        is_open = self._record.state is State.OPEN
        assert not self._writers or self._gone or is_open, f"{self}: is written to, and not open"
        is_armed = is_open and self._record.armed and self._changes and not self._gone
        assert self._owner.held or not is_armed, f"{self}: is armed, and nobody's"

    def rename(self, name: str) -> None:
        """Give it another name; use Staging.rename, which knows what is taken."""
        with self._lock:
            self._keep(replace(self._record, name=name))

    def _keep(self, record: Record) -> None:
        """Invariant: only its owner writes the state."""
        if not self._owner.held:
            raise Conflict(f"{self._record.name}: belongs to {self._owner.owner()}")
        write_record(self.directory, record)
        self._record = record

    def _note(self, record: Record) -> None:
        """Keep what is only told; where the disk is full, in memory."""
        if not self._owner.held:
            return
        self._record = record
        try:
            write_record(self.directory, record)
        except OSError as error:
            # Unsaved it is no danger: one that is open when its owner ends is not armed by
            # the next.
            logger.info("%s: not noted on disk: %s", self.directory, error)

    def __str__(self) -> str:
        return f"{self._record.base_uri}/{self._record.name} (staged in {self.directory})"


def read_record(directory: Path) -> Record:
    """Return what is kept of a staged dataset; raises OSError and ProtocolError if it is none."""
    with (directory / _STATE).open("rb") as file:
        content = file.read(MAX_STATE_BYTES + 1)
    if len(content) > MAX_STATE_BYTES:
        raise ProtocolError("the state is larger than any is")
    record = Record.from_json(content)
    base = directory.parent
    place = (base.parent.name, base.name, directory.name)
    if place != (quote(record.server, safe=""), quote(record.base_uri, safe=""), record.id):
        raise ProtocolError("the state is another one's")
    if not stat.S_ISDIR((directory / TREE).lstat().st_mode):
        raise ProtocolError(f"its {TREE} is no directory")
    return record


def write_record(directory: Path, record: Record) -> None:
    """Replace the state; on disk when it returns. On a full disk it is overwritten in place."""
    path, content = directory / _STATE, record.to_json().encode("utf-8")
    try:
        write_durably(path, content)
    except OSError as error:
        if not is_full(error) or not _overwritten(path, content):
            raise


def _overwritten(path: Path, content: bytes) -> bool:
    """Overwrite a file without a new block; return whether that could be done.

    A power cut in between may leave half of it, which is found when it is read.
    """
    try:
        with path.open("r+b", buffering=0) as file:
            status = os.fstat(file.fileno())
            if len(content) > max(status.st_blocks * 512, status.st_size):
                return False
            # With spaces behind it, JSON is the same.
            file.write(content.ljust(status.st_size))
            os.fsync(file.fileno())
    except OSError:
        return False
    return True


def delete_tree(path: Path) -> None:
    """Delete a directory, as another process may just now; what cannot go stays, logged."""
    while path.exists():
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            continue  # the other one was faster
        except OSError as error:
            if path.exists():
                logger.warning("%s: cannot be deleted: %s", path, error)
            return
