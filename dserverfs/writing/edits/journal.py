"""The directory in which one mount keeps its edits of frozen datasets, also after a crash.

Used by the edits. On disk, below `root` (0700), which is that of one server:

    lock                  held for moments, while a session is made or taken over
    <session>/lock        held by its mount, with host and boot id
    <session>/<n>         a file's content
    <session>/<n>.json    a note: the content is a target's, and not sent to the server

The note is there before the first byte is changed, and goes after the server has
it. After a crash one rule holds: a content and its note are an edit, which the next
session takes over; anything else, a content without note as a note without content,
is deleted. A session with a note of a newer version is left as it is: only that version
knows its files. After a power cut that is so of what was `secured`, which comes before
anything is sent. A note may reach the disk before its content does: by the content's
MD5 the next session sees that it is not what was complete.
Blocking on the local disk only; notes are thread-safe.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import shutil
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.directories import private_directory
from dserverfs.base.durable_files import (
    sync_directory,
    sync_file,
    sync_open,
    write_durably,
    write_unsynced,
    written_beside,
)
from dserverfs.base.errors import DserverfsError, ProtocolError, UsageError
from dserverfs.base.hashes import MD5, file_digest
from dserverfs.base.limits import parse_json, record_of, understood
from dserverfs.base.local_files import named, subdirectories
from dserverfs.base.locks import OwnerLock, locked
from dserverfs.base.model import Dataset
from dserverfs.base.versions import Version
from dserverfs.writing.staging.area import OPTION

logger = logging.getLogger(__name__)

FORMAT = 1
LIMIT_BYTES = 16 * 1024**2
OVERTAKEN = "another mount has changed it later; write it again, or discard it"
_EDITS = ".edits"  # beside the staging areas of servers, whose names have no dot there
_LOCK = "lock"
_NOTE = ".json"


@dataclass(frozen=True)
class Note:
    """An edit that was not sent, as the next session is told of it."""

    dataset: Dataset
    path: str  # in the dataset
    is_complete: bool  # its writers were done
    changed_at: float  # epoch seconds
    reason: str | None = None  # None: it is being written or sent
    read: Version | None = None  # the server's when its writer began
    md5: str | None = None  # of the content when it was complete; None in notes of 0.1.0

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Note:
        """Return the note of a JSON text by `to_json`; raises ProtocolError for any other."""
        values = parse_json(text, "the note")
        with understood("the note"):
            if values.pop("format") != FORMAT:
                raise ProtocolError("the note is of another version of dserverfs")
            return record_of(cls, {**values, "dataset": Dataset.from_json(values["dataset"])})


class UnsentEdit(NamedTuple):
    """A change that the server does not have, as users are told of it."""

    note: Note
    local: Path
    size_in_bytes: int

    @classmethod
    def of(cls, local: Path, note: Note) -> UnsentEdit:
        return cls(note, local, local.stat().st_size)


class EditSession:
    """The directory of one mount."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._directory = root / uuid.uuid4().hex
        self._lock = OwnerLock(self._directory / _LOCK)
        self._count = itertools.count(1)
        self._size_in_bytes = 0  # of all contents
        self._notes_lock = threading.Lock()
        self._noted: set[Path] = set()

    def open(self) -> None:
        """Make the directory; raises UsageError if there can be none."""
        for directory in (self._root.parent.parent, self._root.parent, self._root):
            private_directory(directory, OPTION)
        try:
            with locked(self._root / _LOCK):
                self._directory.mkdir(mode=0o700)
                self._lock.acquire()
        except OSError as error:
            raise UsageError(
                f"{self._root}: cannot hold edits of datasets: {error.strerror}"
            ) from error

    def close(self) -> None:
        """Delete temporary files; edits that are not sent stay, for the next session."""
        if not self._lock.held:
            return
        with locked(self._root / _LOCK):
            _delete_leftovers(self._directory)
            self._lock.release()
            _delete_if_empty(self._directory)

    def new_file(self, content: bytes = b"") -> Path:
        """Make a file and return it; raises OSError for want of room."""
        self.reserve(len(content))
        path = self._directory / str(next(self._count))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        return path

    def delete(self, path: Path, size_in_bytes: int) -> None:
        """Delete a file of that size."""
        self._size_in_bytes -= size_in_bytes
        path.unlink(missing_ok=True)

    def reserve(self, size_in_bytes: int) -> None:
        """Count a growth of the contents before it is made; raises OSError for want of room."""
        if size_in_bytes > 0 and self._size_in_bytes + size_in_bytes > LIMIT_BYTES:
            raise OSError(
                errno.ENOSPC, f"edits of frozen datasets take at most {LIMIT_BYTES} bytes"
            )
        self._size_in_bytes += size_in_bytes

    def has_note(self, path: Path) -> bool:
        """Return whether the disk says that the content of a file is not sent."""
        return path in self._noted

    def note(self, path: Path, note: Note) -> None:
        """Say that the content of a file is not sent; does not wait for the disk."""
        with self._notes_lock:
            write_unsynced(_note_of(path), note.to_json().encode("utf-8"))
            self._noted.add(path)

    def secure(self, path: Path, note: Note, is_current: Callable[[], bool]) -> None:
        """Have the content of a file on the disk, then its note; waits for that.

        A note that was taken away in between, or is not current then, is left out.
        """
        sync_file(path)
        with written_beside(_note_of(path)) as (file, scratch):
            file.write(note.to_json().encode("utf-8"))
            sync_open(file)
            with self._notes_lock:
                if path in self._noted and is_current():
                    os.replace(scratch, _note_of(path))
        self.sync()

    def unnote(self, path: Path) -> None:
        """Say that the content of a file is the server's, or of no use."""
        with self._notes_lock:
            if path in self._noted:
                self._noted.remove(path)
                _note_of(path).unlink(missing_ok=True)

    def sync(self) -> None:
        """Return when the names of files and notes are on the disk; waits for it."""
        sync_directory(self._directory)

    def take_over(self, wanted: Callable[[Note], bool]) -> list[tuple[Path, Note]]:
        """Return the `wanted` edits of dead sessions, this one's from now on; oldest first.

        Of a target that several sessions have changed, those of the session that changed it last,
        and was done with it: the others stay where they are, and are never sent by themselves.
        """
        with locked(self._root / _LOCK), contextlib.ExitStack() as held:
            left = [
                (path, note)
                for directory in subdirectories(self._root)
                if directory != self._directory and self._holds(directory, held)
                for path, note in _notes(directory)
                if wanted(note)
            ]
            left.sort(key=lambda entry: entry[1].changed_at)
            last = {
                _target_of(note): path.parent
                for path, note in sorted(left, key=lambda entry: entry[1].is_complete)
            }
            taken = []
            for path, note in left:
                if last[_target_of(note)] == path.parent:
                    taken.append(self._take(path, note))
                else:
                    _leave(path, note)
        return taken

    def _holds(self, directory: Path, held: contextlib.ExitStack) -> bool:
        """Return whether a session is dead, and can be read here; nobody else takes it then."""
        lock = OwnerLock(directory / _LOCK)
        if not lock.acquire():
            return False
        held.callback(_delete_if_empty, directory)
        held.callback(lock.release)
        if _is_of_a_newer_version(directory):
            return False
        _delete_leftovers(directory)
        return True

    def _take(self, path: Path, note: Note) -> tuple[Path, Note]:
        """Return an edit's content as this session's, and what its note says of it.

        A note outlives a power cut that its content does not: that is no complete change.
        """
        if note.is_complete and note.md5 not in (None, file_digest(path, MD5)):
            note = replace(note, is_complete=False, md5=None)
        new = self._directory / str(next(self._count))
        # In this order, on the disk as well, so that there is one pair at any time.
        write_durably(_note_of(new), note.to_json().encode("utf-8"))
        os.replace(path, new)
        self.sync()
        _note_of(path).unlink()
        self._noted.add(new)
        self._size_in_bytes += new.stat().st_size
        return new, note


