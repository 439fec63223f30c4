"""One file on the local disk in place of one of a frozen dataset: its bytes, handles and state.

Used by the edits, which name it, and by what sends it. Knows no server. Every method wants
the edits' lock held, unless it says otherwise.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base.hashes import MD5, file_digest
from dserverfs.base.model import Dataset
from dserverfs.base.versions import Reader, Version
from dserverfs.writing.edits.editable import Target, target_of
from dserverfs.writing.edits.journal import OVERTAKEN, EditSession, Note

logger = logging.getLogger(__name__)

TARGET_MODE = 0o644
UNFINISHED = "its mount ended while it was being written; write it again, or discard it"
INCOMPLETE = "a part of it could not be written; write it again, or discard it"


class EditHandle(NamedTuple):
    """A file handle."""

    fd: int
    file: LocalFile
    is_writable: bool
    appends: bool


class LocalStatus(NamedTuple):
    """What stat shows of a local file."""

    mode: int
    size_in_bytes: int
    number_of_links: int
    on_disk: os.stat_result  # blocks and times


class Change(NamedTuple):
    """The content of a file at a moment, to become a target's on the server."""

    target: Target
    content: bytes
    changes: int  # of the file, at that moment
    read: Version | None  # the server's, when its writer began
    writer: Reader


class MovedAway(NamedTuple):
    """The target that a file was before it got a temporary name."""

    target: Target
    version: int  # how often the target was sent by then
    changes: int


