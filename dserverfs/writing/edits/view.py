"""All local files of a mount's edits: under which names and inode numbers they are shown.

Used by the edits, which read and write the files, and by what sends them. Knows no
server. A file has a number of its own unless it is a target that was opened where it is;
numbers move with their files, as inodes do, and none is given twice. Every method wants
the lock held, unless it says otherwise.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.errors import StaleInode
from dserverfs.base.model import Dataset
from dserverfs.base.versions import Version, VersionsRead
from dserverfs.writing.edits.editable import Target, target_of
from dserverfs.writing.edits.journal import EditSession, Note
from dserverfs.writing.edits.local_file import (
    TARGET_MODE,
    Change,
    EditHandle,
    LocalFile,
    MovedAway,
)

logger = logging.getLogger(__name__)


class Shown(NamedTuple):
    """The view of a path, in place of the server's file."""

    file: LocalFile | None = None  # None: the server's, with this number and time
    number: int | None = None  # None: the one the path has anyway
    mtime_ns: int | None = None
    moved: LocalFile | None = None  # nothing is there: it was moved away and is this now


class GivenNumbers(NamedTuple):
    """The numbers of files, kept for another daemon that takes the place of this one."""

    note: Callable[[str, int, str | None], None]  # dataset URI, number, path; None: no more
    before: Mapping[str, Mapping[int, str | None]]  # by dataset URI, the path of each number

    def of(self, uri: str) -> Mapping[int, str | None]:
        return self.before.get(uri, {})


def _not_kept(uri: str, number: int, path: str | None) -> None:
    pass


NOT_KEPT = GivenNumbers(_not_kept, {})


