"""What the calls of a mount do with the local files of a frozen dataset, one call at a time."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest

from dserverfs.base.errors import Frozen, NotFound, UsageError
from dserverfs.catalogue.refreshed import loaded
from dserverfs.writing.edits import edits
from dserverfs.writing.edits.local_file import EditHandle
from tests.support.editing import BEFORE, README, WAIT_S, Bench, away, wait_until
from tests.support.quirky_changes import become

pytest_plugins = ["tests.support.resolver_fixtures", "tests.support.edit_fixtures"]

ANNOTATION = ".dtool/annotations/n.json"
OTHER = ".dtool/annotations/m.json"
READER = (4711, 1)
kept = pytest.mark.expects_log("could not be sent")


def close(bench: Bench, handle: EditHandle) -> None:
    bench.edits.release(handle)
    bench.edits.flush(WAIT_S)


# May it be changed?


@pytest.mark.parametrize("path", ["data/hello.txt", "data/new", "data/README.yml", "x/README.yml"])
def test_only_the_top_and_the_metadata_may_be_changed(bench: Bench, path: str) -> None:
    with pytest.raises(Frozen, match="is frozen"):
        bench.edits.require(bench.dataset, path)


def test_reason_why_nothing_can_be_changed_is_told_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(edits, "MAX_REMEMBERED", 2)
    become(bench.quirky, "none")

    with caplog.at_level(logging.INFO):
        for path in (README, README, ".dtool/tags/x", ANNOTATION, README):
            with pytest.raises(Frozen):
                bench.edits.require(bench.dataset, path)

    told = [record.getMessage() for record in caplog.records if "no route" in record.getMessage()]
    assert [message.rpartition(" ")[2] for message in told] == ["README", "tags"]


@pytest.mark.parametrize("path", [".scratch", "data/hello.txt"])
def test_what_is_no_file_that_can_be_changed_is_not_opened(bench: Bench, path: str) -> None:
    with pytest.raises(NotFound, match="nothing at"):
        bench.edits.open_file(bench.dataset, path, os.O_WRONLY)


# Opening


@pytest.mark.parametrize("is_there", [False, True])
def test_file_that_is_cut_off_by_who_only_reads_is_changed(bench: Bench, is_there: bool) -> None:
    if is_there:
        handle = bench.open(README)
        bench.edits.write(handle, b"more: 1\n", 0)

    close(bench, bench.open(README, os.O_RDONLY | os.O_TRUNC))

    assert bench.shows(README) == b""
    if is_there:
        close(bench, handle)
    assert bench.has("readme") == ""


@kept
def test_change_that_waits_is_cut_off_by_who_only_reads(bench: Bench) -> None:
    bench.writes.error = away()
    bench.write(README, b"mine: 1\n")
    bench.writes.error = None

    close(bench, bench.open(README, os.O_RDONLY | os.O_TRUNC))

    assert bench.has("readme") == ""


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_target_that_is_made_is_changed_though_nothing_is_written(bench: Bench, flags: int) -> None:
    bench.rename(README, "README.yml~")

    close(bench, bench.create(README, flags=flags))

    assert bench.has("readme") == ""


@pytest.mark.parametrize("access", [os.O_RDONLY, os.O_WRONLY])
@pytest.mark.parametrize("flag", [0, os.O_TRUNC, os.O_APPEND])
def test_file_that_is_there_is_made_as_open_does_it(bench: Bench, access: int, flag: int) -> None:
    first = bench.open(README)
    bench.edits.write(first, b"first", 0)

    again = bench.create(README, flags=access | flag)
    bench.edits.write(again, b"F", 0)

    expected = {0: b"First", os.O_TRUNC: b"F", os.O_APPEND: b"firstF"}[flag]
    assert bench.shows(README) == expected
    with pytest.raises(FileExistsError):
        bench.create(README, flags=access | flag | os.O_EXCL)
    bench.edits.release(first)
    close(bench, again)
    assert bench.has("readme").encode() == expected


@pytest.mark.parametrize("name", [README, ".scratch"])
@pytest.mark.parametrize("flag", [0, os.O_TRUNC, os.O_APPEND])
def test_file_that_is_made_is_written_as_it_was_opened(bench: Bench, name: str, flag: int) -> None:
    bench.rename(README, "README.yml~")
    handle = bench.create(name, flags=os.O_WRONLY | flag)

    for content in (b"first", b"F"):
        bench.edits.write(handle, content, 0)

    assert bench.shows(name) == (b"firstF" if flag == os.O_APPEND else b"First")
    close(bench, handle)


@pytest.mark.parametrize("mode", [0o600, 0o751, 0o100640])
def test_temporary_file_has_the_mode_that_it_is_made_with_or_given(bench: Bench, mode: int) -> None:
    handle = bench.create(".scratch", mode)
    file = handle.file
    status = bench.edits.status(file)
    assert status is not None
    assert status.mode == mode & 0o7777

    bench.edits.set_mode(bench.dataset, ".scratch", 0o640)
    bench.edits.set_mode(bench.dataset, ".other", 0o600)

    status = bench.edits.status(file)
    assert status is not None
    assert status.mode == 0o640
    close(bench, handle)


@pytest.mark.parametrize("is_local", [True, False])
def test_time_that_a_file_is_given_is_shown(bench: Bench, is_local: bool) -> None:
    handle = bench.open(README) if is_local else None

    bench.edits.set_mtime(bench.dataset, README, 5 * 10**9)

    tree = bench.tree
    shown = loaded(lambda: tree.lookup(tree.ROOT, README))
    assert shown.mtime_ns == 5 * 10**9
    if handle is not None:
        close(bench, handle)


# What somebody else changed


@pytest.mark.parametrize(
    ("reads", "was_edited"),
    [
        (False, False),
        pytest.param(True, False, marks=kept),
        pytest.param(False, True, marks=kept),
        pytest.param(True, True, marks=kept),
    ],
)
def test_process_changes_what_it_has_read(bench: Bench, reads: bool, was_edited: bool) -> None:
    """A content that it read is compared with the server's; one that it did not is replaced."""
    bench.shows(README)
    if was_edited:
        bench.writes.error = away()
        bench.write(README, b"mine: 1\n", os.O_WRONLY)
    if reads:
        bench.edits.was_read(bench.dataset, README, BEFORE, READER)
        bench.edits.was_read(bench.dataset, ".scratch", b"x", READER)
        bench.edits.was_read(bench.dataset, ".dtool/tags/a", b"", READER)
    if was_edited:
        bench.edits.discard(bench.dataset, README)
        bench.writes.error = None
    bench.quirky.described[bench.dataset.uri]["readme"] = "theirs: 1\n"

    handle = bench.edits.open_file(bench.dataset, README, os.O_WRONLY | os.O_TRUNC, READER)
    bench.fill(handle, b"new: 1\n")

    assert bench.has("readme") == ("theirs: 1\n" if reads else "new: 1\n")
    assert bench.shows(README) == b"new: 1\n"
    assert len(bench.edits.unsent()) == reads


