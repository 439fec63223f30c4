"""The local files of one dataset: under which paths and numbers, and what they stand for."""

from __future__ import annotations

import itertools
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from dserverfs.base.errors import NotFound
from dserverfs.writing.edits.editable import Target, target_of
from dserverfs.writing.edits.journal import OVERTAKEN, EditSession, all_unsent, root_of
from dserverfs.writing.edits.local_file import Change, LocalFile
from dserverfs.writing.edits.view import EditedFiles, LocalEdits, Shown
from tests.support.edit_sessions import DATASET, NOTE, README, WRITER
from tests.support.patience import LATE_S

pytest_plugins = ["tests.support.edit_fixtures"]

BACKUP, SCRATCH, TAG = "README.yml~", ".scratch", ".dtool/tags/t"
OTHER = ".dtool/annotations/a.json"


class Files:
    """The view, and files that are made for it."""

    def __init__(self, session: EditSession) -> None:
        self.session = session
        self.view = EditedFiles(DATASET)

    def new(self, content: bytes = b"content") -> LocalFile:
        local = self.session.new_file(content)
        return LocalFile(self.session, local, NOTE, size_in_bytes=len(content), mode=0o600)

    def placed(self, path: str) -> LocalFile:
        file = self.new()
        self.view.place(file, path)
        return file

    def number(self, path: str) -> int:
        number = self.view.shown(path).number
        assert number is not None
        return number


@pytest.fixture
def files(session: EditSession) -> Files:
    return Files(session)


def target(path: str) -> Target:
    found = target_of(path)
    assert found is not None
    return found


def change_of(path: str, content: bytes = b"sent") -> Change:
    return Change(target(path), content, 1, None, WRITER)


# Names and numbers


def test_names_are_those_right_in_a_directory(files: Files) -> None:
    for path in (SCRATCH, BACKUP, OTHER, ".dtool/.x", ".dtool/annotations/.y"):
        files.placed(path)

    assert files.view.names("") == [SCRATCH, BACKUP]
    assert files.view.names(".dtool") == [".x"]
    assert files.view.names(".dtool/annotations") == ["a.json", ".y"]
    assert files.view.names("annotations") == []
    files.view.check()


def test_file_that_was_never_touched_is_the_servers(files: Files) -> None:
    assert files.view.shown(README) == Shown()
    assert files.view.with_number(0) is None
    with pytest.raises(NotFound):
        files.view.path_of(0)


@pytest.mark.parametrize("path", [SCRATCH, OTHER])
def test_file_that_is_placed_where_it_is_stays(files: Files, path: str) -> None:
    file = files.placed(path)
    number = files.number(path)

    files.view.place(file, path)

    assert files.view.shown(path) == Shown(file, number)
    assert file.local.exists()
    files.view.check()


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("path", [SCRATCH, OTHER])
def test_number_of_a_file_that_was_replaced_is_its_own_while_it_is_open(
    files: Files, path: str, is_open: bool
) -> None:
    first = files.placed(path)
    handle = first.open(os.O_RDONLY) if is_open else None
    before = files.number(path)

    second = files.placed(path)
    now = files.number(path)

    assert now != before
    assert files.view.with_number(now) is second
    assert files.view.with_number(before) is (first if is_open else None)
    if handle is not None:
        first.close(handle)
        files.view.forget_if_gone(first)
    assert files.view.with_number(before) is None
    assert not first.local.exists()
    files.view.check()


@pytest.mark.parametrize("is_open", [True, False])
def test_target_that_is_discarded_keeps_its_number_for_the_servers(
    files: Files, is_open: bool
) -> None:
    """Unless a program has the file open still: then that has the number."""
    file = files.placed(README)
    number = files.number(README)
    file.begin_write(3)
    assert files.session.has_note(file.local)
    handle = file.open(os.O_RDONLY) if is_open else None

    files.view.discard(file)

    assert files.view.shown(README) == Shown(None, None if is_open else number)
    assert files.view.with_number(number) is (file if is_open else None)
    assert not files.session.has_note(file.local)
    assert file.local.exists() is is_open
    if handle is not None:
        file.close(handle)
        files.view.forget_if_gone(file)
        assert files.view.with_number(number) is None


def test_target_without_a_number_of_its_own_is_discarded_while_it_is_open(files: Files) -> None:
    file = files.new()
    files.view.edit(file, README)
    handle = file.open(os.O_RDONLY)

    files.view.discard(file)

    assert files.view.shown(README) == Shown()
    assert os.pread(handle.fd, 100, 0) == b"content"
    file.close(handle)


def test_temporary_file_that_is_discarded_leaves_no_number(files: Files) -> None:
    file = files.placed(SCRATCH)
    number = files.number(SCRATCH)

    files.view.discard(file)

    assert files.view.shown(SCRATCH) == Shown()
    assert files.view.with_number(number) is None
    with pytest.raises(NotFound):
        files.view.path_of(number)


# What is moved away


def moved_away(files: Files) -> LocalFile:
    file = files.new()
    files.view.edit(file, README)
    files.view.move_away(file, target(README), BACKUP)
    return file