def root_of(staging_directory: Path, server: str) -> Path:
    """Return where the mounts of a server keep their edits."""
    return staging_directory / _EDITS / urllib.parse.quote(server, safe="")


def all_unsent(staging_directory: Path) -> Iterator[tuple[str, UnsentEdit]]:
    """Yield the edits that no mount has sent yet, each with its server."""
    for root in sorted(subdirectories(staging_directory / _EDITS)):
        for session in sorted(subdirectories(root)):
            for path, note in _notes(session):
                yield urllib.parse.unquote(root.name), UnsentEdit.of(path, note)


def _notes(session: Path) -> Iterator[tuple[Path, Note]]:
    for noted in named(session, f"*{_NOTE}"):
        path = noted.with_suffix("")
        try:
            note = Note.from_json(noted.read_text("utf-8"))
        except FileNotFoundError:
            continue  # sent just now
        except (OSError, DserverfsError) as error:
            logger.warning("%s: a change that was not sent cannot be read: %s", path, error)
            continue
        if path.exists():
            yield path, note


def _target_of(note: Note) -> tuple[str, str]:
    return note.dataset.uri, note.path


def _leave(path: Path, note: Note) -> None:
    """Have an edit stay in its session, to be shown later, and not be sent by itself."""
    logger.warning(
        "%s: two mounts that have ended changed %s: what the other one wrote before is kept in %s,"
        " and shown by the next mount when the later change is sent",
        note.dataset.uri,
        note.path,
        path,
    )
    overtaken = replace(note, is_complete=False, md5=None, reason=OVERTAKEN)
    write_durably(_note_of(path), overtaken.to_json().encode("utf-8"))


def _is_of_a_newer_version(session: Path) -> bool:
    for noted in named(session, f"*{_NOTE}"):
        try:
            values = parse_json(noted.read_text("utf-8"), "the note")
        except (OSError, ValueError, DserverfsError):
            continue  # `_notes` says so
        version = values.get("format") if isinstance(values, dict) else None
        if isinstance(version, int) and version > FORMAT:
            logger.warning("%s: holds changes that only a newer dserverfs can send", session)
            return True
    return False


def _delete_leftovers(session: Path) -> None:
    """Delete all but pairs of a content and its note."""
    names = {path.name for path in session.iterdir()}
    edits = {name for name in names if f"{name}{_NOTE}" in names}
    for name in names - edits - {f"{name}{_NOTE}" for name in edits} - {_LOCK}:
        (session / name).unlink(missing_ok=True)


def _delete_if_empty(session: Path) -> None:
    if {path.name for path in session.iterdir()} <= {_LOCK}:
        shutil.rmtree(session, ignore_errors=True)


def _note_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{_NOTE}")
