"""When changes of frozen datasets are sent, kept and tried again; with a server that is told."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base import retry
from dserverfs.base.errors import NotAuthenticated, ProtocolError, Unreachable
from dserverfs.writing.edits import edits, sender
from dserverfs.writing.edits.edits import DatasetEdits
from dserverfs.writing.edits.journal import Note, root_of
from dserverfs.writing.edits.local_file import EditHandle, LocalFile
from tests.support.edit_sessions import DATASET, README
from tests.support.few_threads import no_more_threads
from tests.support.patience import LATE_S

TAG, OTHER = (f".dtool/annotations/{name}.json" for name in "tu")
LEAST_S, MOST_S = 4.0, 10.0
AWAY = Unreachable("the server is away")
kept = pytest.mark.expects_log("could not be sent to the server: ")


class Server:
    """Takes contents of targets, or fails as it is told."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {README: b"before"}
        self.asked: list[tuple[str, bytes]] = []
        self.errors: list[Exception | None] = []  # one after the other, then none
        self.error: Exception | None = None  # always
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.reached = threading.Event()

    def put(self, target: Any, dataset: Any, content: bytes, read: Any) -> None:
        self.asked.append((target.path, content))
        self.reached.set()
        assert self.may_go_on.wait(LATE_S)
        error = self.errors.pop(0) if self.errors else self.error
        if error is not None:
            raise error
        self.contents[target.path] = content

    def content(self, target: Any, dataset: Any) -> bytes:
        return self.contents[target.path]

    present = content

    def delete(self, target: Any, dataset: Any) -> None:
        del self.contents[target.path]

    def exists(self, target: Any, dataset: Any) -> bool:
        return target.path in self.contents


class Timer:
    """A timer that is over when the test says so."""

    def __init__(self, pause_s: float, over: Callable[[], None]) -> None:
        self.pause_s = pause_s
        self.over = over
        self.daemon = False
        self.is_running = False

    def start(self) -> None:
        assert self.daemon, "the process would wait for it"
        self.is_running = True

    def cancel(self) -> None:
        self.is_running = False

    def end(self) -> None:
        assert self.is_running
        self.is_running = False
        self.over()


class Bench:
    """The edits of a mount, whose files are written and closed."""

    def __init__(self, directory: Path) -> None:
        self.server = Server()
        server: Any = self.server
        self.edits = DatasetEdits(root_of(directory, "server"), server, (LEAST_S, MOST_S))
        self.edits.open(lambda dataset: True)
        self.timers: list[Timer] = []

    def timer(self, pause_s: float, over: Callable[[], None]) -> Timer:
        self.timers.append(Timer(pause_s, over))
        return self.timers[-1]

    @property
    def running(self) -> list[Timer]:
        return [timer for timer in self.timers if timer.is_running]

    def begin(self, path: str, content: bytes) -> EditHandle:
        handle = self.edits.create(DATASET, path, 0o644, os.O_WRONLY)
        self.edits.truncate(handle, 0)
        self.edits.write(handle, content, 0)
        return handle

    def write(self, path: str, content: bytes) -> None:
        """Write a file, close it, and wait until an attempt was made to send it."""
        self.edits.release(self.begin(path, content))
        self.wait()

    def wait(self) -> None:
        """Return when nothing is being sent."""
        while sending := list(self.edits._sender._sending):
            wait(sending, LATE_S)

    def file(self, path: str) -> LocalFile:
        file = self.edits.shown(DATASET, path).file
        assert file is not None
        return file

    def unsent(self) -> dict[str, str | None]:
        """Return the reason of each change that is not sent."""
        return {edit.note.path: edit.note.reason for edit in self.edits.unsent()}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    monkeypatch.setattr(threading, "Timer", bench.timer)
    monkeypatch.setattr(retry.chance, "uniform", lambda low, high: high)
    monkeypatch.setattr(sender, "LATE_CLOSE_S", 0.0)
    yield bench
    bench.server.may_go_on.set()
    bench.server.error = None
    bench.edits.close()


def test_change_is_sent_when_it_is_closed(bench: Bench) -> None:
    bench.write(TAG, b"5")

    assert bench.server.contents[TAG] == b"5"
    assert bench.unsent() == {}
    assert bench.timers == []