class EditedFiles:
    """The local files of one dataset.

    Invariant: a number leads to the file it was given to while that has a name or is open,
    then to what its path shows.
    """

    def __init__(self, dataset: Dataset, numbers: GivenNumbers = NOT_KEPT) -> None:
        self.dataset = dataset
        self._given = numbers
        # Held while something is sent, so that of two changes the later one stays.
        self.sending = threading.RLock()
        self.versions = VersionsRead()
        self._files: dict[str, LocalFile] = {}
        self._nameless: dict[int, LocalFile] = {}  # that are open, by number
        self._hidden: dict[str, LocalFile] = {}  # targets, and what they are now
        self._numbers: dict[str, int] = {}  # of paths that have another than their own
        self._paths: dict[int, str] = {}  # the reverse, also of numbers before
        self._mtimes_ns: dict[str, int] = {}  # of targets that were changed here
        self._times_sent: dict[str, int] = {}  # of each target
        self._count = itertools.count(max(numbers.of(dataset.uri), default=-1) + 1)
        for number, path in numbers.of(dataset.uri).items():
            # What was temporary is gone with the daemon that had it.
            if path is not None and target_of(path) is not None:
                self._numbers[path], self._paths[number] = number, path

    def shown(self, path: str) -> Shown:
        """Return the view of a path; all None for one that was never touched."""
        file = self._files.get(path)
        moved = None if file else self._hidden.get(path)
        return Shown(file, self._numbers.get(path), self._mtimes_ns.get(path), moved)

    def names(self, directory: str) -> list[str]:
        """Return the names of the local files right in a directory."""
        places = [path.rpartition("/") for path in self._files]
        return [name for parent, _, name in places if parent == directory]

    def at(self, path: str) -> LocalFile | None:
        return self._files.get(path)

    def with_number(self, number: int) -> LocalFile | None:
        """Return the local file of that number, also if it has no name any more."""
        path = self._paths.get(number)
        if path is None or self._numbers.get(path) != number:
            return self._nameless.get(number)
        return self._files.get(path)

    def path_of(self, number: int) -> str:
        """Return the path of a number of ours; raises NotFound."""
        path = self._paths.get(number)
        if path is None:
            raise StaleInode(f"{self.dataset.uri}: no inode {number}")
        return path

    def all(self) -> list[LocalFile]:
        """Return every file that has a name."""
        return list(self._files.values())

    def set_mtime(self, path: str, mtime_ns: int) -> None:
        """Have that time shown at a path."""
        file = self._files.get(path)
        if file is not None:
            file.set_mtime(mtime_ns)
        else:
            self._mtimes_ns[path] = mtime_ns

    def edit(self, file: LocalFile, path: str) -> None:
        """Show a file in place of the server's, with the number that the path has already."""
        file.rename(path)
        self._files[path] = file
        self._hidden.pop(path, None)
        if file.target is not None:
            self._show_again(file)  # it is another target's now

    def place(self, file: LocalFile, path: str) -> None:
        """Give a file another path, with its number; discard what was there."""
        replaced = self._files.get(path)
        if replaced is not None and replaced is not file:
            self.discard(replaced)
        number = None
        if file.path is not None:
            del self._files[file.path]
            number = self._numbers.pop(file.path, None)
        if number is None:
            number = next(self._count)  # a target's own stays with the path
        self._numbers[path], self._paths[number] = number, path
        self._given.note(self.dataset.uri, number, path)
        self.edit(file, path)

    def move_away(self, file: LocalFile, source: Target, path: str) -> None:
        """Give a target's file another path; the target is hidden until there is a new one."""
        self.place(file, path)
        file.move_away(source, self._times_sent.get(source.path, 0))
        self._hidden[source.path] = file

    def moves_back(self, file: LocalFile, target: Target) -> bool:
        """Return whether a file was moved away from a target, and neither has changed since."""
        return file.moved == MovedAway(target, self._times_sent.get(target.path, 0), file.changes)

    def was_sent(self, file: LocalFile, change: Change) -> None:
        """Note that the server has a file's content; settle the file if that is all."""
        self.server_has(change)
        if file.target == change.target:  # not moved away, or removed, since
            file.was_sent(change)
            self._mtimes_ns[change.target.path] = file.status().on_disk.st_mtime_ns
            self.settle(file)

    def server_has(self, change: Change) -> None:
        """Note a change of a target on the server; files that were the target are copies now."""
        path, version = change.target.path, change.target.version_of(change.content)
        if version is not None:
            self.versions.was_read(path, change.writer, version)
            if path in self._files:
                self._files[path].follow(change.read, version)
        self._times_sent[path] = self._times_sent.get(path, 0) + 1
        for file in self._files.values():
            if file.moved is not None and file.moved.target == change.target:
                file.supersede()

    def check(self) -> None:
        """Raise AssertionError unless the invariants hold; for tests."""
        for path, file in self._files.items():
            assert file.path == path, f"{path} has the file of {file.path}"
            assert not file.is_gone
            assert 0 <= file.writers <= file.handles or not file.handles
        for path, number in self._numbers.items():
            assert self._paths.get(number) == path, f"{path} has the number of another path"
        for moved in self._hidden.values():
            assert moved.path is not None, "a target is hidden for a file that has no name"

    def settle(self, file: LocalFile) -> None:
        """Show the server's content again if it is the file's."""
        if file.path is not None and not file.writers and not file.is_unsent:
            del self._files[file.path]
            file.rename(None)
            file.delete_if_gone()

    def discard(self, file: LocalFile) -> None:
        """Take a file's name away; a target, also one that it was before, is the server's again."""
        assert file.path is not None
        del self._files[file.path]
        number = self._numbers.get(file.path)
        if number is not None and (file.handles or file.target is None):
            del self._numbers[file.path], self._paths[number]
            self._nameless[number] = file
            self._given.note(self.dataset.uri, number, None)
        self._show_again(file)
        file.rename(None)
        file.withdraw()
        self.forget_if_gone(file)

    def _show_again(self, file: LocalFile) -> None:
        """Hide no target because of a file."""
        self._hidden = {path: moved for path, moved in self._hidden.items() if moved is not file}

    def forget_if_gone(self, file: LocalFile) -> None:
        """Forget a file that has neither a name nor a handle."""
        if file.is_gone:
            self._nameless = {
                number: other for number, other in self._nameless.items() if other is not file
            }
            file.delete_if_gone()