# Syncing, removing, renaming


def test_sync_has_the_bytes_on_the_disk_whether_they_are_sent_or_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = bench.create(".scratch")
    bench.edits.write(handle, b"x", 0)
    fsync, synced = os.fsync, list[int]()

    def sync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", sync)
    bench.edits.sync(handle)

    assert synced == [os.fstat(handle.fd).st_ino]
    assert bench.puts() == 0
    close(bench, handle)


def test_annotation_that_is_not_on_the_server_yet_is_removed(bench: Bench) -> None:
    handle = bench.create(OTHER)
    bench.remove(OTHER)
    close(bench, handle)
    assert bench.has("annotations") == {"n": 5}

    with pytest.raises(NotFound, match="nothing at"):
        bench.remove(OTHER)


def test_annotation_that_its_reader_removed_is_made_anew_by_it(bench: Bench) -> None:
    bench.edits.was_read(bench.dataset, ANNOTATION, b"5", READER)
    bench.remove(ANNOTATION)

    bench.fill(bench.edits.create(bench.dataset, ANNOTATION, 0o644, os.O_WRONLY, READER), b"7")

    assert bench.has("annotations") == {"n": 7}


@kept
def test_annotation_that_is_changed_and_removed_is_gone(bench: Bench) -> None:
    bench.writes.error = away()
    bench.write(ANNOTATION, b"6")

    bench.remove(ANNOTATION)

    bench.writes.error = None
    bench.edits.flush(WAIT_S)
    assert bench.has("annotations") == {}
    assert bench.edits.unsent() == []
    assert bench.local_files() == []


def test_target_that_was_moved_away_is_not_there(bench: Bench) -> None:
    bench.rename(ANNOTATION, ".dtool/annotations/n.json~")

    with pytest.raises(NotFound, match="nothing at"):
        bench.remove(ANNOTATION)
    with pytest.raises(NotFound, match="nothing at"):
        bench.rename(ANNOTATION, ".dtool/annotations/.x")

    assert bench.has("annotations") == {"n": 5}