@kept
@pytest.mark.parametrize(
    ("error", "is_tried_again"),
    [
        (AWAY, True),
        (NotAuthenticated("the token has expired"), True),
        (ProtocolError("no"), False),
        (OSError(errno.EIO, "the disk"), False),
    ],
)
def test_change_that_could_not_be_sent_is_kept_with_the_reason(
    bench: Bench, error: Exception, is_tried_again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bench.server.error = error

    bench.write(TAG, b"5")

    assert bench.unsent() == {TAG: str(error)}
    assert [timer.pause_s for timer in bench.running] == ([LEAST_S] if is_tried_again else [])
    assert ("sent when the server takes it" in caplog.text) == is_tried_again
    assert bench.file(TAG).local.read_bytes() == b"5"


@kept
def test_what_was_refused_is_tried_again_with_growing_pauses_and_told_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.server.error = AWAY
    bench.write(TAG, b"5")
    pauses = []
    for _ in range(4):
        (timer,) = bench.running
        pauses.append(timer.pause_s)
        timer.end()
        bench.wait()

    assert pauses == [LEAST_S, 2 * LEAST_S, MOST_S, MOST_S]
    assert len(bench.server.asked) == 5
    assert caplog.text.count("could not be sent") == 1
    bench.server.error = None
    bench.running[0].end()
    bench.wait()
    assert bench.server.contents[TAG] == b"5"
    assert (bench.unsent(), bench.running) == ({}, [])


@kept
def test_change_that_is_refused_anew_has_all_tried_soon(bench: Bench) -> None:
    bench.server.error = AWAY
    bench.write(TAG, b"5")
    bench.running[0].end()
    bench.wait()
    assert bench.running[0].pause_s == 2 * LEAST_S

    bench.write(OTHER, b"6")

    (timer,) = bench.running
    assert timer.pause_s == LEAST_S
    bench.server.error = None
    timer.end()
    bench.wait()
    assert (bench.server.contents[TAG], bench.server.contents[OTHER]) == (b"5", b"6")


@kept
def test_what_was_sent_meanwhile_is_not_tried_again(bench: Bench) -> None:
    bench.server.errors = [AWAY]
    bench.write(TAG, b"5")
    bench.edits.flush(LATE_S)
    assert len(bench.server.asked) == 2

    bench.timers[0].over()
    bench.wait()

    assert len(bench.server.asked) == 2


@kept
def test_pauses_begin_anew_when_the_server_took_something(bench: Bench) -> None:
    bench.server.error = AWAY
    bench.write(TAG, b"5")
    for _ in range(2):
        bench.running[0].end()
        bench.wait()
    bench.server.errors = [None]

    bench.write(OTHER, b"6")
    bench.running[0].end()
    bench.wait()

    assert bench.running[0].pause_s == LEAST_S


@kept
def test_what_is_being_written_again_is_not_tried_before_that_is_done(bench: Bench) -> None:
    bench.server.may_go_on.clear()
    bench.server.errors = [AWAY]
    bench.edits.release(bench.begin(TAG, b"5"))
    assert bench.server.reached.wait(LATE_S)
    handle = bench.begin(TAG, b"6")
    bench.server.may_go_on.set()
    bench.wait()
    assert bench.timers == []
    bench.edits.flush(0.1)
    assert bench.server.asked == [(TAG, b"5")]

    bench.edits.release(handle)
    bench.wait()

    assert bench.server.contents[TAG] == b"6"


def test_change_that_no_thread_can_send_is_tried_again(bench: Bench) -> None:
    with no_more_threads():
        bench.edits.release(bench.begin(TAG, b"5"))
    assert bench.server.asked == []

    (timer,) = bench.running
    timer.end()
    bench.wait()

    assert bench.server.contents[TAG] == b"5"
    assert bench.unsent() == {}


@pytest.mark.expects_log("a fault of ours while sending")
def test_fault_of_ours_is_told_and_loses_nothing(bench: Bench) -> None:
    bench.server.errors = [ZeroDivisionError("ours")]

    bench.write(TAG, b"5")

    assert bench.unsent() == {TAG: None}
    bench.edits.flush(LATE_S)
    assert bench.server.contents[TAG] == b"5"


# Waiting for it


def test_flush_waits_for_what_is_being_sent_as_long_as_it_may(bench: Bench) -> None:
    bench.server.may_go_on.clear()
    bench.edits.release(bench.begin(TAG, b"5"))
    assert bench.server.reached.wait(LATE_S)

    bench.edits.flush(0.05)
    assert TAG not in bench.server.contents
    flushing = threading.Thread(target=bench.edits.flush, args=(LATE_S,))
    flushing.start()
    bench.server.may_go_on.set()
    flushing.join(LATE_S)

    assert bench.server.contents[TAG] == b"5"
    assert len(bench.server.asked) == 1, "what is under way is not sent twice"


@kept
def test_flush_sends_once_more_what_was_refused_while_it_waited(bench: Bench) -> None:
    bench.server.may_go_on.clear()
    bench.server.errors = [AWAY]
    bench.edits.release(bench.begin(TAG, b"5"))
    assert bench.server.reached.wait(LATE_S)
    flushing = threading.Thread(target=bench.edits.flush, args=(LATE_S,))
    flushing.start()
    flushing.join(0.05)  # until it waits

    bench.server.may_go_on.set()
    flushing.join(LATE_S)

    assert bench.server.contents[TAG] == b"5"


def test_flush_waits_shortly_for_what_was_just_closed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "LATE_CLOSE_S", LATE_S)
    handle = bench.begin(TAG, b"5")
    flushing = threading.Thread(target=bench.edits.flush, args=(LATE_S,))
    flushing.start()
    flushing.join(0.05)

    bench.edits.release(handle)
    flushing.join(LATE_S)

    assert bench.server.contents[TAG] == b"5"


