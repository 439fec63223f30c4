"""Changes of which a part fails, is under way, or was under way when the mount ended."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import Any

import pytest

from dserverfs.writing.edits.journal import LIMIT_BYTES, all_unsent
from dserverfs.writing.edits.local_file import INCOMPLETE
from tests.support.editing import BEFORE, README, WAIT_S, Bench, away, wait_until
from tests.support.few_threads import no_more_threads

pytest_plugins = ["tests.support.resolver_fixtures", "tests.support.edit_fixtures"]

NOTED = ".dtool/annotations/n.json"
MINE = b"mine: 1\n"
kept = pytest.mark.expects_log("could not be sent.*away.*kept in")
told = pytest.mark.expects_log("is incomplete, as its writer was told")


def wait_to_be_sent(bench: Bench) -> None:
    """Have a README that the server did not take yet."""
    bench.writes.error = away()
    bench.write(README, MINE)
    assert bench.shows(README) == MINE


def end(bench: Bench, how: str, handle: Any) -> None:
    """Have the last writer of a file gone, and the server back."""
    bench.writes.error = None
    if how == "closed":
        bench.edits.release(handle)
    else:
        bench.edits.take_as_closed()
    bench.edits.flush(WAIT_S)


# A write that failed


@kept
@pytest.mark.parametrize("how", ["closed", "taken as closed"])
@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_APPEND, os.O_RDWR])
def test_refused_write_takes_nothing_from_what_waits_to_be_sent(
    bench: Bench, flags: int, how: str
) -> None:
    wait_to_be_sent(bench)
    handle = bench.open(README, flags)

    with pytest.raises(OSError, match="at most"):
        bench.edits.write(handle, bytes(LIMIT_BYTES), 1)
    end(bench, how, handle)

    assert bench.has("readme").encode() == MINE


def test_refused_write_is_no_reason_to_send_nothing_later(bench: Bench) -> None:
    for content in (b"", b"added: 1\n"):
        handle = bench.open(README, os.O_WRONLY | os.O_APPEND)
        if content:
            bench.edits.write(handle, content, 0)
        else:
            with pytest.raises(OSError, match="at most"):
                bench.edits.write(handle, bytes(LIMIT_BYTES), 0)
        bench.edits.release(handle)
    bench.edits.flush(WAIT_S)

    assert bench.has("readme").encode() == BEFORE + b"added: 1\n"


@told
@pytest.mark.parametrize("first_fails", [True, False])
def test_part_of_what_is_written_is_not_sent_whichever_write_fails(
    bench: Bench, first_fails: bool
) -> None:
    handle = bench.open(README, os.O_WRONLY | os.O_APPEND)
    for number in (0, 1):
        if bool(number) is first_fails:
            bench.edits.write(handle, b"half", 0)
        else:
            with pytest.raises(OSError, match="at most"):
                bench.edits.write(handle, bytes(LIMIT_BYTES), 0)

    bench.edits.sync(handle)
    end(bench, "closed", handle)

    assert bench.puts() == 0
    assert bench.shows(README) == BEFORE
    assert bench.local_files() == []


@kept
@told
@pytest.mark.parametrize("how", ["closed", "taken as closed"])
def test_half_of_a_change_of_what_waits_is_kept_and_not_sent(
    bench: Bench, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    wait_to_be_sent(bench)
    handle = bench.open(README, os.O_WRONLY | os.O_APPEND)
    bench.edits.write(handle, b"half", 0)
    with pytest.raises(OSError, match="at most"):
        bench.edits.write(handle, bytes(LIMIT_BYTES), 0)

    end(bench, how, handle)

    assert bench.has("readme").encode() == BEFORE
    assert bench.shows(README) == MINE + b"half"
    assert [edit.note.reason for edit in bench.edits.unsent()] == [INCOMPLETE]
    if how == "closed":
        bench.edits.take_as_closed()
        assert caplog.text.count("is incomplete, as its writer was told") == 1
        bench.write(README, b"whole: 1\n")
        assert bench.has("readme") == "whole: 1\n"
        assert bench.local_files() == []


@told
@pytest.mark.expects_log("its mount ended while it was")
@pytest.mark.parametrize("added", [b"", b" and more"])
def test_half_that_a_mount_left_outlives_a_write_that_fails(bench: Bench, added: bytes) -> None:
    bench.edits.write(bench.open(README), b"half", 0)
    bench.mount_after_a_kill()
    handle = bench.open(README, os.O_WRONLY | os.O_APPEND)
    bench.edits.write(handle, added, 0)

    with pytest.raises(OSError, match="at most"):
        bench.edits.write(handle, bytes(LIMIT_BYTES), 0)
    end(bench, "closed", handle)

    assert bench.shows(README) == b"half" + added
    assert bench.has("readme").encode() == BEFORE


@told
def test_half_of_an_annotation_becomes_no_other(bench: Bench) -> None:
    handle = bench.open(NOTED)
    bench.edits.write(handle, b"6", 0)
    with pytest.raises(OSError, match="at most"):
        bench.edits.write(handle, b"7", LIMIT_BYTES)

    with pytest.raises(OSError, match="Input/output") as failure:
        bench.rename(NOTED, ".dtool/annotations/m.json")

    assert failure.value.errno == errno.EIO
    bench.edits.release(handle)
    assert bench.has("annotations") == {"n": 5}


@pytest.mark.parametrize("written", [NOTED, ".dtool/annotations/m.json"])
def test_annotation_is_not_renamed_while_it_or_what_it_replaces_is_written(
    bench: Bench, written: str
) -> None:
    """What its writer writes later would be nowhere."""
    handle = bench.open(NOTED) if written == NOTED else bench.create(written)
    bench.edits.write(handle, b"6", 0)

    with pytest.raises(OSError, match="busy") as failure:
        bench.rename(NOTED, ".dtool/annotations/m.json")

    assert failure.value.errno == errno.EBUSY
    bench.edits.release(handle)
    bench.edits.flush(WAIT_S)
    assert bench.has("annotations") == ({"n": 6} if written == NOTED else {"n": 5, "m": 6})


@told
def test_half_of_a_change_after_one_that_was_sent_is_not_kept(bench: Bench) -> None:
    handle = bench.open(README)
    bench.edits.write(handle, MINE, 0)
    bench.edits.sync(handle)
    for content in (b"ha", b"lf"):
        bench.edits.write(handle, content, len(MINE))
    with pytest.raises(OSError, match="at most"):
        bench.edits.write(handle, b"x", LIMIT_BYTES)

    end(bench, "closed", handle)

    assert bench.shows(README) == MINE
    assert bench.local_files() == []


@kept
def test_change_that_waits_goes_on_after_a_write_that_was_refused(bench: Bench) -> None:
    wait_to_be_sent(bench)
    for content in (bytes(LIMIT_BYTES), b"added: 1\n"):
        first = bench.open(README, os.O_WRONLY | os.O_APPEND)
        with contextlib.suppress(OSError):
            bench.edits.write(first, content, 0)
        bench.edits.release(first)

    bench.writes.error = None
    bench.edits.flush(WAIT_S)

    assert bench.has("readme").encode() == MINE + b"added: 1\n"


@told
@kept
def test_writer_that_was_refused_has_none_of_what_another_one_adds_sent(bench: Bench) -> None:
    wait_to_be_sent(bench)
    refused, other = (bench.open(README, os.O_WRONLY | os.O_APPEND) for _ in range(2))
    with pytest.raises(OSError, match="at most"):
        bench.edits.write(refused, bytes(LIMIT_BYTES), 0)
    bench.edits.release(refused)
    bench.edits.write(other, b"added: 1\n", 0)

    end(bench, "closed", other)

    assert bench.has("readme").encode() == BEFORE
    assert bench.shows(README) == MINE + b"added: 1\n"


# A write under way


@pytest.mark.parametrize("completed_by", ["sync", "rename"])
def test_write_that_ends_after_the_file_was_sent_is_sent_as_well(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, completed_by: str
) -> None:
    """As that of a program that syncs or renames what another thread of it still writes to."""
    synced = completed_by == "sync"
    handle = bench.open(README) if synced else bench.create(".scratch")
    bench.edits.write(handle, b"first,", 0)
    pwrite, reached, may_go_on = os.pwrite, threading.Event(), threading.Event()

    def slow(fd: int, data: Any, offset: int) -> int:
        reached.set()
        assert may_go_on.wait(WAIT_S)
        return pwrite(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", slow)
        writing = threading.Thread(target=bench.edits.write, args=(handle, b" second", 6))
        writing.start()
        assert reached.wait(WAIT_S)
        if synced:
            bench.edits.sync(handle)
        else:
            bench.rename(".scratch", README)
        may_go_on.set()
        writing.join(WAIT_S)
    bench.edits.release(handle)
    bench.edits.flush(WAIT_S)

    assert bench.has("readme") == "first, second"


# What the disk, or the system, does not take


@kept
@pytest.mark.expects_log("not noted why it is not sent", "may not outlast a power cut")
def test_change_is_tried_again_though_the_disk_takes_no_note_of_the_refusal(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.mount(retry_s=(0.01, 0.05))
    bench.writes.error = away()
    handle = bench.open(README)
    bench.edits.write(handle, MINE, 0)
    sent_once = threading.Event()

    def full(path: Any, *arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def asked() -> None:
        monkeypatch.setattr(os, "replace", full)
        sent_once.set()

    bench.writes.asked = asked
    bench.edits.release(handle)
    assert sent_once.wait(WAIT_S)
    bench.writes.error = None

    wait_until(lambda: bench.has("readme").encode() == MINE)


@kept
def test_change_waits_for_a_thread_that_sends_it(bench: Bench) -> None:
    handle = bench.open(README)
    bench.edits.write(handle, MINE, 0)

    with no_more_threads():
        bench.edits.release(handle)
        assert bench.shows(README) == MINE
    bench.writes.error = away()
    bench.edits.flush(WAIT_S)
    bench.writes.error = None
    bench.edits.flush(WAIT_S)

    assert bench.has("readme").encode() == MINE


@kept
def test_change_that_waits_is_moved_away_without_the_server(bench: Bench) -> None:
    wait_to_be_sent(bench)
    bench.catalogue.forget(bench.dataset)
    before = len(bench.quirky.requests)

    bench.rename(README, "README.yml~")

    assert len(bench.quirky.requests) == before
    assert bench.shows("README.yml~") == MINE


# The end of a mount


@kept
def test_next_mount_sends_by_itself_what_waits(bench: Bench) -> None:
    wait_to_be_sent(bench)
    bench.edits.close()
    bench.writes.error = None

    bench.mount()

    wait_until(lambda: bench.has("readme").encode() == MINE)
    assert bench.shows(README) == MINE


@kept
@pytest.mark.expects_log("was being written when its mount ended", "its mount ended while it was")
def test_complete_change_is_sent_before_one_that_was_being_written_after_it(
    bench: Bench,
) -> None:
    """As of vim, which moves away what waits to be sent, when it is killed with the mount."""
    wait_to_be_sent(bench)
    bench.rename(README, "README.yml~")
    bench.edits.write(bench.create(README), b"half", 0)
    bench.writes.error = None

    bench.mount_after_a_kill()
    bench.edits.flush(WAIT_S)

    assert bench.has("readme").encode() == MINE
    assert [edit.local.read_bytes() for _, edit in all_unsent(bench.staging)] == [b"half"]
    bench.edits.close()
    bench.mount()
    assert bench.shows(README) == b"half"
    bench.edits.flush(WAIT_S)
    assert bench.has("readme").encode() == MINE


@kept
@pytest.mark.expects_log("two mounts that have ended", "has changed it later")
def test_what_two_mounts_have_changed_is_sent_once_and_never_lost(bench: Bench) -> None:
    """The server was away from both, and both were killed; neither had seen the other's."""
    wait_to_be_sent(bench)
    other, later = bench.another(), b"readme: later\n"
    other.open(lambda dataset: True)
    handle = other.open_file(bench.dataset, README, os.O_WRONLY | os.O_TRUNC)
    other.write(handle, later, 0)
    other.release(handle)
    for edits in (bench.edits, other):  # nothing is being sent when they are killed
        edits.flush(WAIT_S)
    other._sender.close()
    other._local._session._lock.release()
    bench.writes.error = None

    bench.mount_after_a_kill()
    bench.edits.flush(WAIT_S)

    assert bench.has("readme").encode() == later
    assert [edit.local.read_bytes() for _, edit in all_unsent(bench.staging)] == [MINE]
    bench.edits.close()
    bench.mount()
    assert bench.shows(README) == MINE
    bench.edits.flush(WAIT_S)
    assert bench.has("readme").encode() == later
    bench.write(README, MINE)  # its user wants it after all
    wait_until(lambda: bench.has("readme").encode() == MINE)
    assert [*all_unsent(bench.staging)] == []