def test_file_that_is_moved_away_and_back_is_not_sent_and_leaves_no_copy(bench: Bench) -> None:
    bench.rename(README, "README.yml~")

    bench.rename("README.yml~", README)

    bench.edits.flush(WAIT_S)
    assert bench.shows(README) == BEFORE
    assert bench.local_files() == []
    assert bench.puts() == 0


@kept
def test_unsent_file_that_is_moved_away_and_back_is_sent_by_itself(bench: Bench) -> None:
    bench.writes.error = away()
    bench.write(README, b"mine: 1\n")
    bench.rename(README, "README.yml~")
    bench.writes.error = None

    bench.rename("README.yml~", README)

    wait_until(lambda: bench.has("readme") == "mine: 1\n")
    assert bench.shows(README) == b"mine: 1\n"


def test_times_of_what_is_moved_away_are_those_that_were_shown(bench: Bench) -> None:
    tree = bench.tree
    before = loaded(lambda: tree.lookup(tree.ROOT, README)).mtime_ns
    bench.rename(README, "README.yml~")
    assert tree.lookup(tree.ROOT, "README.yml~").mtime_ns == before
    bench.rename("README.yml~", README)

    bench.edits.set_mtime(bench.dataset, README, 7 * 10**9)
    bench.rename(README, "README.yml~")

    assert tree.lookup(tree.ROOT, "README.yml~").mtime_ns == 7 * 10**9


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (ANNOTATION, ".dtool/overlays/n.json"),
        (ANNOTATION, ".dtool/tags/n"),
        (ANNOTATION, README),
        (README, ".dtool/dtool"),
        (".dtool/dtool", ".dtool/dtool"),
        (README, README),
        (".dtool/tags/a", ".scratch"),
    ],
)
def test_target_becomes_no_target_of_another_kind(bench: Bench, old: str, new: str) -> None:
    before = bench.quirky.described[bench.dataset.uri].copy()

    with pytest.raises(Frozen, match="cannot become"):
        bench.rename(old, new)

    assert bench.quirky.described[bench.dataset.uri] == before


@kept
@pytest.mark.parametrize("is_local", [True, False])
def test_annotation_takes_the_place_of_another_one(bench: Bench, is_local: bool) -> None:
    if is_local:
        bench.writes.error = away()
        bench.write(ANNOTATION, b"6")
    bench.writes.error = away()
    bench.make(OTHER, b"7")
    bench.writes.error = None

    bench.rename(ANNOTATION, OTHER)
    bench.edits.flush(WAIT_S)

    assert bench.has("annotations") == {"m": 6 if is_local else 5}
    assert bench.edits.unsent() == []
    assert bench.local_files() == []


@pytest.mark.parametrize(
    ("new", "is_there"),
    [
        *((ANNOTATION, True), (OTHER, True), (".scratch", True)),
        *((README, False), (".dtool/annotations/none.json", False), (".other", False)),
    ],
)
def test_rename_that_may_not_replace_looks_where_a_file_may_be(
    bench: Bench, new: str, is_there: bool
) -> None:
    """On the server, not sent yet, temporary; moved away, and nowhere."""
    making = bench.create(OTHER)
    bench.make(".scratch", b"x")
    bench.rename(README, "README.yml~")
    bench.make(".new", b"8")

    if is_there:
        with pytest.raises(FileExistsError):
            bench.rename(".new", new, flags=1)
    else:
        bench.rename(".new", new, flags=1)

    assert bench.shows(".new" if is_there else new) == b"8"
    bench.remove(OTHER)
    close(bench, making)


# Discarding


def test_only_a_closed_change_can_be_discarded(bench: Bench) -> None:
    bench.make(".scratch", b"x")
    for path in (README, ANNOTATION, ".scratch", ".other"):
        with pytest.raises(UsageError, match="nothing unsent"):
            bench.edits.discard(bench.dataset, path)
    handle = bench.open(README)
    with pytest.raises(UsageError, match="is open for writing"):
        bench.edits.discard(bench.dataset, README)
    reading = bench.reads(README)
    close(bench, handle)
    with pytest.raises(UsageError, match="nothing unsent"):
        bench.edits.discard(bench.dataset, README)
    close(bench, reading)


@kept
def test_discarded_change_is_gone_from_the_disk_when_that_returns(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.writes.error = away()
    bench.write(README, b"mine: 1\n")
    session: Any = bench.edits._local._session
    sync, files = session.sync, list[list[str]]()

    def synced() -> None:
        files.append(bench.local_files())
        sync()

    monkeypatch.setattr(session, "sync", synced)
    bench.edits.discard(bench.dataset, README)

    assert files == [[]]
