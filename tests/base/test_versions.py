"""What somebody else has changed since it was read is not undone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from dserverfs.base.errors import ChangedMeanwhile
from dserverfs.base.versions import Reader, VersionsRead, version_of_json, version_of_text
from dserverfs.catalogue.catalogue import FRESH_S
from dserverfs.writing.edits.journal import all_unsent
from tests.support.editing import BEFORE, README, WAIT_S, Bench
from tests.support.quirky_changes import become, put_readme

pytest_plugins = ["tests.support.resolver_fixtures", "tests.support.edit_fixtures"]

EDITOR: Reader = (101, 1)
OTHER: Reader = (102, 1)
ANNOTATION, OVERLAY = ".dtool/annotations/n.json", ".dtool/overlays/o.json"
THEIRS = {README: b"theirs: 1\n", ANNOTATION: b'"theirs"'}
OURS = {README: b"ours: 1\n", ANNOTATION: b'"ours"'}
PATHS = pytest.mark.parametrize("path", [README, ANNOTATION])


def read(bench: Bench, path: str, reader: Reader) -> None:
    bench.edits.was_read(bench.dataset, path, bench.shows(path), reader)


def by_rename(bench: Bench, path: str, reader: Reader) -> None:
    scratch = path.rpartition("/")[0] + "/.scratch" if "/" in path else ".scratch"
    bench.make(scratch, OURS[path])
    bench.edits.rename(bench.dataset, scratch, path, 0, reader)


def by_writing_and_fsync(bench: Bench, path: str, reader: Reader) -> None:
    bench.edits.require(bench.dataset, path)
    flags = os.O_WRONLY | os.O_TRUNC
    handle = bench.edits.open_file(bench.dataset, path, flags, reader)
    bench.edits.write(handle, OURS[path], 0)
    try:
        bench.edits.sync(handle)
    finally:
        bench.edits.release(handle)
        bench.edits.flush(WAIT_S)


Way = Callable[[Bench, str, Reader], None]
WAYS = pytest.mark.parametrize("save", [by_rename, by_writing_and_fsync])
# What was written in place is kept when it is refused; a file that is not renamed is the editor's.
REFUSED_WAYS = pytest.mark.parametrize(
    "save",
    [by_rename, pytest.param(by_writing_and_fsync, marks=pytest.mark.expects_log("not be sent"))],
)


def colleague(bench: Bench, path: str) -> None:
    """Change it elsewhere."""
    if path == README:
        bench.writes.put_readme(bench.dataset, THEIRS[path])
    else:
        bench.writes.put_annotation(bench.dataset, "n", json.loads(THEIRS[path]))


def on_server(bench: Bench, path: str) -> Any:
    return bench.has("readme") if path == README else bench.has("annotations")["n"]


def value(path: str, content: bytes) -> Any:
    return content.decode() if path == README else json.loads(content)


@PATHS
@REFUSED_WAYS
def test_save_does_not_undo_what_a_colleague_changed_meanwhile(
    bench: Bench, path: str, save: Way
) -> None:
    read(bench, path, EDITOR)
    colleague(bench, path)

    with pytest.raises(ChangedMeanwhile, match="by somebody else since it was read"):
        save(bench, path, EDITOR)

    assert on_server(bench, path) == value(path, THEIRS[path])


@PATHS
@WAYS
def test_who_reads_it_then_and_changes_that_is_heard(bench: Bench, path: str, save: Way) -> None:
    read(bench, path, EDITOR)
    colleague(bench, path)
    bench.ahead_s += 2 * FRESH_S
    read(bench, path, EDITOR)

    save(bench, path, EDITOR)
    save(bench, path, EDITOR)  # and again, without reading what it has written itself

    assert on_server(bench, path) == value(path, OURS[path])


@REFUSED_WAYS
def test_what_another_process_reads_is_no_news_to_the_editor(bench: Bench, save: Way) -> None:
    read(bench, README, EDITOR)
    colleague(bench, README)
    bench.ahead_s += 2 * FRESH_S
    read(bench, README, OTHER)

    with pytest.raises(ChangedMeanwhile):
        save(bench, README, EDITOR)
    if save is by_writing_and_fsync:
        bench.edits.discard(bench.dataset, README)
    by_rename(bench, README, OTHER)

    assert on_server(bench, README) == OURS[README].decode()


@pytest.mark.parametrize("reader", [OTHER, None])
@pytest.mark.expects_log("could not be sent")
def test_copy_that_was_changed_and_copied_back_is_compared_too(
    bench: Bench, reader: Reader
) -> None:
    read(bench, README, EDITOR)
    colleague(bench, README)

    with pytest.raises(ChangedMeanwhile):
        by_writing_and_fsync(bench, README, reader)


@WAYS
def test_what_nobody_read_here_is_replaced(bench: Bench, save: Way) -> None:
    colleague(bench, README)

    save(bench, README, EDITOR)

    assert on_server(bench, README) == OURS[README].decode()


@WAYS
def test_same_change_by_two_is_made_once(bench: Bench, save: Way) -> None:
    read(bench, README, EDITOR)
    bench.writes.put_readme(bench.dataset, OURS[README])
    before = bench.puts()

    save(bench, README, EDITOR)

    assert bench.puts() == before


@pytest.mark.expects_log("could not be sent")
def test_what_was_refused_is_kept_told_of_and_refused_after_the_next_mount(bench: Bench) -> None:
    read(bench, README, EDITOR)
    colleague(bench, README)
    bench.fill(
        bench.edits.open_file(bench.dataset, README, os.O_WRONLY | os.O_TRUNC, EDITOR),
        OURS[README],
    )

    for _ in range(2):
        ((_, unsent),) = all_unsent(bench.staging)
        assert "by somebody else" in (unsent.note.reason or "")
        assert unsent.local.read_bytes() == OURS[README]
        assert bench.shows(README) == OURS[README]
        assert on_server(bench, README) == THEIRS[README].decode()
        bench.edits.close()
        bench.mount()
        bench.edits.flush(WAIT_S)

    bench.edits.discard(bench.dataset, README)
    assert bench.shows(README) == THEIRS[README]


def test_change_that_begins_with_what_is_there_begins_with_what_is_there_now(
    bench: Bench,
) -> None:
    assert bench.shows(README) == BEFORE
    colleague(bench, README)
    bench.ahead_s += 10

    handle = bench.open(README, os.O_RDWR)
    bench.edits.write(handle, b"more: 1\n", len(THEIRS[README]))
    bench.edits.release(handle)
    bench.edits.flush(WAIT_S)

    assert on_server(bench, README) == "theirs: 1\nmore: 1\n"


def test_readme_is_compared_with_the_store_where_the_index_lags(bench: Bench) -> None:
    become(bench.quirky, "master")
    read(bench, README, EDITOR)
    by_rename(bench, README, EDITOR)
    by_rename(bench, README, EDITOR)
    put_readme(bench.quirky, bench.dataset.uri, "theirs: 1\n")

    with pytest.raises(ChangedMeanwhile):
        by_rename(bench, README, EDITOR)


def test_annotation_that_was_removed_here_is_made_anew(bench: Bench) -> None:
    read(bench, ANNOTATION, EDITOR)

    bench.remove(ANNOTATION)
    bench.make(ANNOTATION, OURS[ANNOTATION])

    assert on_server(bench, ANNOTATION) == value(ANNOTATION, OURS[ANNOTATION])


def test_annotation_that_another_was_renamed_onto_is_changed(bench: Bench) -> None:
    other = ".dtool/annotations/other.json"
    read(bench, ANNOTATION, EDITOR)
    bench.make(other, b"7")

    bench.rename(other, ANNOTATION)
    bench.write(ANNOTATION, OURS[ANNOTATION])

    assert on_server(bench, ANNOTATION) == value(ANNOTATION, OURS[ANNOTATION])


def test_change_that_was_moved_away_while_it_was_sent_is_no_colleagues(bench: Bench) -> None:
    read(bench, README, EDITOR)
    bench.writes.may_go_on.clear()
    first = bench.open(README)
    bench.edits.write(first, b"first: 1\n", 0)
    bench.edits.release(first)
    assert bench.writes.reached.wait(WAIT_S)

    bench.rename(README, "README.yml~")
    second = bench.create(README)
    bench.edits.write(second, b"second: 1\n", 0)
    bench.edits.release(second)
    bench.writes.may_go_on.set()
    bench.edits.flush(WAIT_S)

    assert on_server(bench, README) == "second: 1\n"
    assert bench.edits.unsent() == []


def test_overlay_is_compared(bench: Bench) -> None:
    text = bench.shows(OVERLAY)
    version = version_of_json(text)
    bench.writes.put_overlay(bench.dataset, "o", {}, version)

    with pytest.raises(ChangedMeanwhile):
        bench.writes.put_overlay(bench.dataset, "o", json.loads(text) | {"x": 1}, version)


def test_json_is_the_same_version_however_it_is_written() -> None:
    assert version_of_json(b'{"a": 1, "b": [2]}') == version_of_json(b'{"b":[2],\n"a":1}')
    assert version_of_json(b"1") != version_of_json(b"1.0")
    assert version_of_json(b"{") == version_of_text(b"{")


def test_only_so_many_readers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dserverfs.base.versions.MAX_READERS", 2)
    versions = VersionsRead()
    for number in range(3):
        versions.was_read("path", (number, 0), version_of_text(bytes([number])))

    assert versions.last_read("path", (0, 0)) == version_of_text(b"\2")  # as anybody's
    assert versions.last_read("path", (1, 0)) == version_of_text(b"\1")
    assert versions.last_read("other", None) is None
