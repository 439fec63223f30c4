"""Sending edits of frozen datasets to the server, now or when it is back.

Used by the edits. An edit that cannot be sent stays in its local file, with a note that
has the reason. If another attempt may help it is made with growing pauses, and once more
at the end. Of two changes of one dataset the later one is sent later. Thread-safe; works
in threads of its own.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for

from dserverfs.base import retry
from dserverfs.base.errors import DserverfsError
from dserverfs.base.versions import Reader
from dserverfs.writing.edits.editable import EditableFiles, Target
from dserverfs.writing.edits.local_file import Change, LocalFile
from dserverfs.writing.edits.view import EditedFiles, LocalEdits

logger = logging.getLogger(__name__)

SENDERS = 4
RETRY_S = (2.0, 600.0)  # between attempts while the server is away, first and most
# RELEASE comes after close(2) has returned, so what was just closed may look open.
LATE_CLOSE_S = 2.0


class EditSender:
    """Sends the edits of one mount."""

    def __init__(
        self,
        local: LocalEdits,
        editable_files: EditableFiles,
        retry_s: tuple[float, float] = RETRY_S,
    ) -> None:
        self._local = local
        self._editable_files = editable_files
        self._retry_s = retry_s
        self._pool = ThreadPoolExecutor(SENDERS, thread_name_prefix="edits")
        self._sending: dict[Future[None], LocalFile] = {}
        self._is_closed = False
        # To be tried again, all at once: it is one server that is away.
        self._refused: set[LocalFile] = set()
        self._pause_s = 0.0
        self._timer: threading.Timer | None = None

    def close(self) -> None:
        with self._local.lock:
            self._is_closed = True
            self._forget_timer()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def flush(self, timeout_s: float) -> None:
        """Send complete edits once more; return when that is done, or the time is over."""
        end_s = time.monotonic() + timeout_s
        self._local.wait_until_closed(min(timeout_s, LATE_CLOSE_S))
        with self._local.lock:
            under_way = set(self._sending.values())
            going = self._submit_all(self._local.unsent())
        wait_for(going, timeout=max(end_s - time.monotonic(), 0.0))
        # What was under way may have been refused for a reason that is over.
        with self._local.lock:
            going = self._submit_all(f for f in self._local.unsent() if f in under_way)
        wait_for(going, timeout=max(end_s - time.monotonic(), 0.0))

    def _submit_all(self, files: Iterable[LocalFile]) -> set[Future[None]]:
        """Begin to send those that are complete; return what is under way then."""
        for file in files:
            if file.note.is_complete and file not in self._sending.values():
                self.submit(file)
        return set(self._sending)

    def submit(self, file: LocalFile) -> None:
        """Begin to send a file; the caller holds the lock, or is alone."""
        if self._is_closed:
            return
        try:
            future = self._pool.submit(self._send_quietly, file)
        except RuntimeError as error:  # there can be no thread just now
            logger.info("%s: %s; it is sent later", file.local, error)
            self._refused.add(file)
            self._try_again_later()
            return
        self._sending[future] = file
        future.add_done_callback(lambda done: self._sending.pop(done, None))

    def send(self, file: LocalFile) -> None:
        """Send a target's content; raises the server's error, and keeps the edit then."""
        edited = self._local.of(file.dataset)
        file.secure()  # before another change, which may wait for the server for long
        with edited.sending:
            with self._local.lock:
                self._refused.discard(file)
                # Written to again since: then it is sent when that is done.
                if file.target is None or not file.is_unsent or not file.note.is_complete:
                    return
                change = file.change_of(file.target, file.note.read, file.writer)
            try:
                self._put(edited, change)
            except (DserverfsError, OSError) as error:
                self._keep(file, error)
                raise
            with self._local.lock:
                edited.was_sent(file, change)

    def send_as(self, file: LocalFile, target: Target, writer: Reader) -> None:
        """Make a temporary file the target's, if the server takes it; `writer` renames it."""
        edited = self._local.of(file.dataset)
        with edited.sending:
            with self._local.lock:
                if file.is_spoilt:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), file.path)
                read = edited.versions.last_read(target.path, writer)
                change = file.change_of(target, read, writer)
            self._put(edited, change)
            with self._local.lock:
                if file.path is not None:  # not removed since
                    edited.place(file, target.path)
                edited.was_sent(file, change)

    def send_content(self, edited: EditedFiles, target: Target, content: bytes) -> None:
        """Send a content that no local file holds."""
        change = Change(target, content, 0, None, None)
        with edited.sending:
            self._put(edited, change)
            with self._local.lock:
                edited.server_has(change)

    def _put(self, edited: EditedFiles, change: Change) -> None:
        self._editable_files.put(change.target, edited.dataset, change.content, change.read)
        self._pause_s = 0.0
        logger.info("%s: %s was changed", edited.dataset.uri, change.target.path)

    def _keep(self, file: LocalFile, error: DserverfsError | OSError) -> None:
        """Keep an edit that could not be sent, say so once, and try again if that may help."""
        may_help = isinstance(error, retry.AWAY_OR_EXPIRED)
        with self._local.lock:
            if file.note.reason is None:
                self._forget_timer()  # so that it is tried soon, and the others with it
                logger.error(
                    "%s: %s could not be sent to the server: %s; what was written is kept in %s%s",
                    file.dataset.uri,
                    file.path,
                    error,
                    file.local,
                    " and sent when the server takes it" if may_help else "",
                )
            file.was_refused(str(error))
            if may_help and not file.writers:
                self._refused.add(file)
                self._try_again_later()
        file.secure()

    def _try_again_later(self) -> None:
        if self._timer is None and not self._is_closed:
            self._pause_s = retry.pause_s(self._pause_s, *self._retry_s)
            timer = threading.Timer(self._pause_s, self._try_again)
            timer.daemon = True
            with contextlib.suppress(RuntimeError):  # no thread: with the next one, or at the end
                timer.start()
                self._timer = timer

    def _forget_timer(self) -> None:
        self._pause_s = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _try_again(self) -> None:
        with self._local.lock:
            self._timer = None
            refused, self._refused = self._refused, set()
            for file in refused:
                self.submit(file)

    def _send_quietly(self, file: LocalFile) -> None:
        try:
            self.send(file)
        except (DserverfsError, OSError):
            pass  # logged, and kept in its note
        except Exception:
            logger.exception("a fault of ours while sending %s", file.local)