class LocalFile:
    """A target that is being changed, or a temporary file.

    Its fields are for reading; its methods change them. Invariants:

    - the server lacks the changes after those that were sent, up to `changes`;
    - a target has its note on the disk from before its first change until the server has
      it or it is discarded;
    - its bytes are on the disk for as long as it has a name or a handle.
    """

    def __init__(
        self, session: EditSession, local: Path, note: Note, *, size_in_bytes: int, mode: int
    ) -> None:
        self.local = local
        self.note = note  # as it is on the disk, or would be
        self.mode = mode
        self.size_in_bytes = size_in_bytes
        self.path: str | None = None  # None: it has no name any more
        self.target: Target | None = None  # that of its path
        self.moved: MovedAway | None = None
        self.handles = 0
        self.writers = 0  # handles for writing
        self.writer: Reader = None
        self.changes = 0
        self.is_spoilt = False  # a write failed: a part is missing
        self.covers_unsent = False  # what is being written was something before, and not sent
        self._sent = 0
        self._session = session

    @property
    def dataset(self) -> Dataset:
        return self.note.dataset

    @property
    def is_unsent(self) -> bool:
        return self.target is not None and self.changes != self._sent

    @property
    def is_half(self) -> bool:
        """Whether a part is missing of what it became since it was complete, or the server's."""
        return self.is_spoilt and self.is_unsent and not self.note.is_complete

    @property
    def is_gone(self) -> bool:
        """Whether it has neither a name nor a handle, and so its bytes are deleted."""
        return self.path is None and not self.handles

    def status(self) -> LocalStatus:
        mode = self.mode if self.target is None else TARGET_MODE
        links = 0 if self.path is None else 1
        return LocalStatus(mode, self.size_in_bytes, links, self.local.stat())

    def resume(self) -> None:
        """Take its content for a change that an earlier mount has not sent."""
        self.changes = 1
        self.covers_unsent = True
        if not self.note.is_complete:
            reason = OVERTAKEN if self.note.reason == OVERTAKEN else UNFINISHED
            self._tell(reason=reason)
            logger.warning("%s: %s: %s", self.dataset.uri, self.note.path, reason)

    def rename(self, path: str | None) -> None:
        """Give it a path, or none; the view's, which knows the others."""
        self.path = path
        self.target = None if path is None else target_of(path)
        if self.target is not None:
            self.note, self.moved = replace(self.note, path=self.target.path), None

    def move_away(self, source: Target, version: int) -> None:
        """Remember the target that it was."""
        self.moved = MovedAway(source, version, self.changes)

    def supersede(self) -> None:
        """Take it for a mere copy from now on: the target that it was has another content."""
        self.moved = None
        self.withdraw()

    def withdraw(self) -> None:
        """Have it not sent after a crash."""
        self._session.unnote(self.local)

    def delete_if_gone(self) -> None:
        if self.is_gone:
            self._session.delete(self.local, self.size_in_bytes)
            self.size_in_bytes = 0

    def open(self, flags: int, process: Reader = None) -> EditHandle:
        """Open it as open(2) does, but for O_CREAT and O_EXCL; raises OSError."""
        is_writable = bool(flags & os.O_ACCMODE)
        access = os.O_RDWR if is_writable else os.O_RDONLY
        fd = os.open(self.local, access | os.O_CLOEXEC)
        try:
            if flags & os.O_TRUNC:
                self.truncate(0)
        except BaseException:
            os.close(fd)
            raise
        if is_writable:
            self.writer = process
        self.handles += 1
        self.writers += is_writable
        return EditHandle(fd, self, is_writable, bool(flags & os.O_APPEND))

    def close(self, handle: EditHandle) -> None:
        os.close(handle.fd)
        self.handles -= 1
        self.writers -= handle.is_writable
        if self.target is not None and not self.writers and not self.is_half:
            self.is_spoilt = False  # the write that failed has changed nothing

    def close_all(self) -> None:
        """Complete it without waiting for its writers, who will not say that they are done."""
        self.writers = 0
        self.complete()

    def begin_write(self, end: int) -> None:
        """Note a change before it is made; raises OSError if there is no room up to `end`."""
        with self._as_before_on_failure():
            self._resize(max(self.size_in_bytes, end))
            self._begin_change()

    def truncate(self, size_in_bytes: int) -> None:
        """Cut the content off; after an OSError it is as it was, and so is the note of it."""
        with self._as_before_on_failure():
            self._resize(size_in_bytes)
            self._begin_change()
            os.truncate(self.local, size_in_bytes)
        if not size_in_bytes:
            self.is_spoilt = False

    @contextlib.contextmanager
    def _as_before_on_failure(self) -> Iterator[None]:
        """Take back what is noted of a change that is not made, for the disk did not take it.

        Else what its program was told had failed would be sent.
        """
        changes, note, size_in_bytes = self.changes, self.note, self.size_in_bytes
        was_noted = self._session.has_note(self.local)
        try:
            yield
        except OSError:
            self.changes, self.note = changes, note
            self._resize(size_in_bytes)
            with contextlib.suppress(OSError):  # a note that says less is sent later, or not
                if was_noted:
                    self._session.note(self.local, note)
                else:
                    self._session.unnote(self.local)
            raise

    def end_write(self) -> None:
        """Note that a write is done: a change once more, if it was taken for complete meanwhile."""
        if self.target is not None and (self.note.is_complete or not self.is_unsent):
            self._begin_change()

    def _begin_change(self) -> None:
        was_complete = self.note.is_complete
        self.covers_unsent |= was_complete and self.is_unsent
        self.changes += 1
        self.note = replace(self.note, is_complete=False, md5=None, changed_at=time.time())
        if self.target is not None and (was_complete or not self._session.has_note(self.local)):
            self._tell()

    def spoil(self) -> None:
        """Remember that a write failed; needs no lock."""
        self.is_spoilt = True

    def set_mode(self, mode: int) -> None:
        self.mode = mode

    def set_mtime(self, mtime_ns: int) -> None:
        os.utime(self.local, ns=(mtime_ns, mtime_ns))

    def complete(self) -> None:
        """Note that its writers are done."""
        self.covers_unsent = False
        try:
            self._tell(is_complete=True, md5=file_digest(self.local, MD5))
        except OSError as error:  # the disk is full; there is a note of it already
            logger.warning("%s: not noted that it is complete: %s", self.local, error)

    def change_of(self, target: Target, read: Version | None, writer: Reader) -> Change:
        """Return its content as one for a target."""
        return Change(target, self.local.read_bytes(), self.changes, read, writer)

    def secure(self) -> None:
        """Have it on the disk with its note, in case of a power cut.

        Waits for the disk: to be called without the lock.
        """
        note = self.note
        try:
            self._session.secure(
                self.local, note, lambda: replace(self.note, read=note.read) == note
            )
        except FileNotFoundError:
            pass  # discarded, or replaced
        except OSError as error:
            logger.warning("%s: may not outlast a power cut: %s", self.local, error)

    def was_sent(self, change: Change) -> None:
        """Note that the server has it as it was then."""
        self._sent, self.writer = change.changes, change.writer
        read = change.target.version_of(change.content)
        self.note = replace(self.note, read=read, reason=None)
        if self.changes == change.changes:
            self.withdraw()

    def follow(self, read: Version | None, version: Version) -> None:
        """Begin with a version that a change of this mount's has made of the one that was read."""
        if self.note.read == read:
            self.note = replace(self.note, read=version)

    def was_refused(self, reason: str) -> None:
        """Note why it could not be sent, or is not to be."""
        self.note = replace(self.note, reason=reason)
        if self.target is None:
            return
        try:
            self._tell()
        except OSError as error:  # there is a note of it already, without the reason
            logger.warning("%s: not noted why it is not sent: %s", self.local, error)

    def _tell(self, **changes: Any) -> None:
        """Have a changed note on the disk, or at least in memory; raises OSError."""
        self.note = replace(self.note, **changes)
        self._session.note(self.local, self.note)

    def _resize(self, size_in_bytes: int) -> None:
        """Count a new size before it has it; raises OSError if there is no room."""
        self._session.reserve(size_in_bytes - self.size_in_bytes)
        self.size_in_bytes = size_in_bytes
