"""The control socket: found in two ways, believed by uid, and never waited for without end."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dserverfs.base.errors import DaemonSilent, DaemonStopped, UsageError
from dserverfs.base.processes import Processes
from dserverfs.mount import control
from dserverfs.mount.control import Address, Answer, Server, ask, wait_for_next
from tests.support.accounts import Account
from tests.support.child_processes import spawn
from tests.support.mount_daemons import stopped, wait_for
from tests.support.mutations import mangled
from tests.support.patience import LATE_S

DEVICE = os.makedev(0, 900_000 + os.getpid() % 100_000)  # no mount of this machine has it
TIMEOUT_S = 0.2


class Daemon:
    """Answers `echo`; is at work for as long as `release` is not set with `work`."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def __call__(self, request: dict[str, Any]) -> Iterator[Answer]:
        if request["command"] == "work":
            yield {"progress": {"done": 0}}
            self.release.wait(LATE_S)
        elif request["command"] != "echo":
            raise UsageError(f"{request['command']!r}: no such command")
        yield {"result": request}


def test_next_daemon_is_waited_for_until_it_listens(
    tmp_path: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One daemon has taken the place of another, and does not listen yet."""
    address = Address.of(tmp_path / "next", DEVICE, os.geteuid())
    server = Server(address, daemon)
    tries: list[float] = []

    def sleep(seconds: float) -> None:
        tries.append(seconds)
        if len(tries) == 3:
            server.open()

    monkeypatch.setattr(time, "sleep", sleep)
    daemon.release.set()
    try:
        wait_for_next(address)
        (answer,) = ask(address, {"command": "echo"})
        assert answer["result"]["command"] == "echo"
    finally:
        server.close()
    assert len(tries) == 3


def test_daemon_that_does_not_come_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "NEXT_DAEMON_S", 0.01)
    address = Address.of(tmp_path / "none", DEVICE, os.geteuid())

    wait_for_next(address)

    with pytest.raises(DaemonSilent, match="cannot be asked"):
        list(ask(address, {"command": "echo"}))


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def address(tmp_path: Path, daemon: Daemon) -> Iterator[Address]:
    address = Address.of(tmp_path / "control", DEVICE, os.geteuid())
    server = Server(address, daemon)
    server.open()
    yield address
    daemon.release.set()
    server.close()


def results(address: Address, command: str) -> list[Answer]:
    return list(ask(address, {"command": command}, TIMEOUT_S))


def test_an_answer_is_what_the_daemon_says(address: Address) -> None:
    asked = {"command": "echo", "asked_by": os.getpid()}
    assert results(address, "echo") == [{"result": asked}]

    with pytest.raises(UsageError, match="no such command"):
        results(address, "nonsense")


def test_a_daemon_is_found_when_its_file_is_gone(address: Address) -> None:
    address.path.unlink()
    elsewhere = address._replace(path=Path("/nonexistent/control/x"))

    assert results(address, "echo")
    assert results(elsewhere, "echo")


@pytest.mark.expects_log("a command could not be answered: can't start new thread")
def test_commands_work_again_after_a_shortage_of_threads(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    missed: list[threading.Thread] = []

    def refused(thread: threading.Thread) -> None:
        if thread.name == "command" and not missed:
            missed.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(DaemonSilent):
        results(address, "echo")

    assert missed
    assert results(address, "echo")


@pytest.mark.expects_log("a command could not be answered: .*Too many open files")
def test_commands_work_again_after_a_shortage_of_descriptors(
    tmp_path: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = socket.socket.accept
    missed: list[socket.socket] = []

    def refused(listener: socket.socket) -> tuple[socket.socket, Any]:
        if not missed:
            missed.append(listener)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", refused)
    server = Server(Address.of(tmp_path / "short", DEVICE, os.geteuid()), daemon)
    server.open()
    try:
        assert results(server._address, "echo")
        assert missed
    finally:
        server.close()


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(DaemonSilent, match="cannot be asked"):
        results(Address.of(tmp_path, DEVICE, os.geteuid()), "echo")


def test_a_daemon_at_work_is_waited_for(address: Address, daemon: Daemon) -> None:
    answers = ask(address, {"command": "work"}, TIMEOUT_S)
    assert "progress" in next(answers)
    threading.Timer(4 * TIMEOUT_S, daemon.release.set).start()

    assert "result" in next(answers)


def test_a_daemon_that_is_stopped_is_given_up(address: Address, daemon: Daemon) -> None:
    answers = ask(address, {"command": "work"}, TIMEOUT_S)
    next(answers)

    class Silent(Server):
        def _serve(self, connection: Any) -> None:
            daemon.release.wait(LATE_S)
            connection.close()

    address.path.unlink()
    silent = Silent(address, daemon)
    silent.open()  # a ping finds this one: it takes the connection and says nothing

    with pytest.raises(DaemonSilent, match="does not answer"):
        next(answers)
    daemon.release.set()
    silent.close()


def test_a_daemon_that_a_signal_has_stopped_is_told_of_with_its_process(tmp_path: Path) -> None:
    """At once, and not after the time in which one that hangs may still answer."""
    address = Address.of(tmp_path / "control", DEVICE, os.geteuid())
    code = (
        "from pathlib import Path; from dserverfs.mount.control import Address, Server\n"
        f"address = Address(Path({str(address.path)!r}), {address.abstract!r}, {address.owner})\n"
        "Server(address, lambda request: iter([{'result': 1}])).open()\n"
        "print('ready', flush=True); input()"
    )
    command = [sys.executable, "-c", code]
    with spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdin is not None
        assert daemon.stdout.readline() == b"ready\n"
        with stopped(daemon.pid):
            state = Processes()
            wait_for(lambda: getattr(state.find(daemon.pid), "is_stopped", False), "it stops")
            with pytest.raises(DaemonStopped, match=f"kill -CONT {daemon.pid} lets it go on"):
                results(address, "echo")
        assert results(address, "echo") == [{"result": 1}]
        daemon.stdin.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="there is one user only")
def test_a_stranger_gets_no_answer(address: Address, ordinary_user: Account) -> None:
    code = (
        "import sys; from pathlib import Path; from dserverfs.mount.control import Address, ask\n"
        f"address = Address(Path('/nonexistent/x'), {address.abstract!r}, 0)\n"
        "print(*ask(address, {'command': 'echo'}))"
    )

    asked = ordinary_user.run(ordinary_user.python, "-c", code)

    assert asked.stdout == ""
    assert "DaemonSilent: the mount ended" in asked.stderr


def test_a_daemon_of_a_stranger_is_not_believed(address: Address, tmp_path: Path) -> None:
    stranger = address._replace(path=tmp_path / "none", owner=12345)

    with pytest.raises(DaemonSilent, match="another user") if os.geteuid() else nullcontext():
        results(stranger, "echo")  # but root's daemon is believed


def test_names_of_two_boots_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Address.of(tmp_path, DEVICE, 0)
    monkeypatch.setattr("dserverfs.mount.control.boot_id", lambda: "another-boot")

    assert Address.of(tmp_path, DEVICE, 0).path != here.path


def test_answer_without_an_end_is_given_up(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root asks the daemons of all users, and one of these may be anything."""
    monkeypatch.setattr("dserverfs.mount.control.MAX_ANSWER_BYTES", 100_000)

    class Endless(Server):
        def _serve(self, connection: Any) -> None:
            with connection, contextlib.suppress(OSError):
                connection.recv(1000)
                while True:
                    connection.sendall(b"x" * 65536)

    address.path.unlink()
    endless = Endless(address, lambda request: iter(()))
    endless.open()
    try:
        with pytest.raises(DaemonSilent, match="without an end"):
            results(address, "echo")
    finally:
        endless.close()


@settings(max_examples=100, deadline=None)
@given(chance=st.randoms(use_true_random=True))
def test_any_line_is_answered_or_refused(chance: random.Random) -> None:
    line = mangled(b'{"command": "echo", "inode": 1}', (b"\n", b"{", b"ping", b"\xff"), chance)

    def handle(request: dict[str, Any]) -> Iterator[Answer]:
        yield {"result": request}

    server = Server(Address(Path("/nonexistent"), "", 0), handle)
    for answer in server._answers(line, 1):
        assert set(answer) <= {"result", "error"}
        assert "a fault of" not in str(answer.get("error"))