@kept
def test_end_sends_once_more_and_then_nothing_is_tried(bench: Bench) -> None:
    bench.server.error = AWAY
    bench.write(TAG, b"5")
    file = bench.file(TAG)

    bench.edits.close()

    assert len(bench.server.asked) == 2
    assert bench.running == []
    bench.edits._sender.submit(file)
    bench.timers[-1].over()
    bench.wait()
    assert len(bench.server.asked) == 2


# Of two changes the later one stays


def test_changes_of_one_dataset_are_sent_one_after_the_other(bench: Bench) -> None:
    bench.server.may_go_on.clear()
    bench.edits.release(bench.begin(TAG, b"5"))
    assert bench.server.reached.wait(LATE_S)
    bench.edits.release(bench.begin(TAG, b"6"))
    bench.edits.release(bench.begin(OTHER, b"7"))

    assert len(bench.server.asked) == 1
    bench.server.may_go_on.set()
    bench.wait()

    assert bench.server.asked[0] == (TAG, b"5")
    assert sorted(bench.server.asked[1:]) == [(TAG, b"6"), (OTHER, b"7")]
    assert bench.unsent() == {}


def test_incomplete_file_becomes_no_target(bench: Bench) -> None:
    handle = bench.begin(".scratch", b"half")
    handle.file.spoil()
    bench.edits.release(handle)

    with pytest.raises(OSError, match="Input/output error") as failure:
        bench.edits.rename(DATASET, ".scratch", TAG, 0)

    assert failure.value.errno == errno.EIO
    assert bench.server.asked == []


def test_temporary_file_that_becomes_a_target_is_sent_at_once(bench: Bench) -> None:
    bench.edits.release(bench.begin(".scratch", b"5"))

    bench.edits.rename(DATASET, ".scratch", TAG, 0)

    assert bench.server.contents[TAG] == b"5"
    assert bench.edits.names(DATASET, "") == []
    assert bench.edits.shown(DATASET, TAG).file is None, "the server's is shown"


def test_what_is_sent_or_not_complete_is_not_sent_whoever_asks(bench: Bench) -> None:
    handle = bench.begin(TAG, b"half")
    bench.edits._sender.submit(handle.file)
    bench.wait()
    assert bench.server.asked == []

    bench.server.may_go_on.clear()
    bench.edits.release(handle)
    bench.edits._sender.submit(handle.file)
    bench.server.may_go_on.set()
    bench.wait()

    assert bench.server.asked == [(TAG, b"half")]
    synced = bench.begin(OTHER, b"6")
    bench.edits.sync(synced)
    bench.edits._sender.submit(synced.file)
    bench.wait()
    assert bench.server.asked[1:] == [(OTHER, b"6")]
    bench.edits.release(synced)


def test_content_without_a_file_is_sent_and_known(bench: Bench) -> None:
    bench.server.contents[TAG] = b"5"

    bench.edits.rename(DATASET, TAG, OTHER, 0)

    assert bench.server.contents[OTHER] == b"5"
    assert TAG not in bench.server.contents
    edited = bench.edits._local.of(DATASET)
    assert edited._times_sent == {OTHER: 1}


@kept
def test_change_is_on_the_disk_before_it_is_sent_and_so_is_the_reason_after_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = bench.edits._local._session
    secure = session.secure
    secured: list[tuple[str | None, int]] = []

    def noted(local: Path, note: Note, is_current: Callable[[], bool]) -> None:
        secured.append((note.reason, len(bench.server.asked)))
        secure(local, note, is_current)

    monkeypatch.setattr(session, "secure", noted)
    bench.server.errors = [AWAY]

    bench.write(TAG, b"5")

    assert secured == [(None, 0), (str(AWAY), 1)]


@kept
def test_end_waits_for_no_server_and_drops_what_is_queued(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edits, "CLOSE_S", 0.05)
    bench.server.may_go_on.clear()
    paths = [f".dtool/annotations/{number}.json" for number in range(sender.SENDERS + 2)]
    for path in paths:
        bench.edits.release(bench.begin(path, b"5"))

    bench.edits.close()
    bench.server.error = AWAY
    bench.server.may_go_on.set()
    bench.edits._sender._pool.shutdown(wait=True)

    assert len(bench.server.asked) <= sender.SENDERS
    assert bench.running == [], "nobody tries again"


def test_rename_that_the_server_refuses_leaves_the_file(bench: Bench) -> None:
    bench.edits.release(bench.begin(".scratch", b"5"))
    bench.server.errors = [ProtocolError("no")]

    with pytest.raises(ProtocolError):
        bench.edits.rename(DATASET, ".scratch", TAG, 0)

    assert bench.edits.names(DATASET, "") == [".scratch"]
    assert bench.running == []