class LocalEdits:
    """The local files of one mount."""

    def __init__(self, root: Path) -> None:
        """`root` is where all mounts of a server keep theirs."""
        self.lock = threading.RLock()  # held for moments, but for what waits for the disk
        self._closed = threading.Condition(self.lock)
        self._session = EditSession(root)
        self._edited: dict[str, EditedFiles] = {}  # by dataset URI
        self._numbers = NOT_KEPT

    def open(
        self, wanted: Callable[[Dataset], bool], numbers: GivenNumbers = NOT_KEPT
    ) -> list[LocalFile]:
        """Begin; return the unsent edits that earlier mounts left of the `wanted` datasets."""
        self._numbers = numbers
        for uri, paths in numbers.before.items():
            for number, path in paths.items():
                numbers.note(uri, number, path)
        self._session.open()
        taken = self._session.take_over(
            lambda note: target_of(note.path) is not None and wanted(note.dataset)
        )
        return [file for local, note in taken if (file := self._resume(local, note)) is not None]

    def close(self) -> None:
        """Delete temporary files; edits that are not sent stay."""
        self._session.close()

    def sync(self) -> None:
        """Return when discarded files are gone from the disk, too; waits for it."""
        self._session.sync()

    def of(self, dataset: Dataset) -> EditedFiles:
        edited = self._edited.get(dataset.uri)
        if edited is None:
            edited = self._edited[dataset.uri] = EditedFiles(dataset, self._numbers)
        return edited

    def known(self, dataset: Dataset) -> EditedFiles | None:
        """Return the files of a dataset, if any was ever edited."""
        edited = self._edited.get(dataset.uri)
        if edited is None and dataset.uri in self._numbers.before:
            return self.of(dataset)
        return edited

    def all(self) -> list[LocalFile]:
        return [file for edited in self._edited.values() for file in edited.all()]

    def unsent(self) -> list[LocalFile]:
        return [file for file in self.all() if file.is_unsent]

    def new_file(
        self, dataset: Dataset, content: bytes, mode: int = TARGET_MODE, read: Version | None = None
    ) -> LocalFile:
        """Make a file without a name yet; raises OSError if there is no room.

        `read` is the version of the server's that its writer begins with.
        """
        note = Note(dataset, "", is_complete=False, changed_at=time.time(), read=read)
        local = self._session.new_file(content)
        return LocalFile(self._session, local, note, size_in_bytes=len(content), mode=mode)

    def close_file(self, handle: EditHandle) -> None:
        """Close a handle, and forget a file that has no name any more."""
        handle.file.close(handle)
        self.of(handle.file.dataset).forget_if_gone(handle.file)
        self._closed.notify_all()

    def wait_until_closed(self, timeout_s: float) -> None:
        """Return when no change is being written, or the time is over. Without the lock."""
        with self._closed:
            self._closed.wait_for(
                lambda: not any(file.writers for file in self.unsent()), timeout_s
            )

    def _resume(self, local: Path, note: Note) -> LocalFile | None:
        """Return an edit to be shown and sent; None if a complete one comes first."""
        edited = self.of(note.dataset)
        before = edited.at(note.path)
        if before is not None and before.note.is_complete and not note.is_complete:
            logger.warning(
                "%s: %s was being written when its mount ended: that is kept in %s until the"
                " change before it is sent, and shown by the next mount",
                note.dataset.uri,
                note.path,
                local,
            )
            return None
        if before is not None:
            edited.discard(before)  # of the same mount: this is what was written last
        size_in_bytes = local.stat().st_size
        file = LocalFile(self._session, local, note, size_in_bytes=size_in_bytes, mode=TARGET_MODE)
        file.resume()
        edited.edit(file, note.path)
        return file
