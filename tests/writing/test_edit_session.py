"""The directory in which one mount keeps its edits, without the edits: room, notes, and its end."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from dserverfs.base.errors import ProtocolError, UsageError
from dserverfs.base.hashes import MD5, digest
from dserverfs.base.local_files import subdirectories
from dserverfs.base.locks import OwnerLock
from dserverfs.writing.edits import journal
from dserverfs.writing.edits.journal import LIMIT_BYTES, EditSession, Note, root_of
from dserverfs.writing.edits.local_file import LocalFile
from tests.support.edit_sessions import NOTE, notes_on_disk, room

pytest_plugins = ["tests.support.edit_fixtures"]


def test_edits_are_for_their_user_alone(file: LocalFile, session: EditSession) -> None:
    file.begin_write(0)

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
    file.begin_write(0)
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
        for times in (1, 2):
            note = replace(NOTE, changed_at=moment_s * times, path=f"{moment_s:.0f}")
            dead.note(dead.new_file(), note)
        dead.note(dead.new_file(), replace(NOTE, changed_at=moment_s, path=f"other {moment_s}"))
        dead.close()
    session = EditSession(root)
    session.open()
    session.note(session.new_file(), NOTE)

    taken = session.take_over(lambda note: "other" not in note.path)

    assert [note.changed_at for _, note in taken] == sorted([*moments, *(2 * s for s in moments)])
    assert session.take_over(lambda note: "other" not in note.path) == []
    rest = session.take_over(lambda note: True)
    assert len(rest) == 4
    assert all("other" in note.path for _, note in rest)
    assert len({path for path, _ in taken + rest}) == 12
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == sorted(
        [living._directory.name, session._directory.name]
    )
    living.close()
    session.close()


def test_session_that_was_never_begun_or_left_nothing_can_be_ended_again(tmp_path: Path) -> None:
    session = EditSession(root_of(tmp_path, "server"))
    session.close()
    session.open()

    for _ in range(2):
        session.close()

    assert not session._directory.exists()


@pytest.mark.expects_log("a change that was not sent cannot be read")
def test_what_is_in_the_way_of_one_change_is_in_the_way_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another's session, a note that is damaged, and one that was sent a moment ago come first."""
    root, numbers = root_of(tmp_path, "server"), itertools.count()
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=next(numbers)))
    monkeypatch.setattr(journal, "subdirectories", lambda path: sorted(subdirectories(path)))
    living, dead, session = EditSession(root), EditSession(root), EditSession(root)
    for each in (session, living, dead):
        each.open()
    dead.note(dead.new_file(b"kept"), NOTE)
    (dead._directory / "0.json").write_text("{")
    (dead._directory / "00.json").symlink_to("missing")
    (dead._directory / "0").write_text("damaged")
    (dead._directory / "00").write_text("sent")
    dead.close()

    ((path, _),) = session.take_over(lambda note: True)

    assert path.read_bytes() == b"kept"
    assert (dead._directory / "0").read_text() == "damaged"
    for each in (session, living):
        each.close()


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
