"""A file of an edit, and the directory it is in: without a server and without the edits' names."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dserverfs.base.errors import ProtocolError, UsageError
from dserverfs.base.hashes import MD5, digest
from dserverfs.base.locks import OwnerLock
from dserverfs.base.model import Dataset
from dserverfs.writing.edits.editable import target_of
from dserverfs.writing.edits.journal import LIMIT_BYTES, EditSession, Note, root_of
from dserverfs.writing.edits.local_file import TARGET_MODE, LocalFile

README = "README.yml"
WRITER = (7, 1)
DATASET = Dataset.from_json(
    {"uri": "s3://b/u", "base_uri": "s3://b", "uuid": str(uuid.uuid4()), "name": "n"}
    | {"creator_username": "c", "created_at": 1.0, "frozen_at": 1.0}
)
NOTE = Note(DATASET, README, is_complete=False, changed_at=1.0)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[EditSession]:
    with_umask = os.umask(0)
    session = EditSession(root_of(tmp_path, "server"))
    session.open()
    yield session
    session.close()
    os.umask(with_umask)


@pytest.fixture
def file(session: EditSession) -> LocalFile:
    """A README that nobody changed yet."""
    local = session.new_file(b"before")
    file = LocalFile(session, local, NOTE, size_in_bytes=6, mode=0o600)
    file.rename(README)
    return file


def notes_on_disk(session: EditSession) -> list[Note]:
    directory = session._directory
    return [Note.from_json(path.read_text()) for path in sorted(directory.glob("*.json"))]


def change(file: LocalFile, content: bytes) -> None:
    file.truncate(0)
    file.begin_write(len(content))
    file.local.write_bytes(content)


def room(session: EditSession) -> int:
    """Return how many bytes more there is room for."""
    free = LIMIT_BYTES - session._size_in_bytes
    session.reserve(free)
    with pytest.raises(OSError, match="at most") as raised:
        session.reserve(1)
    assert raised.value.errno == errno.ENOSPC
    session.reserve(0)
    session.reserve(-free)
    return free


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
    first, second, third = "a: 1", "a: 2", "a: 3"
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
    file.begin_change()
    (first,) = notes_on_disk(session)
    assert (first.is_complete, first.md5, first.path) == (False, None, README)
    assert first.changed_at > NOTE.changed_at
    file.begin_change()
    assert notes_on_disk(session) == [first]

    file.complete()
    (complete,) = notes_on_disk(session)
    assert (complete.is_complete, complete.md5) == (True, digest(MD5, b"before"))
    file.begin_change()
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
    file.begin_change()

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
            file.begin_change()
        elif meanwhile == "withdrawn":
            file.withdraw()
        elif meanwhile == "read by another":
            file.note = replace(file.note, read=target_of(README).version_of(b"x: 1"))  # type: ignore[union-attr]
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


# The directory of a mount


def test_edits_are_for_their_user_alone(file: LocalFile, session: EditSession) -> None:
    file.begin_change()

    assert session._directory.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in session._directory.iterdir()}
    assert set(modes.values()) == {0o600}
    assert len(modes) == 3


def test_new_file_is_counted_before_it_is_made(session: EditSession) -> None:
    with pytest.raises(OSError, match="at most"):
        session.new_file(bytes(LIMIT_BYTES + 1))
    assert [path.name for path in session._directory.iterdir()] == ["lock"]

    first, second = session.new_file(b"one"), session.new_file(b"two")

    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")
    assert room(session) == LIMIT_BYTES - 6
    session.delete(first, 3)
    session.delete(first, 0)
    assert not first.exists()
    assert room(session) == LIMIT_BYTES - 3


def test_file_of_another_is_never_written_over(session: EditSession) -> None:
    first = session.new_file(b"one")
    (first.parent / str(int(first.name) + 1)).write_bytes(b"another's")

    with pytest.raises(FileExistsError):
        session.new_file(b"two")


def test_full_session_takes_what_does_not_grow(session: EditSession) -> None:
    session._size_in_bytes = LIMIT_BYTES + 5  # taken over from several mounts

    session.reserve(0)
    session.reserve(-3)
    with pytest.raises(OSError, match="at most"):
        session.reserve(1)


def test_note_that_is_taken_away_or_gone_is_gone(file: LocalFile, session: EditSession) -> None:
    file.withdraw()
    file.begin_change()
    assert session.has_note(file.local)

    next(session._directory.glob("*.json")).unlink()
    file.withdraw()

    assert not session.has_note(file.local)
    file.withdraw()


def test_session_that_ends_leaves_what_is_not_sent_and_nothing_else(
    tmp_path: Path,
) -> None:
    session = EditSession(root_of(tmp_path, "server"))
    session.open()
    kept, temporary = session.new_file(b"kept"), session.new_file(b"temporary")
    session.note(kept, NOTE)

    session.close()
    session.close()

    assert {path.name for path in kept.parent.iterdir()} == {"lock", kept.name, f"{kept.name}.json"}
    assert not temporary.exists()
    later = EditSession(root_of(tmp_path, "server"))
    later.open()
    ((path, note),) = later.take_over(lambda note: True)
    assert (path.read_bytes(), note) == (b"kept", NOTE)
    assert not kept.parent.exists()
    assert later.has_note(path)
    assert room(later) == LIMIT_BYTES - 4
    later.unnote(path)
    later.close()
    assert not path.parent.exists()


def test_changes_of_all_dead_sessions_are_taken_over_oldest_first_and_once(tmp_path: Path) -> None:
    root = root_of(tmp_path, "server")
    living = EditSession(root)
    living.open()
    living.note(living.new_file(), NOTE)
    moments = [5.0, 2.0, 9.0, 1.0]
    for moment_s in moments:
        dead = EditSession(root)
        dead.open()
        dead.note(dead.new_file(), replace(NOTE, changed_at=moment_s))
        dead.note(dead.new_file(), replace(NOTE, changed_at=moment_s, path="other"))
        dead.close()
    session = EditSession(root)
    session.open()
    session.note(session.new_file(), NOTE)

    taken = session.take_over(lambda note: note.path == README)

    assert [note.changed_at for _, note in taken] == sorted(moments)
    assert session.take_over(lambda note: note.path == README) == []
    rest = session.take_over(lambda note: True)
    assert [note.path for _, note in rest] == 4 * ["other"]
    assert len({path for path, _ in taken + rest}) == 8
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == sorted(
        [living._directory.name, session._directory.name]
    )
    living.close()
    session.close()


def test_directory_that_can_hold_no_session_is_told_of(tmp_path: Path) -> None:
    root = root_of(tmp_path, "server")
    root.mkdir(parents=True)
    (root / "lock").mkdir()

    with pytest.raises(UsageError, match="cannot hold edits of datasets"):
        EditSession(root).open()


@pytest.mark.parametrize(
    ("is_complete", "md5", "stays_complete"),
    [
        (True, digest(MD5, b"content"), True),
        (True, digest(MD5, b"other"), False),
        (True, None, True),  # of 0.1.0
        (False, digest(MD5, b"other"), False),
        (False, None, False),
    ],
)
def test_change_is_complete_if_its_content_is_the_noted_one(
    tmp_path: Path, is_complete: bool, md5: str | None, stays_complete: bool
) -> None:
    dead, session = EditSession(root_of(tmp_path, "s")), EditSession(root_of(tmp_path, "s"))
    dead.open()
    noted = replace(NOTE, is_complete=is_complete, md5=md5)
    dead.note(dead.new_file(b"content"), noted)
    dead.close()
    session.open()

    ((_, note),) = session.take_over(lambda note: True)

    assert note.is_complete == stays_complete
    assert note == (noted if stays_complete == is_complete else replace(NOTE, md5=None))
    assert notes_on_disk(session) == [note]
    session.close()


def test_note_of_another_version_is_not_read_as_one_of_this() -> None:
    with pytest.raises(ProtocolError, match="another version"):
        Note.from_json(NOTE.to_json().replace('"format": 1', '"format": 2'))


def test_lock_of_a_session_is_held_for_as_long_as_it_lives(session: EditSession) -> None:
    assert not OwnerLock(session._directory / "lock").acquire()
