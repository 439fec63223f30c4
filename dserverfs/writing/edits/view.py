"""What of a frozen dataset's files is on the local disk just now, under which names and numbers.

Used by the edits of frozen datasets, which read and write the files, and by the
dataset's tree, which shows them before what the server has. A file has a number of
its own unless it is a target that was opened where it is; numbers move with their
files, as inodes do, and none is given twice. Names only: no I/O but stat; every
method wants the edits' lock held.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.errors import NotFound
from dserverfs.base.model import Dataset
from dserverfs.remote.versions import Reader, Version, VersionsRead
from dserverfs.writing.edits.editable import Target


class LocalFile:
    """A file on the local disk: a target that is being changed, or a temporary one."""

    def __init__(self, dataset: Dataset, local: Path, mode: int) -> None:
        self.dataset = dataset
        self.local = local
        self.mode = mode
        self.size_in_bytes = 0
        self.path: str | None = None  # None: it has no name any more
        self.number: int | None = None  # None: the one its path has anyway
        self.handles = 0
        self.writers = 0
        # Invariant: what the server does not have yet is in `changes` and not in `sent`.
        self.target: Target | None = None
        self.changes = 0
        self.sent = 0
        self.changed_at = time.time()
        self.is_complete = False  # its writers are done, so that it may be sent
        self.is_spoilt = False  # a write failed: what is there is a part
        self.is_noted = False  # a note beside it says that it is not sent
        self.reason: str | None = None  # why it could not be sent
        self.retry_at_s: float | None = None  # by the monotonic clock
        self.pause_s = 0.0
        self.moved: MovedAway | None = None
        self.read: Version | None = None  # what of the server's its writer began with
        self.writer: Reader = None

    @property
    def is_unsent(self) -> bool:
        return self.target is not None and self.changes != self.sent

    def status(self) -> os.stat_result:
        return self.local.stat()


class MovedAway(NamedTuple):
    """What a file was before it got a temporary name."""

    target: Target
    version: int  # what the server had then
    changes: int


class Shown(NamedTuple):
    """What there is to show at a path in place of what the server has."""

    file: LocalFile | None = None  # None: what the server has, with this number and time
    number: int | None = None  # None: the one the path has anyway
    mtime_ns: int | None = None
    moved: LocalFile | None = None  # nothing is there: it was moved away and is this now


class EditedFiles:
    """The local files of one frozen dataset."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        # Held while something is sent, so that of two changes the later one stays.
        self.sending = threading.RLock()
        self._files: dict[str, LocalFile] = {}
        self._by_number: dict[int, LocalFile] = {}  # also of those without a name
        self._hidden: dict[str, LocalFile] = {}  # targets, and what they are now
        self._numbers: dict[str, int] = {}  # of targets that have not their own any more
        self._paths: dict[int, str] = {}  # the reverse
        self._mtimes_ns: dict[str, int] = {}  # of targets that were changed here
        self._versions: dict[str, int] = {}  # how often each target was sent
        self._count = itertools.count()
        self.versions = VersionsRead()

    def shown(self, path: str) -> Shown:
        """Return what there is to show at a path; all None for what was never touched."""
        file = self._files.get(path)
        number = file.number if file else self._numbers.get(path)
        moved = None if file else self._hidden.get(path)
        return Shown(file, number, self._mtimes_ns.get(path), moved)

    def names(self, directory: str) -> list[str]:
        """Return the names of the local files right in a directory."""
        prefix = f"{directory}/" if directory else ""
        return [
            path.removeprefix(prefix)
            for path in self._files
            if path.startswith(prefix) and "/" not in path.removeprefix(prefix)
        ]

    def at(self, path: str) -> LocalFile | None:
        return self._files.get(path)

    def with_number(self, number: int) -> LocalFile | None:
        """Return the local file of that number, whether it has a name or not."""
        return self._by_number.get(number)

    def path_of(self, number: int) -> str:
        """Return the path of a number of ours; raises NotFound."""
        file = self._by_number.get(number)
        path = file.path if file else self._paths.get(number)
        if path is None:
            raise NotFound(f"{self.dataset.uri}: no inode {number}")
        return path

    def all(self) -> list[LocalFile]:
        """Return every file that has a name."""
        return list(self._files.values())

    def version(self, path: str) -> int:
        """Return how often a target was changed on the server by us."""
        return self._versions.get(path, 0)

    def changed_on_server(self, path: str, mtime_ns: int) -> None:
        """Note that the server has what was written to a target here, at `mtime_ns`."""
        self._versions[path] = self.version(path) + 1
        self._mtimes_ns[path] = mtime_ns

    def set_mtime(self, path: str, mtime_ns: int) -> None:
        self._mtimes_ns[path] = mtime_ns

    def add(self, file: LocalFile, path: str, target: Target | None, *, number_anew: bool) -> None:
        """Give a file a path; with the number that the path has already unless `number_anew`."""
        if number_anew:
            file.number = next(self._count)
        else:
            file.number = self._numbers.get(path)
        self.place(file, path, target)

    def place(self, file: LocalFile, path: str, target: Target | None) -> LocalFile | None:
        """Move a file to a path; return what was there and has no name any more."""
        replaced = self._files.get(path)
        if replaced is file:
            replaced = None
        if replaced is not None:
            self.remove_name(replaced)
        if file.path is not None:
            self._forget_place(file)
        if file.number is None and file.path not in (None, path):
            file.number = next(self._count)  # its own stays with the path
        file.path, file.target = path, target
        self._files[path] = file
        self._hidden.pop(path, None)
        if file.number is not None:
            self._by_number[file.number] = file
            if target is not None:
                self._renumber(path, file.number)
        return replaced

    def hide(self, path: str, moved: LocalFile) -> None:
        """Show nothing at a target's path: it is `moved` now."""
        self._hidden[path] = moved

    def settle(self, file: LocalFile) -> None:
        """Show the server's content at a target's path again; it is what was written."""
        if file.path is not None:
            self._forget_place(file)
        file.path = file.target = None
        self.forget(file)

    def remove_name(self, file: LocalFile) -> None:
        """Take a file's name away; a target that it was before is shown again."""
        if file.path is not None:
            self._forget_place(file)
        file.path = file.target = None
        for path, moved in list(self._hidden.items()):
            if moved is file:
                del self._hidden[path]
        if not file.handles:
            self.forget(file)

    def forget(self, file: LocalFile) -> None:
        """Forget the number of a file that has no name and is not open."""
        if file.number is not None and self._by_number.get(file.number) is file:
            del self._by_number[file.number]

    def _forget_place(self, file: LocalFile) -> None:
        assert file.path is not None
        self._files.pop(file.path, None)

    def _renumber(self, path: str, number: int) -> None:
        before = self._numbers.get(path)
        if before is not None:
            self._paths.pop(before, None)
        self._numbers[path] = number
        self._paths[number] = path
