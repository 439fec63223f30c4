"""Changes of frozen datasets: a README, a tag, an annotation or the name is rewritten.

Used by the file system. Everything else that is frozen refuses with Frozen. The server is
asked and told in threads; local files are changed at once.
"""

from __future__ import annotations

import os
from typing import NoReturn

from dserverfs.base.errors import CannotHold, Frozen
from dserverfs.base.items import ItemContent
from dserverfs.base.model import Dataset, path_of_entry
from dserverfs.base.processes import Processes
from dserverfs.tree.attributes import Changes
from dserverfs.tree.mount_tree import InFrozen
from dserverfs.tree.names import utf8
from dserverfs.tree.open_files import OpenBytes, OpenEdit, OpenFile, opened
from dserverfs.tree.refusals import AcrossDatasets, OnlyTried
from dserverfs.tree.staged_dataset import is_for_writing
from dserverfs.tree.steps import Limit, Steps, blocking, loaded
from dserverfs.writing.edits.editable import Kind, target_of
from dserverfs.writing.edits.edits import DatasetEdits


class FrozenChanges:
    """The changes that one mount's edits take; without edits, none."""

    def __init__(self, edits: DatasetEdits | None, umask: int) -> None:
        """`umask` are the mode bits that the mount takes away."""
        self._edits = edits
        self._umask = umask
        self._processes = Processes()

    def open(self, place: InFrozen, flags: int, thread: int) -> Steps[ItemContent | OpenFile]:
        tree, number = place
        if is_for_writing(flags):
            dataset, path = tree.dataset, self._changeable(place)
            edits = yield from self._require(dataset, path)
            if _is_tag(path):
                return _open_tag()
            reader = self._reader_of(thread)
            handle = yield from loaded(lambda: edits.open_file(dataset, path, flags, reader))
            return OpenEdit(edits, handle)
        file = tree.local_file(number)
        if self._edits is not None and file is not None:
            if file.path is not None:
                self._edits.was_read(tree.dataset, file.path, b"", self._reader_of(thread))
            local = self._edits.open_local(file)
            if local is not None:  # else it was sent just now
                return OpenEdit(self._edits, local)
        if flags & os.O_APPEND:
            raise Frozen(f"{tree.dataset.uri}: is frozen")
        shown = opened((yield from loaded(lambda: tree.content(number))))
        shown_path = tree.path(number)
        if self._edits is not None and isinstance(shown, OpenBytes) and shown_path is not None:
            reader = self._reader_of(thread)
            self._edits.was_read(tree.dataset, shown_path, shown.content, reader)
        return shown

    def create(
        self, parent: InFrozen, name: bytes, mode: int, flags: int, thread: int
    ) -> Steps[OpenFile]:
        dataset, path = parent.tree.dataset, _entry_path(parent, name)
        edits = yield from self._require(dataset, path)
        if _is_tag(path):
            yield from blocking(lambda: edits.put_tag(dataset, path), Limit.EDIT)
            return _open_tag()
        reader = self._reader_of(thread)
        return OpenEdit(edits, edits.create(dataset, path, mode, flags, reader))

    def change(self, place: InFrozen, changes: Changes, handle: OpenFile | None) -> Steps[None]:
        """Change size, mode and mtime; an owner is none of a dataset's, and the atime of no use."""
        edit = handle if isinstance(handle, OpenEdit) else None
        if edit is not None and edit.handle.file.path is None:
            if changes.size_in_bytes is not None:  # its name is gone, and the rest of no use
                edit.truncate(changes.size_in_bytes)
            return
        dataset, path = place.tree.dataset, self._changeable(place)
        edits = yield from self._require(dataset, path)
        if changes.size_in_bytes is not None:
            yield from self._truncate(edits, dataset, path, edit, changes.size_in_bytes)
        if changes.mode is not None:
            yield from self._set_mode(edits, place, path, changes.mode)
        if changes.mtime_ns is not None:
            edits.set_mtime(dataset, path, changes.mtime_ns)

    def remove(self, parent: InFrozen, name: bytes) -> Steps[None]:
        dataset, path = parent.tree.dataset, _entry_path(parent, name)
        edits = yield from self._require(dataset, path)
        yield from blocking(lambda: edits.remove(dataset, path), Limit.EDIT)

    def rename(
        self,
        old_parent: InFrozen,
        old_name: bytes,
        new_parent: InFrozen,
        new_name: bytes,
        flags: int,
        thread: int,
    ) -> Steps[None]:
        dataset = old_parent.tree.dataset
        old, new = _entry_path(old_parent, old_name), _entry_path(new_parent, new_name)
        if new_parent.tree.dataset.uri != dataset.uri:
            raise AcrossDatasets(f"{old} cannot become {new} of another dataset")
        yield from self._require(dataset, old)
        edits = yield from self._require(dataset, new)
        reader = self._reader_of(thread)
        yield from blocking(lambda: edits.rename(dataset, old, new, flags, reader), Limit.EDIT)

    def refuse_link(self, parent: InFrozen, name: bytes) -> Steps[NoReturn]:
        """Raise OnlyTried, by which an editor knows that it can have no links here."""
        path = _entry_path(parent, name)
        yield from self._require(parent.tree.dataset, path)
        raise OnlyTried(f"{parent.tree.dataset.uri}: {path} cannot be a link")

    def _require(self, dataset: Dataset, path: str) -> Steps[DatasetEdits]:
        """Return the edits, which may change a path; raises as they do, and Frozen without."""
        edits = self._edits
        if edits is None:
            raise Frozen(f"{dataset.uri}: is frozen")
        yield from blocking(lambda: edits.require(dataset, path), Limit.EDIT)
        return edits

    def _reader_of(self, thread: int) -> tuple[int, int] | None:
        """Return the process that asks, which has perhaps read what it is about to change."""
        process = self._processes.of_thread(thread)
        return process.identity if process else None

    def _changeable(self, place: InFrozen) -> str:
        """Return the path of a file that may perhaps be changed; all others are frozen."""
        tree, number = place
        path = tree.path(number)
        if path is None or (target_of(path) is None and tree.local_file(number) is None):
            raise Frozen(f"{tree.dataset.uri}: {path or 'an item'} is frozen")
        return path

    def _truncate(
        self,
        edits: DatasetEdits,
        dataset: Dataset,
        path: str,
        edit: OpenEdit | None,
        size_in_bytes: int,
    ) -> Steps[None]:
        if _is_tag(path):
            if size_in_bytes:
                raise CannotHold("a tag has no content")
        elif edit is not None and edit.handle.is_writable:
            edit.truncate(size_in_bytes)
        else:
            flags = os.O_WRONLY | (0 if size_in_bytes else os.O_TRUNC)
            handle = yield from loaded(lambda: edits.open_file(dataset, path, flags))
            edit = OpenEdit(edits, handle)
            try:
                edit.truncate(size_in_bytes)
                yield from edit.sync(data_only=False)
            finally:
                edit.close()

    def _set_mode(self, edits: DatasetEdits, place: InFrozen, path: str, mode: int) -> Steps[None]:
        tree, number = place
        if tree.local_file(number) is not None:
            edits.set_mode(tree.dataset, path, mode)
            return
        shown = yield from loaded(lambda: tree.attributes(number))
        if mode & 0o777 != shown.permissions & ~self._umask:
            raise Frozen(f"{tree.dataset.uri}: the server keeps no mode of {path}")


def _entry_path(parent: InFrozen, name: bytes) -> str:
    """Return the path of an entry outside `data`; raises Frozen for all others."""
    directory = parent.tree.path(parent.number)
    if directory is None:
        raise Frozen(f"{parent.tree.dataset.uri}: its items are frozen")
    return path_of_entry(directory, utf8(name))


def _is_tag(path: str) -> bool:
    target = target_of(path)
    return target is not None and target.kind is Kind.TAG


def _open_tag() -> OpenFile:
    return OpenBytes(b"", CannotHold("a tag has no content"))
