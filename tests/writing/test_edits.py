"""Edits of a README: local files first, sent to the server when they are complete."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.errors import Frozen, NotFound, Unreachable, UsageError
from dserverfs.catalogue.refreshed import NotLoaded, loaded
from dserverfs.tree.frozen_dataset import DatasetTree
from dserverfs.writing.edits.journal import LIMIT_BYTES
from tests.support.editing import BEFORE, README, WAIT_S, Bench, away

pytest_plugins = ["tests.support.resolver_fixtures", "tests.support.edit_fixtures"]


# README.yml


def test_readme_is_sent_when_it_is_closed(bench: Bench) -> None:
    handle = bench.open(README)
    bench.edits.write(handle, b"new: 1\n", 0)
    assert bench.shows(README) == b"new: 1\n"
    assert bench.has("readme") == BEFORE.decode()

    bench.edits.release(handle)
    bench.edits.flush(WAIT_S)

    assert bench.has("readme") == "new: 1\n"
    assert bench.shows(README) == b"new: 1\n"
    assert bench.local_files() == []


def test_readme_opened_without_truncation_has_its_content(bench: Bench) -> None:
    bench.fill(bench.open(README, os.O_RDWR), b"R")
    bench.fill(bench.open(README, os.O_WRONLY | os.O_APPEND), b"more\n")

    assert bench.has("readme") == "Readme: 1\nmore\n"


def test_readme_that_is_opened_and_not_changed_is_not_sent(bench: Bench) -> None:
    bench.edits.release(bench.open(README, os.O_WRONLY))
    bench.edits.flush(WAIT_S)

    assert bench.puts() == 0
    assert bench.local_files() == []


def test_readme_is_sent_once_by_the_last_of_its_writers(bench: Bench) -> None:
    first, second = bench.open(README), bench.open(README, os.O_WRONLY)
    bench.edits.write(first, b"first ", 0)
    bench.edits.release(first)
    bench.edits.flush(WAIT_S)
    assert bench.puts() == 0
    bench.edits.write(second, b"second\n", 6)

    bench.edits.release(second)
    bench.edits.flush(WAIT_S)

    assert bench.has("readme") == "first second\n"
    assert bench.puts() == 1


def test_sync_waits_for_the_server_and_closing_sends_nothing_more(bench: Bench) -> None:
    handle = bench.open(README)
    bench.edits.write(handle, b"new: 1\n", 0)

    bench.edits.sync(handle)

    assert bench.has("readme") == "new: 1\n"
    bench.edits.release(handle)
    bench.edits.flush(WAIT_S)
    assert bench.puts() == 1
    assert bench.local_files() == []


@pytest.mark.expects_log("could not be sent.*away.*kept in")
def test_sync_says_what_the_server_says_and_keeps_what_was_written(bench: Bench) -> None:
    bench.writes.error = away()
    handle = bench.open(README)
    bench.edits.write(handle, b"new: 1\n", 0)

    with pytest.raises(Unreachable):
        bench.edits.sync(handle)

    assert bench.shows(README) == b"new: 1\n"
    bench.writes.error = None
    bench.edits.release(handle)
    bench.edits.flush(WAIT_S)
    assert bench.has("readme") == "new: 1\n"


def test_temporary_file_becomes_the_readme(bench: Bench) -> None:
    bench.make("sedAbC12x", b"new: 1\n")
    assert "sedAbC12x" in bench.names()

    bench.rename("sedAbC12x", README)

    assert bench.has("readme") == "new: 1\n"
    assert bench.shows(README) == b"new: 1\n"
    assert bench.names() == [".dtool", README, "data"]
    assert bench.local_files() == []


def test_rename_that_the_server_refuses_changes_nothing(bench: Bench) -> None:
    bench.make(".README.yml.x1Y2z3", b"\xff")

    with pytest.raises(UsageError, match="UTF-8"):
        bench.rename(".README.yml.x1Y2z3", README)

    assert bench.shows(README) == BEFORE
    assert bench.shows(".README.yml.x1Y2z3") == b"\xff"


def test_file_that_is_renamed_while_it_is_open_goes_on_as_the_readme(bench: Bench) -> None:
    handle = bench.create("tmpx8_1", 0o600, os.O_RDWR | os.O_EXCL)
    bench.edits.write(handle, b"atomic", 0)
    bench.rename("tmpx8_1", README)
    assert bench.has("readme") == "atomic"

    bench.edits.write(handle, b" and more", 6)
    bench.edits.release(handle)
    bench.edits.flush(WAIT_S)

    assert bench.has("readme") == "atomic and more"


def test_time_of_the_readme_stays_after_it_was_sent(bench: Bench) -> None:
    handle = bench.open(README)
    bench.edits.write(handle, b"new: 1\n", 0)
    written = bench.tree.lookup(DatasetTree.ROOT, README)
    bench.edits.release(handle)
    bench.edits.flush(WAIT_S)

    sent = loaded(lambda: bench.tree.lookup(DatasetTree.ROOT, README))

    assert sent.mtime_ns == written.mtime_ns
    assert sent.mtime_ns > bench.dataset.frozen_at * 1e9


def test_readme_cannot_be_removed(bench: Bench) -> None:
    with pytest.raises(Frozen):
        bench.remove(README)


# As vim does


def vim_moves_away(bench: Bench) -> None:
    bench.edits.release(bench.create("4913", 0o644, os.O_WRONLY | os.O_EXCL))
    bench.remove("4913")
    bench.rename(README, "README.yml~")


def test_readme_is_replaced_as_vim_does(bench: Bench) -> None:
    before = loaded(lambda: bench.tree.lookup(DatasetTree.ROOT, README)).number
    vim_moves_away(bench)
    with pytest.raises(NotFound):
        bench.shows(README)
    assert bench.shows("README.yml~") == BEFORE

    handle = bench.create(README)
    bench.edits.write(handle, b"vim: 1\n", 0)
    bench.edits.sync(handle)
    bench.edits.release(handle)
    bench.remove("README.yml~")

    assert bench.has("readme") == "vim: 1\n"
    assert bench.shows(README) == b"vim: 1\n"
    assert loaded(lambda: bench.tree.lookup(DatasetTree.ROOT, README)).number != before
    assert bench.local_files() == []


@pytest.mark.expects_log("could not be sent.*away")
def test_vim_moves_the_old_one_back_with_the_server_away(bench: Bench) -> None:
    bench.shows(README)
    vim_moves_away(bench)
    bench.writes.error = away()
    handle = bench.create(README)
    bench.edits.write(handle, b"vim: 1\n", 0)
    with pytest.raises(Unreachable):
        bench.edits.sync(handle)
    bench.edits.release(handle)

    bench.rename("README.yml~", README)

    assert bench.shows(README) == BEFORE
    bench.writes.error = None
    bench.edits.flush(WAIT_S)
    assert bench.has("readme") == BEFORE.decode()
    assert bench.edits.unsent() == []


def test_old_one_moved_back_after_a_new_one_was_sent_is_sent(bench: Bench) -> None:
    vim_moves_away(bench)
    bench.make(README, b"vim: 1\n")

    bench.rename("README.yml~", README)

    assert bench.has("readme") == BEFORE.decode()
    assert bench.shows(README) == BEFORE


def test_readme_comes_back_when_what_it_was_moved_to_is_removed(bench: Bench) -> None:
    bench.rename(README, "README.yml~")

    bench.remove("README.yml~")

    assert bench.shows(README) == BEFORE


@pytest.mark.expects_log("could not be sent.*away")
def test_backup_of_what_was_not_sent_is_not_sent_over_what_was(bench: Bench) -> None:
    bench.writes.error = away()
    bench.write(README, b"first: 1\n")
    bench.rename(README, "README.yml~")
    bench.writes.error = None
    bench.make(README, b"second: 1\n")

    bench.mount_after_a_kill()

    bench.edits.flush(WAIT_S)
    assert bench.has("readme") == "second: 1\n"


# What may be there


@pytest.mark.parametrize(
    "path",
    [
        *(".README.yml.swp", "README.yml~", "#README.yml#", "4913", "5036", "sedx1Y2Z3"),
        *("README.yml-1795253433.246172", "README.yml.tmp", ".goutputstream-X1", "~lock"),
        *(".dtool/.dtool.swp", ".dtool/annotations/a.json~", ".dtool/overlays/o.json.tmp"),
    ],
)
def test_temporary_names_are_accepted(bench: Bench, path: str) -> None:
    bench.make(path, b"x")

    assert bench.shows(path) == b"x"
    bench.remove(path)
    with pytest.raises(NotFound):
        bench.shows(path)


@pytest.mark.parametrize(
    "path",
    [
        *("results.csv", "4914", "readme.txt", "sample.tmp", "sedx1Y2Z3x", "data.part"),
        *(".dtool/other", ".dtool/manifest.json.x", ".dtool/annotations/plain"),
    ],
)
def test_other_names_are_frozen(bench: Bench, path: str) -> None:
    with pytest.raises(Frozen):
        bench.create(path, 0o644, os.O_WRONLY | os.O_EXCL)
    bench.make(".scratch", b"x")
    with pytest.raises(Frozen):
        bench.rename(".scratch", path)

    assert bench.names() == [".dtool", ".scratch", README, "data"]


def test_what_mkstemp_makes_is_accepted_whatever_its_name(bench: Bench) -> None:
    bench.fill(bench.create("XXW0V65o", 0o600, os.O_RDWR | os.O_EXCL), b"new")

    bench.rename("XXW0V65o", README)

    assert bench.has("readme") == "new"


@pytest.mark.parametrize("path", ["data/hello.txt", "data/new", ".dtool/manifest.json"])
def test_items_and_manifest_are_frozen(bench: Bench, path: str) -> None:
    with pytest.raises(Frozen):
        bench.create(path)
    with pytest.raises(Frozen):
        bench.remove(path)
    with pytest.raises(Frozen):
        bench.rename(path, ".scratch")


def test_all_temporary_files_together_are_limited(bench: Bench) -> None:
    handle = bench.create(".first")
    bench.edits.truncate(handle, LIMIT_BYTES - 10)
    other = bench.create(".second")
    bench.edits.write(other, b"x" * 10, 0)

    with pytest.raises(OSError, match="at most"):
        bench.edits.write(other, b"x", 10)
    bench.edits.truncate(handle, 0)
    bench.edits.write(other, b"x", 10)

    bench.edits.release(handle)
    bench.edits.release(other)


@pytest.mark.expects_log("is incomplete, as its writer was told")
def test_readme_of_which_a_write_failed_is_not_sent(bench: Bench) -> None:
    handle = bench.open(README)
    bench.edits.write(handle, b"half", 0)
    with pytest.raises(OSError, match="at most"):
        bench.edits.write(handle, b"x", LIMIT_BYTES)

    bench.edits.release(handle)
    bench.edits.flush(WAIT_S)

    assert bench.puts() == 0
    assert bench.shows(README) == BEFORE
    assert bench.edits.unsent() == []


def test_rename_without_replacing_refuses_what_is_there(bench: Bench) -> None:
    bench.make(".scratch", b"x")

    with pytest.raises(FileExistsError):
        bench.rename(".scratch", README, flags=1)
    with pytest.raises(OSError, match="Invalid argument"):
        bench.rename(".scratch", README, flags=2)
    bench.rename(README, "README.yml~")
    bench.rename(".scratch", README, flags=1)

    assert bench.has("readme") == "x"


def test_everything_is_private(bench: Bench) -> None:
    bench.make(".scratch", b"x")

    for path in [bench.staging / ".edits", *bench.staging.glob(".edits/*/*/*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_content_that_is_not_at_hand_has_to_be_loaded_first(bench: Bench) -> None:
    with pytest.raises(NotLoaded):
        bench.edits.open_file(bench.dataset, README, os.O_WRONLY)


# The local disk


@pytest.mark.parametrize("failing", ["open", "truncate", "replace"])
@pytest.mark.parametrize("path", [README, ".dtool/annotations/new.json"])
def test_what_could_not_be_opened_for_want_of_a_disk_is_not_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, failing: str, path: str
) -> None:
    refused = failing_for(bench.staging, getattr(os, failing))

    with monkeypatch.context() as patched:
        patched.setattr(os, failing, refused)
        begin = bench.open if path == README else bench.create
        with pytest.raises(OSError, match="no room"):
            begin(path)

    bench.edits.take_as_closed()  # as when the mount ends
    bench.edits.flush(WAIT_S)
    assert bench.has("readme") == BEFORE.decode()
    assert bench.puts() == 0
    assert bench.edits.unsent() == []
    assert bench.shows(README) == BEFORE


@pytest.mark.expects_log("could not be sent.*away.*kept in")
@pytest.mark.parametrize("failing", ["truncate", "replace"])
def test_edit_that_waits_is_sent_though_another_change_of_it_failed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    bench.writes.error = away()
    bench.fill(bench.open(README), b"mine: 1\n")
    refused = failing_for(bench.staging, getattr(os, failing))

    with monkeypatch.context() as patched:
        patched.setattr(os, failing, refused)
        with pytest.raises(OSError, match="no room"):
            bench.open(README)

    assert bench.shows(README) == b"mine: 1\n"
    bench.writes.error = None
    bench.edits.flush(WAIT_S)
    assert bench.has("readme") == "mine: 1\n"
    assert bench.local_files() == []


def failing_for(directory: Path, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, which finds no room below a directory for what is written."""

    def refused(path: Any, *arguments: Any, **options: Any) -> Any:
        opens_to_read = call is os.open and not arguments[0] & (os.O_RDWR | os.O_WRONLY)
        if not opens_to_read and str(directory) in os.fsdecode(path):
            raise OSError(errno.ENOSPC, "no room", path)
        return call(path, *arguments, **options)

    return refused
