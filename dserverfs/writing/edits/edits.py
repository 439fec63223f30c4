"""Changes of frozen datasets through their files, as editors and dtool rewrite them.

Used by the mount: its operations, which call one method for each, and the trees of
datasets, which show the local files before what the server has. Whatever is
written goes to a private local file first; at most LIMIT_BYTES of them for each
mount. What was written to a target (see `editable`) is sent to the server when
it is complete: renamed onto the target or synced, which wait for the server and
raise what it says, else when the last of its writers is gone. What cannot be sent
then stays on the disk, is shown, and is tried again: later, at the end, when it is
written to again, and by the next mount. Thread-safe.

After a crash: see `journal`. What was complete is sent by the next mount; what
was being written is shown by it, and sent when somebody has written to it again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

from dserverfs.base.errors import Frozen, NotFound, PermissionDenied, UsageError
from dserverfs.base.local_files import write_all
from dserverfs.base.model import Dataset, mtime_ns_of
from dserverfs.catalogue.catalogue import Catalogue
from dserverfs.catalogue.refreshed import loaded
from dserverfs.remote.metadata_api import MetadataWrites
from dserverfs.remote.versions import Reader
from dserverfs.writing.edits import editable
from dserverfs.writing.edits.editable import Kind, Target, is_temporary, target_of
from dserverfs.writing.edits.journal import Unsent
from dserverfs.writing.edits.sender import EditSender
from dserverfs.writing.edits.store import TARGET_MODE, EditHandle, LocalEdits
from dserverfs.writing.edits.view import EditedFiles, LocalFile, MovedAway, Shown

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 1000
CLOSE_S = 5.0  # for what is being sent when the mount ends
_RENAME_NOREPLACE = 1  # of renameat2(2)


class FrozenEdits:
    """The edits of one mount."""

    def __init__(self, root: Path, writes: MetadataWrites, catalogue: Catalogue) -> None:
        """`root` is where all mounts of this server keep theirs."""
        self._local = LocalEdits(root)
        self._condition = self._local.condition
        self._sender = EditSender(self._local, writes, catalogue)
        self._writes = writes
        self._catalogue = catalogue
        self._is_open = False
        self._said: set[str] = set()

    def open(self, wanted: Callable[[Dataset], bool]) -> FrozenEdits:
        """Begin, with what earlier mounts have not sent of the datasets that are `wanted`."""
        resumed = self._local.open(wanted)
        self._is_open = True
        for file in resumed:
            if file.is_complete:
                logger.info("%s: %s is sent now", file.dataset.uri, file.path)
                self._sender.submit(file)
        return self

    def close(self, *, all_closed: bool = False) -> None:
        """Send what can be sent at once, and keep the rest on the disk.

        `all_closed`: nothing is open any more, whether that was told or not.
        """
        if not self._is_open:
            return
        self._is_open = False
        if all_closed:
            with self._condition:
                for file in self._local.unsent():
                    if file.is_spoilt:
                        self._local.discard(file)
                    elif file.writers:
                        file.writers = 0
                        self._local.complete(file)
        self._sender.flush(CLOSE_S)
        self._sender.close()
        self._local.close()

    def flush(self, timeout_s: float) -> None:
        """Try once more to send what is complete; return when that is done, or the time is over."""
        self._sender.flush(timeout_s)

    # What is shown

    def shown(self, dataset: Dataset, path: str) -> Shown:
        """Return what there is to show at a path before what the server has."""
        with self._condition:
            edited = self._local.known(dataset)
            return edited.shown(path) if edited else Shown()

    def names(self, dataset: Dataset, directory: str) -> list[str]:
        """Return the names of local files in a directory of a dataset."""
        with self._condition:
            edited = self._local.known(dataset)
            return edited.names(directory) if edited else []

    def with_number(self, dataset: Dataset, number: int) -> LocalFile | None:
        """Return the local file that has this number, also if it has no name any more."""
        with self._condition:
            edited = self._local.known(dataset)
            return edited.with_number(number) if edited else None

    def path_of(self, dataset: Dataset, number: int) -> str:
        """Return the path of a number; raises NotFound."""
        with self._condition:
            return self._local.of(dataset).path_of(number)

    def unsent(self) -> list[Unsent]:
        """Return what the server does not have."""
        with self._condition:
            return [
                Unsent(
                    file.dataset,
                    file.path or "",
                    file.local,
                    file.size_in_bytes,
                    file.changed_at,
                    file.reason,
                )
                for file in self._local.unsent()
            ]

    # Rights

    def require(self, dataset: Dataset, path: str) -> None:
        """Raise unless something may be changed at a path: Frozen, PermissionDenied, UsageError.

        Blocks if the server has to be asked.
        """
        target = target_of(path)
        if path.rpartition("/")[0] not in editable.DIRECTORIES:
            raise Frozen(f"{dataset.uri}: {path} is frozen")
        if target is not None:
            editable.require_usable(target)
        try:
            editable.require_route(self._writes, dataset, target)
        except Frozen as error:
            self._say_once(str(error))
            raise
        user = loaded(self._catalogue.user)
        if dataset.base_uri not in user.register_base_uris:
            raise PermissionDenied(
                f"{dataset.uri}: user {user.username} may not register in {dataset.base_uri},"
                " and so not change what is there",
                uri=dataset.uri,
            )

    # Files: quick, but for NotLoaded

    def was_read(self, dataset: Dataset, path: str, content: bytes, reader: Reader) -> None:
        """Note that a process was shown that of the server's, and may change it now."""
        target = target_of(path)
        if target is not None and target.kind is not Kind.TAG:
            with self._condition:
                edited = self._local.of(dataset)
                file = edited.at(path)
                version = file.read if file else editable.version_of(target, content)
                if version is not None:
                    edited.versions.was_read(path, reader, version)

    def open_file(
        self, dataset: Dataset, path: str, flags: int, reader: Reader = None
    ) -> EditHandle:
        """Open a target or a local file for writing, for a process that may have read it before.

        Raises NotFound, and NotLoaded for content, unless it is to be cut off.
        """
        with self._condition:
            edited = self._local.of(dataset)
            file = edited.at(path)
            if file is None:
                target = target_of(path)
                if target is None:
                    raise NotFound(f"{dataset.uri}: nothing at {path}")
                content, read = b"", edited.versions.last_read(path, reader)
                if not flags & os.O_TRUNC:
                    editable.renew(target, dataset, self._catalogue)
                    content = editable.content_of(target, dataset, self._catalogue)
                    read = editable.version_of(target, content)
                file = self._local.new_file(dataset, content, TARGET_MODE)
                file.read = read
                edited.add(file, path, target, number_anew=False)
            file.writer = reader
            return self._local.open_file(file, flags, is_writable=True)

    def open_local(self, file: LocalFile) -> EditHandle:
        """Open a local file for reading."""
        with self._condition:
            return self._local.open_file(file, 0, is_writable=False)

    def create(
        self, dataset: Dataset, path: str, mode: int, flags: int, reader: Reader = None
    ) -> EditHandle:
        """Make a file and open it; raises Frozen for what is neither a target nor temporary."""
        with self._condition:
            edited = self._local.of(dataset)
            file = edited.at(path)
            if file is not None:
                if flags & os.O_EXCL:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
                return self._local.open_file(file, flags, is_writable=True)
            target = target_of(path)
            if target is None and not (
                is_temporary(path) or editable.is_made_as_temporary(path, flags, mode)
            ):
                raise Frozen(f"{dataset.uri}: is frozen; {path} would not stay")
            file = self._local.new_file(dataset, b"", mode & 0o7777)
            file.writer, file.read = reader, edited.versions.last_read(path, reader)
            edited.add(file, path, target, number_anew=True)
            handle = self._local.open_file(file, flags & ~os.O_TRUNC, is_writable=True)
            if target is not None:
                self._local.changing(file)  # an empty one is a change, too
            return handle

    def write(self, handle: EditHandle, data: bytes, offset: int) -> None:
        """Write all of `data`; raises OSError. A target of which a part failed is not sent."""
        file = handle.file
        try:
            with self._condition:
                if handle.appends:
                    offset = file.size_in_bytes
                self._local.resize(file, max(file.size_in_bytes, offset + len(data)))
                self._local.changing(file)
            write_all(handle.fd, data, offset)
        except OSError:
            file.is_spoilt = True
            raise

    def truncate(self, handle: EditHandle, size_in_bytes: int) -> None:
        with self._condition:
            self._local.truncate(handle.file, size_in_bytes)

    def release(self, handle: EditHandle) -> None:
        """Close a file; begin to send it if it was the last of its writers."""
        os.close(handle.fd)
        file = handle.file
        with self._condition:
            file.handles -= 1
            file.writers -= handle.is_writable
            if file.path is None:
                if not file.handles:
                    self._local.of(file.dataset).forget(file)
                    self._local.delete(file)
            elif file.target is None or file.writers or not handle.is_writable:
                return
            elif file.is_spoilt:
                logger.warning(
                    "%s: what was written to %s is incomplete, as its writer was told; the server"
                    " keeps what it has",
                    file.dataset.uri,
                    file.path,
                )
                self._local.discard(file)
            elif file.is_unsent:
                self._local.complete(file)
                self._sender.submit(file)
            else:
                self._local.settle(file)

    def set_mode(self, dataset: Dataset, path: str, mode: int) -> None:
        """Set the mode of a temporary file; those of targets are nowhere kept."""
        with self._condition:
            file = self._local.of(dataset).at(path)
            if file is not None:
                file.mode = mode

    def set_mtime(self, dataset: Dataset, path: str, mtime_ns: int) -> None:
        """Have that time shown, for as long as the mount lasts."""
        with self._condition:
            edited = self._local.of(dataset)
            file = edited.at(path)
            if file is not None:
                os.utime(file.local, ns=(mtime_ns, mtime_ns))
            else:
                edited.set_mtime(path, mtime_ns)

    # What waits for the server, or the disk

    def sync(self, handle: EditHandle) -> None:
        """Return when what was written is on the disk, and on the server if it is a target's."""
        os.fsync(handle.fd)
        if handle.file.is_unsent and not handle.file.is_spoilt:
            with self._condition:
                self._local.complete(handle.file)
            self._sender.send(handle.file)

    def put_tag(self, dataset: Dataset, path: str) -> None:
        target = target_of(path)
        assert target is not None
        self._sender.send_content(self._local.of(dataset), target, b"")

    def remove(self, dataset: Dataset, path: str) -> None:
        """Remove a temporary file, or a tag, an annotation or an overlay from the dataset."""
        edited, target = self._local.of(dataset), target_of(path)
        with self._condition:
            file = edited.at(path)
            if target is None:
                if file is None:
                    raise Frozen(f"{dataset.uri}: {path} is frozen")
                self._local.discard(file)
                return
            if edited.shown(path).moved is not None:
                raise NotFound(f"{dataset.uri}: nothing at {path}")
        if not target.can_be_removed:
            raise Frozen(f"{dataset.uri}: is frozen, and has a {path}")
        with edited.sending:  # after what is being sent just now
            is_there = self._is_on_server(dataset, target)
            if is_there:
                editable.delete(target, dataset, self._writes)
                self._catalogue.forget(dataset)
            with self._condition:
                file = edited.at(path)
                if file is not None:
                    self._local.discard(file)
        if file is None and not is_there:
            raise NotFound(f"{dataset.uri}: nothing at {path}")

    def rename(
        self, dataset: Dataset, old: str, new: str, flags: int, reader: Reader = None
    ) -> None:
        """Rename a file; onto a target it is sent. Raises as `send`, Frozen, and OSError."""
        if flags & ~_RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), old)
        edited = self._local.of(dataset)
        source, target = target_of(old), target_of(new)
        if target is None and not is_temporary(new):
            raise Frozen(f"{dataset.uri}: is frozen; {new} would not stay")
        if flags & _RENAME_NOREPLACE and self._exists(edited, new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
        if source is not None and target is not None:
            self._rename_target(edited, source, target)
        elif source is not None:
            self._move_away(edited, source, new)
        else:
            # After what is being sent just now: it may be what this file takes the place of.
            with edited.sending if target is not None else contextlib.nullcontext():
                with self._condition:
                    file = edited.at(old)
                    if file is None:
                        raise Frozen(f"{dataset.uri}: {old} is frozen")
                    if target is None:
                        self._local.replace(edited, file, new, None)
                        return
                    if self._moves_back(edited, file, target):
                        return
                self._sender.send_as(edited, file, target, reader)

    def discard(self, dataset: Dataset, path: str) -> None:
        """Forget a change that was not sent; raises UsageError if there is none, or it is open."""
        edited = self._local.of(dataset)
        with edited.sending, self._condition:  # after what is being sent just now
            file = edited.at(path)
            if file is None or not file.is_unsent:
                raise UsageError(f"{dataset.name}: {path or 'it'} is frozen, and as the server's")
            if file.writers:
                raise UsageError(f"{dataset.name}/{path}: is open for writing")
            self._local.discard(file)
        self._local.sync()

    def _say_once(self, message: str) -> None:
        if message not in self._said and len(self._said) < MAX_REMEMBERED:
            self._said.add(message)
            logger.info("%s", message)

    # Moving

    def _exists(self, edited: EditedFiles, path: str) -> bool:
        with self._condition:
            shown, target = edited.shown(path), target_of(path)
        if shown.file is not None or target is None or shown.moved is not None:
            return shown.file is not None
        return self._is_on_server(edited.dataset, target)

    def _is_on_server(self, dataset: Dataset, target: Target) -> bool:
        try:
            self._stored(dataset, target)
        except NotFound:
            return False
        return True

    def _stored(self, dataset: Dataset, target: Target) -> bytes:
        return loaded(lambda: editable.content_of(target, dataset, self._catalogue))

    def _move_away(self, edited: EditedFiles, source: Target, new: str) -> None:
        """Give a target's file a temporary name; the target is hidden until there is a new one."""
        dataset = edited.dataset
        if source.kind is Kind.TAG:
            raise Frozen(f"{dataset.uri}: {source.path} cannot become {new}")
        with self._condition:
            if edited.shown(source.path).moved is not None:
                raise NotFound(f"{dataset.uri}: nothing at {source.path}")
        content = self._stored(dataset, source) if self._is_on_server(dataset, source) else b""
        with self._condition:
            version = edited.version(source.path)
            file = edited.at(source.path)
            if file is not None:
                file.retry_at_s = None
                self._local.replace(edited, file, new, None)
            else:
                mtime_ns = edited.shown(source.path).mtime_ns or mtime_ns_of(dataset.frozen_at)
                file = self._local.new_file(dataset, content, TARGET_MODE)
                os.utime(file.local, ns=(mtime_ns, mtime_ns))
                replaced = edited.at(new)
                if replaced is not None:
                    self._local.discard(replaced)
                edited.add(file, new, None, number_anew=True)
            file.moved = MovedAway(source, version, file.changes)
            edited.hide(source.path, file)

    def _moves_back(self, edited: EditedFiles, file: LocalFile, target: Target) -> bool:
        """Move a target's file back if that is what it is; return whether."""
        moved = MovedAway(target, edited.version(target.path), file.changes)
        if file.moved != moved:
            return False
        file.moved = None
        self._local.replace(edited, file, target.path, target)
        if file.is_unsent and not file.writers:
            self._sender.submit(file)
        elif not file.writers:
            self._local.settle(file)
        return True

    def _rename_target(self, edited: EditedFiles, source: Target, target: Target) -> None:
        """Rename an annotation or an overlay."""
        dataset = edited.dataset
        if source.kind is not target.kind or not source.can_be_removed:
            raise Frozen(f"{dataset.uri}: {source.path} cannot become {target.path}")
        with self._condition:
            file = edited.at(source.path)
        content = file.local.read_bytes() if file else self._stored(dataset, source)
        self._sender.send_content(edited, target, content)
        with self._condition:
            replaced = edited.at(target.path)
            if replaced is not None:
                self._local.discard(replaced)
        self.remove(dataset, source.path)
