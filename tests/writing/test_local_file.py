"""A file of an edit: its state, its handles and its notes, without a server."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from dserverfs.base.hashes import MD5, digest
from dserverfs.base.versions import Version
from dserverfs.writing.edits.editable import target_of
from dserverfs.writing.edits.journal import LIMIT_BYTES, EditSession, Note
from dserverfs.writing.edits.local_file import TARGET_MODE, LocalFile
from tests.support.edit_sessions import NOTE, README, WRITER, notes_on_disk, room

pytest_plugins = ["tests.support.edit_fixtures"]


def change(file: LocalFile, content: bytes) -> None:
    file.truncate(0)
    file.begin_write(len(content))
    file.local.write_bytes(content)


# Its state


def test_only_a_target_with_changes_that_were_not_sent_is_unsent(
    file: LocalFile, session: EditSession
) -> None:
    assert not file.is_unsent
    change(file, b"after")
    assert file.is_unsent

    target = file.target
    assert target is not None
    sent = file.change_of(target, None, None)
    file.was_sent(sent)
    assert not file.is_unsent
    assert not session.has_note(file.local)
    change(file, b"later")
    assert file.is_unsent

    file.rename(".scratch")
    assert not file.is_unsent
    file.rename(None)
    assert not file.is_unsent


def test_change_during_the_sending_keeps_its_note(file: LocalFile, session: EditSession) -> None:
    change(file, b"after")
    assert file.target is not None
    sent = file.change_of(file.target, None, None)
    change(file, b"later")

    file.was_sent(sent)

    assert file.is_unsent
    (note,) = notes_on_disk(session)
    assert not note.is_complete


def test_target_has_the_mode_of_one_and_a_temporary_file_its_own(file: LocalFile) -> None:
    file.set_mode(0o751)
    assert file.status()[:3] == (TARGET_MODE, 6, 1)

    file.rename(".scratch")
    assert file.status()[:3] == (0o751, 6, 1)
    file.rename(None)
    assert file.status()[:3] == (0o751, 6, 0)
    file.set_mtime(5 * 10**9)
    assert file.status().on_disk.st_mtime_ns == 5 * 10**9


def test_what_was_a_target_is_a_copy_once_the_target_has_another_content(
    file: LocalFile, session: EditSession
) -> None:
    change(file, b"after")
    target = file.target
    assert target is not None
    file.rename("README.yml~")
    file.move_away(target, 3)
    assert file.moved is not None
    assert (file.moved.target, file.moved.version, file.moved.changes) == (target, 3, file.changes)

    file.supersede()

    assert file.moved is None
    assert notes_on_disk(session) == []


def test_target_again_it_was_not_moved_away(file: LocalFile) -> None:
    assert file.target is not None
    file.move_away(file.target, 3)

    file.rename("README.yml~")
    assert file.moved is not None
    assert file.note.path == README
    file.rename(README)

    assert file.moved is None
    assert file.target == target_of(README)


@pytest.mark.parametrize(
    "is_complete",
    [True, pytest.param(False, marks=pytest.mark.expects_log("its mount ended while it was"))],
)
def test_resumed_one_is_unsent_and_says_if_it_was_not_complete(
    file: LocalFile, session: EditSession, is_complete: bool
) -> None:
    file.note = replace(NOTE, is_complete=is_complete)

    file.resume()

    assert file.is_unsent
    assert (file.note.reason is None) == is_complete
    assert len(notes_on_disk(session)) == (not is_complete)


def test_version_it_began_with_follows_only_changes_of_that_one(file: LocalFile) -> None:
    first, second, third = Version("a: 1"), Version("a: 2"), Version("a: 3")
    file.note = replace(file.note, read=first)

    file.follow(second, third)
    assert file.note.read == first
    file.follow(first, third)
    assert file.note.read == third


# Its handles


def test_handles_count_as_long_as_they_are_open(file: LocalFile) -> None:
    before = os.listdir("/proc/self/fd")
    reads, writes = file.open(os.O_RDONLY, (5, 1)), file.open(os.O_WRONLY | os.O_APPEND, WRITER)

    assert (file.handles, file.writers, file.writer) == (2, 1, WRITER)
    assert (reads.is_writable, writes.is_writable) == (False, True)
    assert (reads.appends, writes.appends) == (False, True)
    assert os.pread(writes.fd, 9, 0) == b"before"  # the page cache reads what is written in part
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(reads.fd, b"x")

    file.close(writes)
    assert (file.handles, file.writers) == (1, 0)
    file.close(reads)
    assert (file.handles, file.writers) == (0, 0)
    assert os.listdir("/proc/self/fd") == before


def test_opened_for_reading_it_is_not_written_by_that_process(file: LocalFile) -> None:
    file.close(file.open(os.O_RDONLY, (5, 1)))

    assert file.writer is None


def test_truncated_when_opened_it_is_changed(file: LocalFile, session: EditSession) -> None:
    file.close(file.open(os.O_WRONLY | os.O_TRUNC, WRITER))

    assert file.local.read_bytes() == b""
    assert file.size_in_bytes == 0
    assert (file.changes, file.is_unsent, len(notes_on_disk(session))) == (1, True, 1)


def test_writers_that_will_not_say_that_they_are_done_are_done(
    file: LocalFile, session: EditSession
) -> None:
    file.open(os.O_WRONLY | os.O_TRUNC, WRITER)
    file.begin_write(5)
    file.local.write_bytes(b"after")

    file.close_all()

    assert file.writers == 0
    (note,) = notes_on_disk(session)
    assert (note.is_complete, note.md5) == (True, digest(MD5, b"after"))


def test_without_a_name_and_a_handle_its_bytes_go_once(
    file: LocalFile, session: EditSession
) -> None:
    free = room(session)
    handle = file.open(os.O_RDONLY)
    file.rename(None)
    file.delete_if_gone()
    assert file.local.exists()

    file.close(handle)
    for _ in range(2):
        file.delete_if_gone()

    assert not file.local.exists()
    assert room(session) == free + 6


# Its changes, and the notes of them


def test_note_is_on_the_disk_before_the_first_change_and_tells_of_no_other(
    file: LocalFile, session: EditSession
) -> None:
    assert notes_on_disk(session) == []
    file.begin_write(3)
    (first,) = notes_on_disk(session)
    assert (first.is_complete, first.md5, first.path) == (False, None, README)
    assert first.changed_at > NOTE.changed_at
    file.begin_write(0)
    assert notes_on_disk(session) == [first]

    file.complete()
    (complete,) = notes_on_disk(session)
    assert (complete.is_complete, complete.md5) == (True, digest(MD5, b"before"))
    file.begin_write(0)
    (again,) = notes_on_disk(session)
    assert (again.is_complete, again.md5) == (False, None)
    assert file.changes == 3


def test_temporary_file_has_no_note(file: LocalFile, session: EditSession) -> None:
    file.rename(".scratch")
    change(file, b"x")
    file.was_refused("why")

    assert notes_on_disk(session) == []


def test_refusal_is_on_the_disk_until_it_is_sent(file: LocalFile, session: EditSession) -> None:
    change(file, b"after")
    file.was_refused("the server is away")
    assert [note.reason for note in notes_on_disk(session)] == ["the server is away"]

    assert file.target is not None
    file.was_sent(file.change_of(file.target, None, WRITER))

    assert file.note.reason is None
    assert file.note.read == file.target.version_of(b"after")
    assert file.writer == WRITER
    assert notes_on_disk(session) == []


@pytest.mark.parametrize("grow", ["write", "truncate"])
def test_what_there_is_no_room_for_is_no_change(
    file: LocalFile, session: EditSession, grow: str
) -> None:
    change = file.begin_write if grow == "write" else file.truncate
    with pytest.raises(OSError, match="at most"):
        change(LIMIT_BYTES + 1)

    assert (file.size_in_bytes, file.changes, notes_on_disk(session)) == (6, 0, [])
    assert file.local.read_bytes() == b"before"
    file.begin_write(LIMIT_BYTES)  # there is room for as much as is allowed
    file.begin_write(3)
    assert file.size_in_bytes == LIMIT_BYTES
    file.truncate(2)
    assert file.size_in_bytes == 2
    assert room(session) == LIMIT_BYTES - 2


def test_part_that_is_missing_is_no_loss_once_all_is_written_anew(file: LocalFile) -> None:
    file.spoil()
    file.truncate(3)
    assert file.is_spoilt

    file.truncate(0)

    assert not file.is_spoilt


@pytest.mark.expects_log("not noted that it is complete")
def test_disk_that_cannot_note_that_it_is_complete_has_it_as_incomplete(
    file: LocalFile, session: EditSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.begin_write(0)

    def fail(path: Path, note: Note) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(session, "note", fail)
        file.complete()

    assert [note.is_complete for note in notes_on_disk(session)] == [False]


# Having it on the disk


@pytest.mark.parametrize("meanwhile", ["changed", "withdrawn", "read by another", "nothing"])
def test_note_that_is_secured_is_not_put_over_a_later_one(
    file: LocalFile, session: EditSession, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    change(file, b"after")
    file.complete()
    secured = file.note
    fsync = os.fsync

    def sync(fd: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        if meanwhile == "changed":
            file.begin_write(0)
        elif meanwhile == "withdrawn":
            file.withdraw()
        elif meanwhile == "read by another":
            file.note = replace(file.note, read=Version("x: 1"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", sync)

    file.secure()

    after = {"changed": [file.note], "withdrawn": []}.get(meanwhile, [secured])
    assert notes_on_disk(session) == after


@pytest.mark.expects_log("may not outlast a power cut")
def test_disk_that_cannot_be_waited_for_is_told_of_and_a_file_that_is_gone_is_not(
    file: LocalFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    change(file, b"after")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        file.secure()
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1

    file.local.unlink()
    file.secure()

    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
