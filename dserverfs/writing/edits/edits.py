"""Changes of frozen datasets through their files, as editors and dtool rewrite them.

Used by the mount: its operations, which call one method for each, and the trees of
datasets, which show the local files before the server's. A write goes to a private local
file first. A target (see `editable`) is sent to the server when it is complete. A rename
onto it, and a sync, wait for the server and raise its error; else it is sent after the
last of its writers has closed it. An edit that cannot be sent stays on the disk, is shown,
and is tried again: later, at the end, when it is written to again, and by the next mount.
Methods are quick, or raise NotLoaded, unless they say that they block. Thread-safe.

After a crash: see `journal`. A complete edit is sent by the next mount; one that was
being written is shown by it, and sent when it was written to again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

from dserverfs.base.errors import Frozen, NotFound, UsageError
from dserverfs.base.local_files import write_all
from dserverfs.base.model import Dataset, mtime_ns_of
from dserverfs.base.versions import Reader
from dserverfs.writing.edits import editable, sender
from dserverfs.writing.edits.editable import EditableFiles, Kind, Target, is_temporary, target_of
from dserverfs.writing.edits.journal import UnsentEdit
from dserverfs.writing.edits.local_file import INCOMPLETE, EditHandle, LocalFile, LocalStatus
from dserverfs.writing.edits.sender import EditSender
from dserverfs.writing.edits.view import (
    NOT_KEPT,
    EditedFiles,
    GivenNumbers,
    LocalEdits,
    Shown,
)

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 1000
CLOSE_S = 5.0  # for what is being sent when the mount ends
_RENAME_NOREPLACE = 1  # of renameat2(2)


class DatasetEdits:
    """The edits of one mount."""

    def __init__(
        self,
        root: Path,
        editable_files: EditableFiles,
        retry_s: tuple[float, float] = sender.RETRY_S,
    ) -> None:
        """`root` is where all mounts of this server keep theirs."""
        self._local = LocalEdits(root)
        self._sender = EditSender(self._local, editable_files, retry_s)
        self._editable_files = editable_files
        self._said: set[str] = set()

    def open(
        self, wanted: Callable[[Dataset], bool], numbers: GivenNumbers = NOT_KEPT
    ) -> DatasetEdits:
        """Begin, with the unsent edits that earlier mounts left of the `wanted` datasets.

        `numbers` keeps the inode numbers for another daemon, and has those of one before.
        """
        resumed = self._local.open(wanted, numbers)
        for file in resumed:
            if file.note.is_complete:
                logger.info("%s: %s is sent now", file.dataset.uri, file.path)
                self._sender.submit(file)
        return self

    def close(self) -> None:
        """Send the edits that the server takes at once; the others stay on the disk."""
        self._sender.flush(CLOSE_S)
        self._sender.close()
        self._local.close()

    def take_as_closed(self) -> None:
        """Complete all open files: the kernel closed them without telling."""
        with self._local.lock:
            for file in self._local.unsent():
                if file.writers and file.is_half:
                    self._leave_out(file)
                elif file.writers:
                    file.close_all()

    def flush(self, timeout_s: float) -> None:
        """Send complete edits once more; return when that is done, or the time is over."""
        self._sender.flush(timeout_s)

    def shown(self, dataset: Dataset, path: str) -> Shown:
        """Return the view of a path, which comes before the server's file."""
        with self._local.lock:
            edited = self._local.known(dataset)
            return edited.shown(path) if edited else Shown()

    def names(self, dataset: Dataset, directory: str) -> list[str]:
        """Return the names of local files in a directory of a dataset."""
        with self._local.lock:
            edited = self._local.known(dataset)
            return edited.names(directory) if edited else []

    def with_number(self, dataset: Dataset, number: int) -> LocalFile | None:
        """Return the local file that has this number, also if it has no name any more."""
        with self._local.lock:
            edited = self._local.known(dataset)
            return edited.with_number(number) if edited else None

    def status(self, file: LocalFile) -> LocalStatus | None:
        """Return what stat shows of a local file; None if it is gone, as after it was sent."""
        with self._local.lock:
            return None if file.is_gone else file.status()

    def path_of(self, dataset: Dataset, number: int) -> str:
        """Return the path of a number; raises NotFound."""
        with self._local.lock:
            return self._local.of(dataset).path_of(number)

    def writers(self) -> int:
        """Return how many handles are open for writing."""
        with self._local.lock:
            return sum(file.writers for file in self._local.all())

    def unsent(self) -> list[UnsentEdit]:
        """Return the changes that the server does not have."""
        with self._local.lock:
            return [UnsentEdit.of(file.local, file.note) for file in self._local.unsent()]

    def require(self, dataset: Dataset, path: str) -> None:
        """Raise unless something may be changed at a path: Frozen, PermissionDenied, UsageError.

        Blocks if the server has to be asked.
        """
        if path.rpartition("/")[0] not in editable.DIRECTORIES:
            raise Frozen(f"{dataset.uri}: {path} is frozen")
        try:
            self._editable_files.require_changeable(dataset, target_of(path))
        except Frozen as error:
            self._say_once(str(error))
            raise

    def was_read(self, dataset: Dataset, path: str, content: bytes, reader: Reader) -> None:
        """Note that a process has read a content of the server's, and may change it now."""
        target = target_of(path)
        if target is not None:
            with self._local.lock:
                edited = self._local.of(dataset)
                file = edited.at(path)
                version = file.note.read if file else target.version_of(content)
                if version is not None:
                    edited.versions.was_read(path, reader, version)

    def open_file(
        self, dataset: Dataset, path: str, flags: int, reader: Reader = None
    ) -> EditHandle:
        """Open a target or a local file for writing, for a process that may have read it before.

        Raises NotFound, and NotLoaded for content, unless it is to be cut off.
        """
        with self._local.lock:
            edited = self._local.of(dataset)
            file = edited.at(path)
            if file is None:
                target = target_of(path)
                if target is None:
                    raise NotFound(f"{dataset.uri}: nothing at {path}")
                content, read = b"", edited.versions.last_read(path, reader)
                if not flags & os.O_TRUNC:
                    content = self._editable_files.present(target, dataset)
                    read = target.version_of(content)
                file = self._local.new_file(dataset, content, read=read)
                edited.edit(file, path)
                return _opened_new(edited, file, flags | os.O_RDWR, reader)
            return file.open(flags | os.O_RDWR, reader)

    def open_local(self, file: LocalFile) -> EditHandle | None:
        """Open a local file for reading; None if it is gone, as after it was sent."""
        with self._local.lock:
            return None if file.is_gone else file.open(os.O_RDONLY)

    def create(
        self, dataset: Dataset, path: str, mode: int, flags: int, reader: Reader = None
    ) -> EditHandle:
        """Make a file and open it; raises Frozen unless it is a target or temporary."""
        with self._local.lock:
            edited = self._local.of(dataset)
            file = edited.at(path)
            if file is not None:
                if flags & os.O_EXCL:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
                return file.open(flags | os.O_RDWR, reader)
            target = target_of(path)
            if target is None and not (
                is_temporary(path) or editable.is_made_as_temporary(path, flags, mode)
            ):
                raise Frozen(f"{dataset.uri}: is frozen; {path} would not stay")
            if edited.shown(path).moved is None:  # else it is the next version of that
                edited.versions.forget(path)  # of what was there and is gone
            read = edited.versions.last_read(path, reader)
            file = self._local.new_file(dataset, b"", mode & 0o7777, read)
            edited.place(file, path)
            # An empty target is a change, too; else there is nothing to cut off.
            flags = flags | os.O_TRUNC if target is not None else flags & ~os.O_TRUNC
            return _opened_new(edited, file, flags | os.O_RDWR, reader)

    def write(self, handle: EditHandle, data: bytes, offset: int) -> None:
        """Write all of `data`; raises OSError. A target of which a part failed is not sent."""
        file = handle.file
        try:
            with self._local.lock:
                if handle.appends:
                    offset = file.size_in_bytes
                file.begin_write(offset + len(data))
            write_all(handle.fd, data, offset)
            with self._local.lock:
                file.end_write()
        except OSError:
            file.spoil()
            raise

    def truncate(self, handle: EditHandle, size_in_bytes: int) -> None:
        with self._local.lock:
            handle.file.truncate(size_in_bytes)

    def release(self, handle: EditHandle) -> None:
        """Close a file; begin to send it if it was the last of its writers."""
        file = handle.file
        with self._local.lock:
            self._local.close_file(handle)
            if file.target is None or file.writers or not handle.is_writable:
                return
            if file.is_half:
                self._leave_out(file)
            else:
                if file.is_unsent:
                    file.complete()
                self._send_or_settle(file)

    def _leave_out(self, file: LocalFile) -> None:
        """Have a target not sent of which a part is missing, and kept if it was unsent before."""
        logger.warning(
            "%s: what was written to %s is incomplete, as its writer was told; the server keeps"
            " what it has",
            file.dataset.uri,
            file.path,
        )
        if file.covers_unsent:
            file.was_refused(INCOMPLETE)
        else:
            self._local.of(file.dataset).discard(file)

    def set_mode(self, dataset: Dataset, path: str, mode: int) -> None:
        """Set the mode of a temporary file; a target's is nowhere kept."""
        with self._local.lock:
            file = self._local.of(dataset).at(path)
            if file is not None:
                file.set_mode(mode)

    def set_mtime(self, dataset: Dataset, path: str, mtime_ns: int) -> None:
        """Have that time shown, for as long as the mount lasts."""
        with self._local.lock:
            self._local.of(dataset).set_mtime(path, mtime_ns)

    def sync(self, handle: EditHandle) -> None:
        """Return when a file is on the disk, and on the server if it is a target; blocks."""
        os.fsync(handle.fd)
        file = handle.file
        with self._local.lock:
            if not file.is_unsent or file.is_half:
                return
            file.complete()
        self._sender.send(file)

    def put_tag(self, dataset: Dataset, path: str) -> None:
        """Set a tag on the server; blocks."""
        target = target_of(path)
        assert target is not None
        self._sender.send_content(self._local.of(dataset), target, b"")

    def remove(self, dataset: Dataset, path: str) -> None:
        """Remove a temporary file, or a tag, an annotation or an overlay on the server; blocks."""
        edited, target = self._local.of(dataset), target_of(path)
        if target is None:
            with self._local.lock:
                edited.discard(_temporary(edited, path))
            return
        self._require_not_moved(edited, target)
        if not target.can_be_removed:
            raise Frozen(f"{dataset.uri}: is frozen, and has a {path}")
        with edited.sending:  # after a send that has begun
            is_there = self._editable_files.exists(target, dataset)
            if is_there:
                self._editable_files.delete(target, dataset)
            with self._local.lock:
                edited.versions.forget(path)
                file = edited.at(path)
                if file is not None:
                    edited.discard(file)
        if file is None and not is_there:
            raise NotFound(f"{dataset.uri}: nothing at {path}")

    def rename(
        self, dataset: Dataset, old: str, new: str, flags: int, reader: Reader = None
    ) -> None:
        """Rename a file; blocks if it becomes a target. Raises as `sync`, Frozen, and OSError."""
        if flags & ~_RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), old)
        edited = self._local.of(dataset)
        source, target = target_of(old), target_of(new)
        if target is None and not is_temporary(new):
            raise Frozen(f"{dataset.uri}: is frozen; {new} would not stay")
        is_there = self._exists(edited, new)
        if flags & _RENAME_NOREPLACE and is_there:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
        if source is not None and target is not None:
            self._rename_target(edited, source, target)
        elif source is not None:
            self._move_away(edited, source, new)
        elif target is None:
            with self._local.lock:
                edited.place(_temporary(edited, old), new)
        else:
            with edited.sending:  # after a send that has begun, of the file it replaces
                with self._local.lock:
                    file = _temporary(edited, old)
                    if edited.moves_back(file, target):
                        edited.place(file, new)
                        self._send_or_settle(file)
                        return
                    if not is_there and edited.shown(new).moved is None:
                        edited.versions.forget(new)
                self._sender.send_as(file, target, reader)

    def discard(self, dataset: Dataset, path: str) -> None:
        """Forget a change that was not sent; raises UsageError if there is none, or it is open."""
        edited = self._local.of(dataset)
        with edited.sending, self._local.lock:  # after a send that has begun
            file = edited.at(path)
            if file is None or not file.is_unsent:
                raise UsageError(
                    f"{dataset.name}: {path or 'it'} is frozen, and nothing unsent was written"
                    " to it"
                )
            if file.writers:
                raise UsageError(f"{dataset.name}/{path}: is open for writing")
            edited.discard(file)
        self._local.sync()

    def _say_once(self, message: str) -> None:
        if message not in self._said and len(self._said) < MAX_REMEMBERED:
            self._said.add(message)
            logger.info("%s", message)

    def _send_or_settle(self, file: LocalFile) -> None:
        """Begin to send a target that is complete; the caller holds the lock."""
        if file.is_unsent:
            self._sender.submit(file)
        else:
            self._local.of(file.dataset).settle(file)

    def _exists(self, edited: EditedFiles, path: str) -> bool:
        with self._local.lock:
            shown, target = edited.shown(path), target_of(path)
        if shown.file is not None or target is None or shown.moved is not None:
            return shown.file is not None
        return self._editable_files.exists(target, edited.dataset)

    def _require_not_moved(self, edited: EditedFiles, target: Target) -> None:
        """Raise NotFound if a target's file has a temporary name just now."""
        with self._local.lock:
            if edited.shown(target.path).moved is not None:
                raise NotFound(f"{edited.dataset.uri}: nothing at {target.path}")

    def _move_away(self, edited: EditedFiles, source: Target, new: str) -> None:
        """Give a target's file a temporary name; the target is hidden until there is a new one."""
        dataset = edited.dataset
        if source.kind is Kind.TAG:
            raise Frozen(f"{dataset.uri}: {source.path} cannot become {new}")
        self._require_not_moved(edited, source)
        content = b""
        if edited.at(source.path) is None:
            with contextlib.suppress(NotFound):
                content = self._editable_files.content(source, dataset)
        with self._local.lock:
            file = edited.at(source.path)
            if file is None:
                file = self._local.new_file(dataset, content)
                mtime_ns = edited.shown(source.path).mtime_ns
                file.set_mtime(mtime_ns or mtime_ns_of(dataset.frozen_at))
            edited.move_away(file, source, new)

    def _rename_target(self, edited: EditedFiles, source: Target, target: Target) -> None:
        """Rename an annotation or an overlay."""
        dataset = edited.dataset
        if source.kind is not target.kind or not source.can_be_removed:
            raise Frozen(f"{dataset.uri}: {source.path} cannot become {target.path}")
        with self._local.lock:
            file = edited.at(source.path)
            if file is not None and file.is_half:
                raise OSError(errno.EIO, os.strerror(errno.EIO), file.path)
            # What is written later would be in neither: the server is sent what there is now.
            if any(each and each.writers for each in (file, edited.at(target.path))):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), source.path)
            content = file.local.read_bytes() if file else None
        if content is None:
            content = self._editable_files.content(source, dataset)
        self._sender.send_content(edited, target, content)
        with self._local.lock:
            replaced = edited.at(target.path)
            if replaced is not None:
                edited.discard(replaced)
        self.remove(dataset, source.path)


def _opened_new(edited: EditedFiles, file: LocalFile, flags: int, reader: Reader) -> EditHandle:
    """Open a file that was made for this; if that fails there is none, and nothing to send."""
    try:
        return file.open(flags, reader)
    except OSError:
        edited.discard(file)
        raise


def _temporary(edited: EditedFiles, path: str) -> LocalFile:
    """Return the temporary file at a path; raises Frozen if there is none."""
    file = edited.at(path)
    if file is None:
        raise Frozen(f"{edited.dataset.uri}: {path} is frozen")
    return file
