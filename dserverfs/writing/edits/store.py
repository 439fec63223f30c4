"""The local files of edits of frozen datasets: made, changed, noted and deleted.

Used by the edits and by what sends them. Knows no server. One lock, `condition`, for
all of it: held for moments by every method's caller, but of what waits for the disk.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.model import Dataset
from dserverfs.writing.edits.editable import Target, target_of
from dserverfs.writing.edits.journal import EditSession, Note
from dserverfs.writing.edits.view import EditedFiles, LocalFile

logger = logging.getLogger(__name__)

LIMIT_BYTES = 16 * 1024**2
UNFINISHED = "its mount ended while it was being written; write it again, or discard it"
TARGET_MODE = 0o644


class EditHandle(NamedTuple):
    """A file handle."""

    fd: int
    file: LocalFile
    is_writable: bool
    appends: bool


class LocalEdits:
    """The local files of one mount."""

    def __init__(self, root: Path) -> None:
        """`root` is where all mounts of a server keep theirs."""
        self.condition = threading.Condition(threading.RLock())
        self._session = EditSession(root)
        self._edited: dict[str, EditedFiles] = {}  # by dataset URI
        self._size_in_bytes = 0  # of all

    def open(self, wanted: Callable[[Dataset], bool]) -> list[LocalFile]:
        """Begin; return what earlier mounts have not sent of the datasets that are `wanted`."""
        self._session.open()
        taken = self._session.take_over(
            lambda note: target_of(note.path) is not None and wanted(note.dataset)
        )
        return [self._resume(local, note) for local, note in taken]

    def close(self) -> None:
        """Delete what is temporary; what is not sent stays."""
        self._session.close()

    def of(self, dataset: Dataset) -> EditedFiles:
        edited = self._edited.get(dataset.uri)
        if edited is None:
            edited = self._edited[dataset.uri] = EditedFiles(dataset)
        return edited

    def known(self, dataset: Dataset) -> EditedFiles | None:
        """Return those of a dataset in which anything was ever edited."""
        return self._edited.get(dataset.uri)

    def unsent(self) -> list[LocalFile]:
        return [file for edited in self._edited.values() for file in edited.all() if file.is_unsent]

    # Content

    def new_file(self, dataset: Dataset, content: bytes, mode: int) -> LocalFile:
        """Make a file without a name yet; raises OSError if there is no room."""
        self._require_room(len(content))
        file = LocalFile(dataset, self._session.new_file(), mode)
        file.local.write_bytes(content)
        file.size_in_bytes = len(content)
        self._size_in_bytes += len(content)
        return file

    def open_file(self, file: LocalFile, flags: int, *, is_writable: bool) -> EditHandle:
        """Open a file; O_TRUNC and O_APPEND of `flags` count."""
        access = os.O_RDWR if is_writable else os.O_RDONLY
        fd = os.open(file.local, access | os.O_CLOEXEC)
        file.handles += 1
        file.writers += is_writable
        if flags & os.O_TRUNC:
            self.truncate(file, 0)
        return EditHandle(fd, file, is_writable, bool(flags & os.O_APPEND))

    def truncate(self, file: LocalFile, size_in_bytes: int) -> None:
        self.resize(file, size_in_bytes)
        self.changing(file)
        os.truncate(file.local, size_in_bytes)
        if not size_in_bytes:
            file.is_spoilt = False

    def resize(self, file: LocalFile, size_in_bytes: int) -> None:
        """Count a file's new size before it has it; raises OSError if there is no room."""
        self._require_room(size_in_bytes - file.size_in_bytes)
        self._size_in_bytes += size_in_bytes - file.size_in_bytes
        file.size_in_bytes = size_in_bytes

    def _require_room(self, size_in_bytes: int) -> None:
        if size_in_bytes > 0 and self._size_in_bytes + size_in_bytes > LIMIT_BYTES:
            raise OSError(
                errno.ENOSPC, f"edits of frozen datasets take at most {LIMIT_BYTES} bytes"
            )

    def changing(self, file: LocalFile) -> None:
        """Note a change before it is made."""
        file.changes += 1
        file.changed_at = time.time()
        was_complete, file.is_complete = file.is_complete, False
        if file.target is not None and (was_complete or not file.is_noted):
            self.note(file)

    def complete(self, file: LocalFile) -> None:
        """Note that whoever wrote it is done; see `secure`."""
        file.is_complete = True
        try:
            self.note(file)
        except OSError as error:  # the disk is full; there is a note of it already
            logger.warning("%s: not noted that it is complete: %s", file.local, error)

    def note(self, file: LocalFile) -> None:
        """Say on the disk that it is not sent, and why."""
        self._session.note(file.local, self._note_of(file))
        file.is_noted = True

    def secure(self, file: LocalFile) -> None:
        """Have what is not sent on the disk, in case of a power cut; waits for the disk.

        Takes the lock for moments, so the caller must not hold it.
        """
        with self.condition:
            if not file.is_noted or file.target is None:
                return
            note, changes = self._note_of(file), file.changes

        @contextlib.contextmanager
        def still_so() -> Iterator[bool]:
            with self.condition:
                yield (file.is_noted and file.changes == changes and note == self._note_of(file))

        try:
            self._session.secure(file.local, note, still_so)
        except FileNotFoundError:
            pass  # discarded, or replaced
        except OSError as error:
            logger.warning("%s: may not outlast a power cut: %s", file.local, error)

    def sync(self) -> None:
        """Return when what is discarded is gone from the disk, too; waits for it."""
        self._session.sync()

    def _note_of(self, file: LocalFile) -> Note:
        assert file.path is not None
        return Note(
            file.dataset, file.path, file.is_complete, file.changed_at, file.reason, file.read
        )

    def unnote(self, file: LocalFile) -> None:
        """Say on the disk that it is not to be sent."""
        if file.is_noted:
            self._session.unnote(file.local)
            file.is_noted = False

    def replace(
        self, edited: EditedFiles, file: LocalFile, path: str, target: Target | None
    ) -> None:
        """Give a file the name of another, which has none then."""
        replaced = edited.place(file, path, target)
        if replaced is not None:
            self.unnote(replaced)
            if not replaced.handles:
                self.delete(replaced)

    def discard(self, file: LocalFile) -> None:
        """Take a file's name away, and with it what it has of a target that is not sent."""
        self.of(file.dataset).remove_name(file)
        self.unnote(file)
        if not file.handles:
            self.delete(file)

    def settle(self, file: LocalFile) -> None:
        """Show the server's content again, which is what was written."""
        self.of(file.dataset).settle(file)
        if not file.handles:
            self.delete(file)

    def delete(self, file: LocalFile) -> None:
        self._size_in_bytes -= file.size_in_bytes
        file.size_in_bytes = 0
        file.local.unlink(missing_ok=True)

    def _resume(self, local: Path, note: Note) -> LocalFile:
        """Show what an earlier mount has not sent."""
        edited = self.of(note.dataset)
        file = LocalFile(note.dataset, local, TARGET_MODE)
        file.size_in_bytes = local.stat().st_size
        self._size_in_bytes += file.size_in_bytes
        file.changes, file.changed_at = 1, note.changed_at
        file.is_complete, file.reason = note.is_complete, note.reason
        file.read = note.read
        before = edited.at(note.path)
        if before is not None:
            self.discard(before)  # of an earlier session: this is what was written last
        edited.add(file, note.path, target_of(note.path), number_anew=False)
        file.is_noted = True
        if not note.is_complete:
            file.reason = UNFINISHED
            self.note(file)
            logger.warning("%s: %s: %s", note.dataset.uri, note.path, UNFINISHED)
        return file
