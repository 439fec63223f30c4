"""The staging area: proto datasets as real local directories, until they are frozen.

Used by the tree and the operations of a mount, the freezer and the broker. Owns
which staged datasets there are, what state each is in and which process may
change it; what is in their directories is written by whoever owns them.
Thread-safe. Blocking, but only on the local disk.

On disk, below `directory` (0700):

    <server>/<base URI>/names.lock    held while a name is taken
    <server>/<base URI>/<id>/state    JSON, replaced atomically at each move
    <server>/<base URI>/<id>/lock     held by its owner, with host and boot id
    <server>/<base URI>/<id>/tree/    the user's files
    <server>/<base URI>/<id>/...      what freezing keeps there (hashes, the sealed description)

After a crash: `.new-<id>` was never told of, `.gone-<id>` is discarded or frozen;
both are deleted at the next start. Everything else is what its state says: open
ones stay open and are not armed, sealed and uploading ones are carried on with.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from dserverfs.directories import private_directory
from dserverfs.durable_files import sync_directory, write_durably
from dserverfs.errors import (
    Conflict,
    DserverfsError,
    Frozen,
    LocalDiskError,
    NameTaken,
    UsageError,
)
from dserverfs.hash_ahead import HashAhead
from dserverfs.limits import name_is_valid
from dserverfs.local_files import locked
from dserverfs.model import UUID, Dataset
from dserverfs.owner_lock import OwnerLock
from dserverfs.staging_state import Move, Record, State
from dserverfs.writers import Writers

logger = logging.getLogger(__name__)

OPTION = "--staging-dir"
_STATE = "state"
_LOCK = "lock"
_TREE = "tree"
_NAMES = "names.lock"
_NEW = ".new-"
_GONE = ".gone-"
PAUSES = 4.0  # a job may take that many times its longest pause so far
ORPHANED = "it was open when its mount ended; nobody knows whether it was complete"


class StagedDataset:
    """One proto dataset."""

    def __init__(
        self, directory: Path, record: Record, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.directory = directory
        self.tree = directory / _TREE
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
        # What it became; set before anything of `tree` is deleted.
        self.frozen_as: Dataset | None = None
        # Below which directory of that its top is now; None if only another process knows.
        self.frozen_below: str | None = None
        self._on_reopen: Callable[[], None] | None = None
        self.hash_ahead = HashAhead()  # told by whoever writes to what is in `tree`

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
    def uuid(self) -> UUID:
        """The uuid of the dataset it becomes, as far as that is known."""
        return UUID(self._record.uuid or self._record.id)

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
                self._record = _read(self.directory)
                if self._record.state is State.OPEN and self._record.armed:
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
                self._record = _read(self.directory)

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
                if self._on_reopen is not None:
                    self._on_reopen()

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
        if self._has_content:  # before, somebody made a directory for later
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

    def when_reopened(self, call: Callable[[], None] | None) -> None:
        """Have `call` called, in the writer's thread, when a write reopens it."""
        with self._lock:
            self._on_reopen = call

    # Moves

    def move(self, move: Move, *, reason: str | None = None) -> None:
        """Change the state, on disk first; raises Frozen or UsageError if it may not be."""
        with self._lock:
            self._keep(self._record.moved(move, reason=reason))

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
            self._record = replace(self._record, armed=False, reason=reason)
            try:
                _write(self.directory, self._record)
            except OSError as error:
                # Often the disk is full. Unsaved it is no danger: one that is open when
                # its owner ends is not armed by the next.
                logger.info("%s: not noted on disk: %s", self.directory, error)

    def explain(self, reason: str) -> None:
        """Remember why it is as it is."""
        with self._lock:
            self._keep(replace(self._record, reason=reason))

    def set_manual(self, manual: bool) -> None:
        """Freeze it by command only, or by itself again."""
        with self._lock:
            self._keep(replace(self._record, manual=manual))

    def delete(self) -> None:
        """Delete it from the disk; after a crash in between, the next start goes on."""
        with self._lock:
            self._gone = True
            gone = self.directory.with_name(f"{_GONE}{self.id}")
            self.directory.rename(gone)
            self._owner.release()
        _delete_tree(gone)

    def discard(self) -> None:
        """Delete it with everything in it; raises Frozen if it is too late."""
        with self._lock:
            self.own()
            self.move(Move.DISCARD)
            self.delete()

    def rename(self, name: str) -> None:
        """Give it another name; use Staging.rename, which knows what is taken."""
        with self._lock:
            self._keep(replace(self._record, name=name))

    def _keep(self, record: Record) -> None:
        """Invariant: nobody but its owner writes the state."""
        if not self._owner.held:
            raise Conflict(f"{self._record.name}: belongs to {self._owner.owner()}")
        _write(self.directory, record)
        self._record = record

    def __str__(self) -> str:
        return f"{self._record.base_uri}/{self._record.name} (staged in {self.directory})"


