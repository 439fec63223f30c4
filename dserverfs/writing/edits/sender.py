"""Sending what was written to targets of frozen datasets, now or when the server is back.

Used by the edits. What cannot be sent stays in its local file with a note and a
reason; where trying again may help that is done with growing pauses, and once more
at the end. Of two changes of one dataset the later one is sent later. Thread-safe;
works in threads of its own.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for

from dserverfs.base import retry
from dserverfs.base.errors import (
    ChangedMeanwhile,
    DserverfsError,
    NotAuthenticated,
    ProtocolError,
    Unreachable,
)
from dserverfs.catalogue.catalogue import Catalogue
from dserverfs.remote.metadata_api import MetadataWrites
from dserverfs.remote.versions import Reader, Version
from dserverfs.writing.edits import editable
from dserverfs.writing.edits.editable import Target
from dserverfs.writing.edits.store import LocalEdits
from dserverfs.writing.edits.view import EditedFiles, LocalFile

logger = logging.getLogger(__name__)

SENDERS = 4
RETRY_S = (2.0, 600.0)  # between attempts while the server is away, first and most
# RELEASE comes after close(2) has returned, so what was just closed may look open.
LATE_CLOSE_S = 2.0


class EditSender:
    """Sends the edits of one mount."""

    def __init__(self, local: LocalEdits, writes: MetadataWrites, catalogue: Catalogue) -> None:
        self._local = local
        self._condition = local.condition
        self._writes = writes
        self._catalogue = catalogue
        self._pool = ThreadPoolExecutor(SENDERS, thread_name_prefix="edits")
        self._sending: set[Future[None]] = set()
        self._retrying: threading.Thread | None = None
        self._closed = False

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def flush(self, timeout_s: float) -> None:
        """Try once more to send what is complete; return when that is done, or the time is over."""
        end_s = time.monotonic() + timeout_s
        late_s = min(end_s, time.monotonic() + LATE_CLOSE_S)
        with self._condition:
            while any(file.writers for file in self._local.unsent()):
                if time.monotonic() >= late_s:
                    break
                self._condition.wait(0.02)
            for file in self._local.unsent():
                if file.is_complete:
                    self.submit(file)
            going = set(self._sending)
        wait_for(going, timeout=max(end_s - time.monotonic(), 0.0))

    def send_as(self, edited: EditedFiles, file: LocalFile, target: Target, reader: Reader) -> None:
        """Make a temporary file the target's, if the server takes it.

        `reader` renames it, and has read the target before.
        """
        with edited.sending:
            with self._condition:
                if file.is_spoilt:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), file.path)
                changes, content = file.changes, file.local.read_bytes()
                read = edited.versions.last_read(target.path, reader)
            self._make(edited, target, content, read)
            with self._condition:
                file.writer = reader
                self._sent(edited, file, target, changes, content)
                file.moved = None
                self._local.replace(edited, file, target.path, target)
                if not file.writers and not file.is_unsent:
                    self._local.settle(file)

    def send(self, file: LocalFile) -> None:
        """Send what was written to a target; raises what the server says, and keeps it then."""
        edited = self._local.of(file.dataset)
        with edited.sending:
            with self._condition:
                target, changes = file.target, file.changes
                # Written to again since: then it is sent when that is done.
                if target is None or not file.is_unsent or not file.is_complete:
                    return
                content, read = file.local.read_bytes(), file.read
                file.retry_at_s = None
            self._local.secure(file)
            try:
                self._make(edited, target, content, read)
            except (DserverfsError, OSError) as error:
                self._failed(file, error)
                raise
            with self._condition:
                if file.target == target:
                    self._sent(edited, file, target, changes, content)
                    if not file.writers and not file.is_unsent:
                        self._local.settle(file)

    def send_content(self, edited: EditedFiles, target: Target, content: bytes) -> None:
        with edited.sending:
            self._make(edited, target, content, None)

    def _make(
        self, edited: EditedFiles, target: Target, content: bytes, read: Version | None
    ) -> None:
        try:
            editable.send(target, content, edited.dataset, self._writes, self._catalogue, read)
        except ChangedMeanwhile:
            self._catalogue.forget(edited.dataset)  # so that the other's is read next
            raise
        self._catalogue.forget(edited.dataset)
        logger.info("%s: %s was changed", edited.dataset.uri, target.path)

    def _sent(
        self, edited: EditedFiles, file: LocalFile, target: Target, changes: int, content: bytes
    ) -> None:
        """Note that the server has what a file held at `changes`."""
        file.read = editable.version_of(target, content)
        edited.versions.was_read(target.path, file.writer, file.read)
        file.sent, file.reason, file.pause_s = changes, None, 0.0
        if file.changes == changes:
            self._local.unnote(file)
        edited.changed_on_server(target.path, file.status().st_mtime_ns)
        for other in edited.all():
            # What it was before, unsent or not, is a backup now.
            if other is not file and other.moved and other.moved.target == target:
                other.moved = None
                self._local.unnote(other)

    def _failed(self, file: LocalFile, error: DserverfsError | OSError) -> None:
        """Keep what could not be sent, say so once, and try again if that may help."""
        may_help = isinstance(error, (Unreachable, NotAuthenticated)) or (
            isinstance(error, ProtocolError) and (error.status or 0) >= 500
        )
        with self._condition:
            if file.reason is None:
                logger.error(
                    "%s: %s could not be sent to the server: %s; what was written is kept in %s%s",
                    file.dataset.uri,
                    file.path,
                    error,
                    file.local,
                    " and sent when the server takes it" if may_help else "",
                )
            file.reason = str(error)
            if file.target is not None:
                self._local.note(file)
            if may_help and not file.writers:
                file.pause_s = retry.pause_s(file.pause_s, *RETRY_S)
                file.retry_at_s = time.monotonic() + file.pause_s
                self._begin_retrying()
        self._local.secure(file)

    def submit(self, file: LocalFile) -> None:
        """Begin to send a file."""
        if not self._closed:
            future = self._pool.submit(self._send_quietly, file)
            self._sending.add(future)
            future.add_done_callback(self._sending.discard)

    def _send_quietly(self, file: LocalFile) -> None:
        try:
            self.send(file)
        except (DserverfsError, OSError):
            pass  # logged, and kept in its note
        except Exception:
            logger.exception("a fault of ours while sending %s", file.local)
            raise

    def _begin_retrying(self) -> None:
        if self._retrying is None:
            self._retrying = threading.Thread(target=self._retry, name="edits", daemon=True)
            self._retrying.start()
        self._condition.notify_all()

    def _retry(self) -> None:
        with self._condition:
            while not self._closed:
                now_s, waits_s = time.monotonic(), []
                for file in self._local.unsent():
                    if file.retry_at_s is None:
                        continue
                    if file.retry_at_s <= now_s:
                        file.retry_at_s = None
                        self.submit(file)
                    else:
                        waits_s.append(file.retry_at_s - now_s)
                self._condition.wait(min(waits_s, default=None))