def test_target_is_hidden_until_there_is_a_new_one(files: Files) -> None:
    backup = moved_away(files)
    assert files.view.shown(README).moved is backup
    assert files.view.shown(BACKUP).file is backup

    new = files.new()
    files.view.edit(new, README)
    assert files.view.shown(README)[:1] == (new,)
    files.view.settle(new)

    assert files.view.shown(README).moved is None, "the server's is shown, and the backup beside"
    assert files.view.shown(BACKUP).file is backup


@pytest.mark.parametrize("to", [README, OTHER])
def test_target_is_shown_again_when_its_file_is_one_again_or_gone(files: Files, to: str) -> None:
    backup = moved_away(files)

    files.view.place(backup, to)

    assert files.view.shown(README).moved is None
    other = moved_away(files)
    files.view.discard(other)
    assert files.view.shown(README).moved is None


@pytest.mark.parametrize(
    ("does", "is_the_same"),
    [("nothing", True), ("sent", False), ("other sent", True), ("changed", False)],
)
def test_file_moves_back_if_neither_it_nor_the_target_has_changed(
    files: Files, does: str, is_the_same: bool
) -> None:
    files.view.server_has(change_of(README))
    backup = moved_away(files)
    if does == "sent":
        files.view.server_has(change_of(README))
    elif does == "other sent":
        files.view.server_has(change_of(OTHER, b"5"))
    elif does == "changed":
        backup.begin_write(1)

    assert files.view.moves_back(backup, target(README)) is is_the_same
    assert not files.view.moves_back(backup, target(OTHER))
    assert (backup.moved is None) == (does == "sent"), "then it is a mere copy"


# What was sent


@pytest.mark.parametrize(("path", "content"), [(README, b"a: 1\n"), (OTHER, b"5"), (TAG, b"")])
def test_writer_has_read_what_it_wrote(files: Files, path: str, content: bytes) -> None:
    version = target(path).version_of(content)
    assert (version is None) == (path == TAG)

    files.view.server_has(change_of(path, content))

    assert files.view.versions.last_read(path, WRITER) == version


def test_file_that_is_being_changed_goes_on_from_what_was_sent(files: Files) -> None:
    file, other = files.new(), files.new()
    files.view.edit(file, README)
    files.view.edit(other, OTHER)

    files.view.server_has(change_of(README, b"a: 1\n"))

    assert file.note.read == target(README).version_of(b"a: 1\n")
    assert other.note.read is None


def sent(files: Files, path: str) -> tuple[LocalFile, Change]:
    file = files.new(b"5")
    files.view.edit(file, path)
    file.begin_write(1)
    return file, file.change_of(target(path), None, WRITER)


def test_file_that_was_sent_gives_way_to_the_servers_with_its_time(files: Files) -> None:
    file, change = sent(files, OTHER)
    file.set_mtime(7 * 10**9)

    files.view.was_sent(file, change)

    assert files.view.shown(OTHER) == Shown(None, None, 7 * 10**9)
    assert not file.local.exists()
    assert files.view.versions.last_read(OTHER, WRITER) == target(OTHER).version_of(b"5")


@pytest.mark.parametrize("why", ["written to", "open for writing", "moved away", "another's"])
def test_file_that_goes_on_stays_though_it_was_sent(files: Files, why: str) -> None:
    file, change = sent(files, OTHER)
    handle = file.open(os.O_WRONLY) if why == "open for writing" else None
    if why == "written to":
        file.begin_write(2)
    elif why == "moved away":
        files.view.move_away(file, target(OTHER), ".dtool/annotations/.x")
    elif why == "another's":
        files.view.place(file, README)

    files.view.was_sent(file, change)

    assert file.path is not None
    assert files.view.at(file.path) is file
    assert file.local.exists()
    assert file.is_unsent is (why in ("written to", "another's"))
    if handle is not None:
        file.close(handle)
        files.view.settle(file)
        assert files.view.at(OTHER) is None


def test_file_without_a_name_is_settled_as_it_is(files: Files) -> None:
    file = files.placed(SCRATCH)
    handle = file.open(os.O_RDONLY)
    files.view.discard(file)

    files.view.settle(file)

    assert file.local.exists()
    file.close(handle)
    files.view.forget_if_gone(file)
    files.view.forget_if_gone(file)
    assert not file.local.exists()


# All files of a mount


def leave(root: Path, path: str, moment_s: float, *, is_complete: bool) -> None:
    """Have a mount that has ended leave a change."""
    session = EditSession(root)
    session.open()
    note = replace(NOTE, path=path, changed_at=moment_s, is_complete=is_complete)
    session.note(session.new_file(f"{moment_s:.0f}".encode()), note)
    session.close()


BOTH = [True, False]


