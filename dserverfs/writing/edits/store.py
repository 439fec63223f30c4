"""All local files of a mount's edits, and the lock that they are changed under.

Used by the edits and by what sends them. Knows no server. `lock` is held for moments, but
for what waits for the disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from dserverfs.base.model import Dataset
from dserverfs.remote.versions import Version
from dserverfs.writing.edits.editable import target_of
from dserverfs.writing.edits.journal import EditSession, Note
from dserverfs.writing.edits.local_file import TARGET_MODE, Budget, EditHandle, LocalFile
from dserverfs.writing.edits.view import EditedFiles


class LocalEdits:
    """The local files of one mount."""

    def __init__(self, root: Path) -> None:
        """`root` is where all mounts of a server keep theirs."""
        self.lock = threading.RLock()
        self._closed = threading.Condition(self.lock)
        self._session = EditSession(root)
        self._budget = Budget()
        self._edited: dict[str, EditedFiles] = {}  # by dataset URI

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

    def sync(self) -> None:
        """Return when what is discarded is gone from the disk, too; waits for it."""
        self._session.sync()

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

    def new_file(
        self, dataset: Dataset, content: bytes, mode: int = TARGET_MODE, read: Version | None = None
    ) -> LocalFile:
        """Make a file without a name yet; raises OSError if there is no room.

        `read` is the version of the server's that its writer begins with.
        """
        self._budget.require(len(content))
        note = Note(dataset, "", is_complete=False, changed_at=time.time(), read=read)
        file = LocalFile(self._session.new_file(), note, self._session, self._budget)
        file.set_mode(mode)
        file.fill(content)
        return file

    def close_file(self, handle: EditHandle) -> None:
        """Close a handle, and forget a file that has no name any more."""
        handle.file.close(handle)
        self.of(handle.file.dataset).forget_if_unused(handle.file)
        self._closed.notify_all()

    def wait_until_closed(self, timeout_s: float) -> None:
        """Return when no change is being written, or the time is over. Without the lock."""
        with self._closed:
            self._closed.wait_for(
                lambda: not any(file.writers for file in self.unsent()), timeout_s
            )

    def _resume(self, local: Path, note: Note) -> LocalFile:
        edited = self.of(note.dataset)
        before = edited.at(note.path)
        if before is not None:
            edited.discard(before)  # of an earlier session: this is what was written last
        file = LocalFile(local, note, self._session, self._budget)
        file.resume()
        edited.edit(file, note.path)
        return file