class Staging:
    """The staged datasets of one server."""

    def __init__(
        self, directory: Path, server: str, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.directory = directory
        self._clock_s = clock_s
        self._root = directory / urllib.parse.quote(server, safe="")
        self._server = server
        self._lock = threading.Lock()
        self._known: dict[Path, StagedDataset] = {}

    def open(self) -> Staging:
        """Make the directory and delete what a crash left; raises UsageError."""
        private_directory(self.directory, OPTION)
        private_directory(self._root, OPTION)
        for base in _subdirectories(self._root):
            with locked(base / _NAMES):
                for path in _subdirectories(base):
                    if path.name.startswith((_NEW, _GONE)):
                        _delete_tree(path)
        return self

    def close(self) -> None:
        """Let other processes own what this one did."""
        with self._lock:
            for staged in self._known.values():
                staged.disown()

    def base_uris(self) -> list[str]:
        """Return the base URIs in which something is, or was, staged."""
        return [urllib.parse.unquote(path.name) for path in _subdirectories(self._root)]

    def datasets(self, base_uri: str) -> list[StagedDataset]:
        """Return what is staged for a base URI, oldest first; what cannot be read is left out.

        Raises LocalDiskError if the directory itself is gone, which says of no dataset
        that it was discarded.
        """
        found = []
        base = self._base(base_uri)
        with self._lock:
            if not base.is_dir() and self._has_staged_locked(base):
                raise LocalDiskError(f"{base}: is gone, with what is staged there")
            for path in _subdirectories(base):
                if path.name.startswith("."):
                    continue
                staged = self._known.get(path)
                try:
                    if staged is None:
                        staged = StagedDataset(path, _read(path), self._clock_s)
                        self._known[path] = staged
                    staged.reload()
                except FileNotFoundError:
                    continue
                except (OSError, DserverfsError) as error:
                    self._complain(path, error)
                    if staged is None:
                        continue
                found.append(staged)  # as it was, if it cannot be read any more
            # What is gone since: another process froze or discarded it.
            for path, staged in list(self._known.items()):
                if staged.record.base_uri == base_uri and staged not in found:
                    del self._known[path]
                    staged._gone = True
        return sorted(found, key=lambda staged: (staged.record.created_at, staged.id))

    def _has_staged_locked(self, base: Path) -> bool:
        return any(path.parent == base and not one.is_over for path, one in self._known.items())

    def create(
        self,
        base_uri: str,
        name: str,
        creator_username: str,
        *,
        id: str | None = None,
        unarmed: str | None = None,
    ) -> StagedDataset:
        """Make an empty one that this process owns; `id` is a uuid, of the dataset to be.

        `unarmed` is a reason why it is to be frozen by command only.
        Raises UsageError for a name dtool refuses, NameTaken, Conflict if that id
        is staged already.
        """
        require_name(name)
        base = self._base(base_uri)
        private_directory(base, OPTION)
        with locked(base / _NAMES):
            self._require_free(base_uri, name)
            record = Record(
                id=id or str(uuid.uuid4()),
                server=self._server,
                base_uri=base_uri,
                name=name,
                creator_username=creator_username,
                created_at=time.time(),
                armed=unarmed is None,
                reason=unarmed,
            )
            path, new = base / record.id, base / f"{_NEW}{record.id}"
            if path.exists():
                raise Conflict(f"{base_uri}/{record.id}: is staged already in {path}")
            (new / _TREE).mkdir(parents=True, mode=0o700)
            _write(new, record)
            staged = StagedDataset(path, record, self._clock_s)
            with self._lock:  # whoever lists it from now on finds this one, and it owned
                new.rename(path)
                staged._owner.acquire()
                self._known[path] = staged
            sync_directory(base)
        return staged

    def rename(self, staged: StagedDataset, name: str) -> None:
        """Rename an unfrozen one; raises UsageError, NameTaken, Frozen and Conflict."""
        require_name(name)
        staged.require_writable()
        base_uri = staged.record.base_uri
        with locked(self._base(base_uri) / _NAMES):
            self._require_free(base_uri, name)
            staged.rename(name)

    def _require_free(self, base_uri: str, name: str) -> None:
        for staged in self.datasets(base_uri):
            if staged.record.name == name:
                raise NameTaken(
                    f"{base_uri}/{name}: a dataset of that name is staged in {staged.directory}"
                )

    def _base(self, base_uri: str) -> Path:
        return self._root / urllib.parse.quote(base_uri, safe="")

    def _complain(self, path: Path, error: Exception) -> None:
        logger.warning("%s: is staged, but cannot be used: %s", path, error)


def servers(directory: Path) -> list[str]:
    """Return the servers for which something is, or was, staged below `directory`."""
    return [
        urllib.parse.unquote(path.name)
        for path in _subdirectories(directory)
        if not path.name.startswith(".")  # the edits of frozen datasets
    ]


def require_name(name: str) -> None:
    """Raise UsageError unless a new dataset may have that name: dtool's rule, no leading dot."""
    if not name_is_valid(name) or name.startswith("."):
        raise UsageError(
            f"{name!r} cannot be a dataset's name: at most 80 of a-z A-Z 0-9 - _ . and no"
            " dot at the beginning"
        )


def _read(directory: Path) -> Record:
    return Record.from_json((directory / _STATE).read_text("utf-8"))


def _write(directory: Path, record: Record) -> None:
    """Replace the state; on disk when it returns."""
    write_durably(directory / _STATE, record.to_json().encode("utf-8"))


def _subdirectories(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _delete_tree(path: Path) -> None:
    """Delete a directory, also where a user's modes forbid it; what cannot go stays, logged."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        logger.warning("%s: cannot be deleted: %s", path, error)