@pytest.mark.expects_log("two mounts that have ended", "has changed it later")
@pytest.mark.parametrize(
    ("first", "second", "third"),
    [
        *([*itertools.product(BOTH, BOTH, BOTH)][:-1]),
        pytest.param(False, False, False, marks=pytest.mark.expects_log("mount ended")),
    ],
)
def test_of_changes_of_several_mounts_the_last_is_shown_and_none_is_lost(
    tmp_path: Path, first: bool, second: bool, third: bool
) -> None:
    """But one that was being written counts for less; the others are never sent by themselves."""
    root = root_of(tmp_path, "server")
    left = {b"2": second, b"1": first, b"3": third}
    for content, is_complete in left.items():
        leave(root, README, float(content), is_complete=is_complete)

    is_first = True
    while left:
        edits = LocalEdits(root)
        (file,) = edits.open(lambda dataset: True)

        shown = max(left, key=lambda content: (left[content], content))
        assert file.local.read_bytes() == shown
        assert file.note.is_complete == left.pop(shown)
        assert edits.unsent() == [file]
        assert edits.of(DATASET).at(README) is file
        kept = [edit for _, edit in all_unsent(tmp_path) if edit.local != file.local]
        assert {edit.local.read_bytes() for edit in kept} == {*left}
        assert {edit.note.reason for edit in kept} <= {OVERTAKEN}
        if not is_first:
            assert file.note.reason == OVERTAKEN
        edits.of(DATASET).discard(file)
        edits.close()
        left, is_first = dict.fromkeys(left, False), False


@pytest.mark.expects_log("mount ended")
def test_of_two_changes_of_one_mount_the_later_one_counts_unless_it_is_half(
    tmp_path: Path,
) -> None:
    """As of vim, which moves a file away and writes another one."""
    for first, second in itertools.product(BOTH, BOTH):
        root = root_of(tmp_path / f"{first}{second}", "server")
        session = EditSession(root)
        session.open()
        for content, is_complete in ((b"1", first), (b"2", second)):
            note = replace(NOTE, changed_at=float(content), is_complete=is_complete)
            session.note(session.new_file(content), note)
        session.close()
        edits = LocalEdits(root)

        (*_, file) = edits.open(lambda dataset: True)

        waits = first and not second
        assert file.local.read_bytes() == (b"1" if waits else b"2")
        assert edits.of(DATASET).at(README) is file
        edits.close()
        kept = sorted(edit.local.read_bytes() for _, edit in all_unsent(root.parent.parent))
        assert kept == ([b"1", b"2"] if waits else [b"2"])


@pytest.mark.parametrize(
    ("path", "is_wanted"), [(README, True), (README, False), ("data/none", True), (OTHER, True)]
)
def test_only_what_is_wanted_and_a_target_is_taken_over(
    tmp_path: Path, path: str, is_wanted: bool
) -> None:
    root = root_of(tmp_path, "server")
    leave(root, path, 1.0, is_complete=True)
    edits = LocalEdits(root)

    files = edits.open(lambda dataset: is_wanted)

    assert [file.path for file in files] == [path] * (is_wanted and path != "data/none")
    edits.close()
    assert [edit.note.path for _, edit in all_unsent(tmp_path)] == [path]


def test_file_without_a_name_is_gone_with_its_last_handle(tmp_path: Path) -> None:
    edits = LocalEdits(root_of(tmp_path, "server"))
    edits.open(lambda dataset: True)
    file = edits.new_file(DATASET, b"x")
    edits.of(DATASET).place(file, SCRATCH)
    handles = [file.open(os.O_RDONLY) for _ in range(2)]
    edits.of(DATASET).discard(file)

    with edits.lock:
        edits.close_file(handles[0])
        assert file.local.exists()
        edits.close_file(handles[1])

    assert not file.local.exists()
    edits.close()


def test_only_a_changed_target_is_unsent(tmp_path: Path) -> None:
    edits = LocalEdits(root_of(tmp_path, "server"))
    edits.open(lambda dataset: True)
    view = edits.of(DATASET)
    changed, same, temporary = (edits.new_file(DATASET, b"x") for _ in range(3))
    view.edit(changed, README)
    view.edit(same, OTHER)
    view.place(temporary, SCRATCH)
    for file in (changed, temporary):
        file.begin_write(1)

    assert edits.unsent() == [changed]
    assert edits.known(DATASET) is view is edits.of(DATASET)
    edits.close()


@pytest.mark.parametrize("closes", [True, False])
def test_closing_is_waited_for_as_long_as_it_may_take(tmp_path: Path, closes: bool) -> None:
    edits = LocalEdits(root_of(tmp_path, "server"))
    edits.open(lambda dataset: True)
    file, other = edits.new_file(DATASET, b"x"), edits.new_file(DATASET, b"x")
    edits.of(DATASET).edit(file, README)
    edits.of(DATASET).edit(other, OTHER)
    handle = file.open(os.O_WRONLY | os.O_TRUNC)
    other.begin_write(1)
    waiting = threading.Thread(target=edits.wait_until_closed, args=(LATE_S if closes else 0.1,))

    waiting.start()
    waiting.join(0.02)
    assert waiting.is_alive()
    if closes:
        with edits.lock:
            edits.close_file(handle)
    waiting.join(LATE_S)

    assert not waiting.is_alive()
    edits.close()
    if not closes:
        os.close(handle.fd)
