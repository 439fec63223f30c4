"""A mount's control socket: how commands speak to the daemon that serves a path.

Used by the mount (Server) and the commands (ask). A Unix socket in a directory
only its user can enter, and an abstract one beside it, named by the mount's device
number; by a name that the mount tells, where the daemon was given a device and does not know
its number. One request a connection: a JSON object in a line; answered by lines of JSON
objects: any number with `progress`, then one with `result` or `error`. Blocking,
threads only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base.clock import boot_id
from dserverfs.base.errors import (
    DaemonSilent,
    DaemonStopped,
    DserverfsError,
    ProtocolError,
    UsageError,
)
from dserverfs.base.limits import parse_json, understood
from dserverfs.base.local_files import make_private
from dserverfs.base.processes import Processes

logger = logging.getLogger(__name__)

Answer = dict[str, Any]
Handler = Callable[[dict[str, Any]], Iterator[Answer]]

MAX_LINE_BYTES = 1 << 20
MAX_ANSWER_BYTES = 256 << 20  # a line of an answer: 20 million inodes
SILENCE_S = 2.0  # of a daemon at work, until it is asked whether it is there
ANSWER_TIMEOUT_S = 5.0
NEXT_DAEMON_S = 5.0  # from the end of one daemon until the next one listens
_POLL_S = 0.05
SHORTAGE_PAUSE_S = 0.1  # until a connection that could not be taken is tried again
PING = "ping"
_TOLD = re.compile(rb"([0-9]{1,10}) (given-[0-9a-f]{32})\n")


class Address(NamedTuple):
    """Where the daemon of a mount listens.

    The file is found by processes with the same home. The abstract name (unix(7)) is found
    by every process of the same network namespace, in spite of HOME and of programs that clean
    up; anybody may bind such a name, so both ends look at the other's uid.
    """

    path: Path
    abstract: str
    owner: int  # the uid of the mount's daemon

    @classmethod
    def of(cls, directory: Path, device: int, owner: int) -> Address:
        """Return that of the mount with the st_dev `device`; the socket is in `directory`."""
        return cls._named(directory, f"{os.major(device)}-{os.minor(device)}", owner)

    @classmethod
    def of_given(cls, directory: Path, told: bytes) -> Address:
        """Return that of the mount whose `.dserverfs/control` says what `told` says.

        Raises UsageError if no mount of dserverfs says that.
        """
        found = _TOLD.fullmatch(told)
        if found is None:
            raise UsageError("it is not in a mount of dserverfs")
        return cls._named(directory, found[2].decode(), int(found[1]))

    @classmethod
    def _named(cls, directory: Path, name: str, owner: int) -> Address:
        return cls(directory / _name(name), f"\0dserverfs-{owner}-{name}", owner)


def _name(name: str) -> str:
    # A home may be shared by machines, and a number of a device is good for one boot.
    return f"{boot_id()[:8]}-{name}"


def told_by_mount() -> bytes:
    """Return a new content of `.dserverfs/control`, for a daemon of this user."""
    return f"{os.geteuid()} given-{secrets.token_hex(16)}\n".encode()


def given(directory: Path) -> list[Address]:
    """Return where this user's daemons of given devices listen, by their sockets in `directory`.

    Those of daemons that were killed are deleted.
    """
    found = []
    for path in sorted(directory.glob(f"{_name('given-')}*")):
        told = f"{os.geteuid()} {path.name.partition('-')[2]}\n".encode()
        address = Address.of_given(directory, told)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            try:
                _by_file(connection, address)
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
                continue
            except OSError:  # it is not at work
                pass
        found.append(address)
    return found


class Server:
    """Answers requests, each in a thread of its own."""

    def __init__(self, address: Address, handle: Handler) -> None:
        self._address = address
        self._handle = handle
        self._listeners: list[socket.socket] = []
        self._threads: list[threading.Thread] = []  # one for each
        self._is_closed = threading.Event()

    def open(self) -> None:
        """Listen; raises UsageError if there can be no socket."""
        path = self._address.path
        try:
            make_private(path.parent)
            path.unlink(missing_ok=True)  # of a mount that was killed
            listener = socket.socket(socket.AF_UNIX)
            self._listeners.append(listener)
            with _short(path) as name:
                listener.bind(name)
            os.chmod(path, 0o600)
            listener.listen()
        except OSError as error:
            self.close()
            raise UsageError(
                f"{path}: no control socket: {error.strerror}; XDG_STATE_HOME names a directory"
                " that you can write in place of ~/.local/state"
            ) from error
        self._listen_abstract()
        for listener in self._listeners:
            thread = threading.Thread(
                target=self._run, args=(listener,), name="control", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def _listen_abstract(self) -> None:
        abstract = socket.socket(socket.AF_UNIX)
        try:
            abstract.bind(self._address.abstract)
            abstract.listen()
        except OSError as error:  # it is taken: the file is enough
            abstract.close()
            logger.info("no second control socket: %s", error.strerror)
            return
        self._listeners.append(abstract)

    def close(self) -> None:
        self._is_closed.set()
        if self._listeners:
            self._address.path.unlink(missing_ok=True)
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # its thread leaves accept()
            listener.close()
        for thread in self._threads:  # until then the name stays taken
            thread.join(ANSWER_TIMEOUT_S)

    def _run(self, listener: socket.socket) -> None:
        is_short = False
        while not self._is_closed.is_set():
            try:
                connection, _ = listener.accept()
                try:
                    threading.Thread(
                        target=self._serve, args=(connection,), name="command", daemon=True
                    ).start()
                except BaseException:
                    connection.close()
                    raise
            except (OSError, RuntimeError, MemoryError) as error:
                # Too many open files, or threads: without this mount's commands nobody could
                # unmount it in an orderly way, so they work again when there are fewer.
                if not self._is_closed.is_set() and not is_short:
                    logger.warning("a command could not be answered: %s", error)
                is_short = True
                self._is_closed.wait(SHORTAGE_PAUSE_S)
            else:
                is_short = False

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            if _peer(connection).uid not in (os.geteuid(), 0):
                return
            try:
                asked_by = _peer(connection).pid
                with connection.makefile("rwb") as file:
                    for answer in self._answers(file.readline(MAX_LINE_BYTES), asked_by):
                        file.write(json.dumps(answer).encode() + b"\n")
                        file.flush()
            except (OSError, ValueError):
                pass  # who asked is gone

    def _answers(self, line: bytes, asked_by: int) -> Iterator[Answer]:
        try:
            with understood("the request"):
                request = {**parse_json(line, "the request"), "asked_by": asked_by}
            if request.get("command") == PING:
                yield {"result": PING}
            else:
                yield from self._handle(request)
        except (DserverfsError, OSError) as error:
            yield {"error": str(error)}
        except Exception:
            logger.exception("a fault of ours in a command")
            yield {"error": "a fault of dserverfs; its log says more"}


def ask(
    address: Address, request: dict[str, Any], answer_timeout_s: float = ANSWER_TIMEOUT_S
) -> Iterator[Answer]:
    """Yield the answers of the daemon at `address`, up to the last, a `result`.

    A daemon that says nothing for a while is asked whether it is there, which it has to answer
    within `answer_timeout_s`. Raises DaemonSilent if it does not, DaemonStopped at once for one
    that a signal has stopped, and UsageError with what an `error` says.
    """
    with _connected(address, answer_timeout_s) as connection:
        _require_running(_peer(connection).pid)
        connection.settimeout(min(SILENCE_S, answer_timeout_s))
        for line in _lines(connection, request, lambda: _ping(address, answer_timeout_s)):
            try:
                answer: Answer = parse_json(line, "the answer")
            except ProtocolError:
                break
            if not isinstance(answer, dict):
                break
            if "error" in answer:
                raise UsageError(str(answer["error"]))
            yield answer
            if "result" in answer:
                return
    raise DaemonSilent("the mount ended before it was done")


def require_running(address: Address) -> None:
    """Raise DaemonStopped if the daemon at `address` is stopped; of all other trouble, nothing."""
    try:
        with _connected(address, ANSWER_TIMEOUT_S) as connection:
            _require_running(_peer(connection).pid)
    except DaemonStopped:
        raise
    except DaemonSilent:
        pass  # whoever asks it something is told


def wait_for_next(address: Address) -> None:
    """Return when a daemon listens at `address`, or after NEXT_DAEMON_S.

    For a mount that is known to answer: nobody listens while one daemon takes the place of another.
    """
    end_s = time.monotonic() + NEXT_DAEMON_S
    while time.monotonic() < end_s:
        try:
            _connected(address, NEXT_DAEMON_S).close()
            return
        except DaemonSilent as error:
            if not isinstance(error.__cause__, ConnectionRefusedError | FileNotFoundError):
                return  # whoever asks it something is told
        time.sleep(_POLL_S)


@contextlib.contextmanager
def process_of(address: Address, timeout_s: float = ANSWER_TIMEOUT_S) -> Iterator[int | None]:
    """Yield a pidfd of the daemon at `address`; None if it is of another pid namespace.

    Raises DaemonSilent.
    """
    with _connected(address, timeout_s) as connection:
        pid = _peer(connection).pid
    try:
        pidfd = os.pidfd_open(pid) if pid else None
    except OSError:  # it has just ended
        pidfd = None
    try:
        yield pidfd
    finally:
        if pidfd is not None:
            os.close(pidfd)


def _lines(
    connection: socket.socket, request: dict[str, Any], on_silence: Callable[[], None]
) -> Iterator[bytes]:
    """Send a request and yield the lines of its answer; raises what `on_silence` raises."""
    received = b""
    try:
        connection.sendall(json.dumps(request).encode() + b"\n")
        while True:
            try:
                piece = connection.recv(1 << 16)
            except TimeoutError:
                on_silence()
                continue
            if not piece:
                return
            *lines, received = (received + piece).split(b"\n")
            yield from lines
            if len(received) > MAX_ANSWER_BYTES:  # root may ask a daemon of anybody
                raise DaemonSilent("the mount's daemon answers without an end")
    except OSError as error:
        raise DaemonSilent(f"the mount ended before it was done: {error.strerror}") from error


def _ping(address: Address, timeout_s: float) -> None:
    """Return if the daemon answers; raises DaemonSilent otherwise."""

    def silent() -> None:
        raise DaemonSilent(
            f"the mount's daemon does not answer within {timeout_s:.0f} s: it is stopped or hangs"
        )

    with _connected(address, timeout_s) as connection:
        for _ in _lines(connection, {"command": PING}, silent):
            return


def _require_running(pid: int) -> None:
    """Raise DaemonStopped if a daemon is stopped; of one in another pid namespace, nothing."""
    process = Processes().find(pid) if pid else None
    if process is not None and process.is_stopped:
        raise DaemonStopped(
            f"the mount's daemon is stopped (process {pid}): kill -CONT {pid} lets it go on"
        )


def _connected(address: Address, timeout_s: float) -> socket.socket:
    """Return a connection to the daemon at `address`; raises DaemonSilent."""
    problem = None
    for connect in (_by_file, _by_name, _by_file_of_0_1_0):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        try:
            connect(connection, address)
        except OSError as error:
            connection.close()
            problem = problem or error
            continue
        if _peer(connection).uid in (address.owner, 0, os.geteuid()):
            return connection
        connection.close()
    reason = problem.strerror if problem is not None else "another user listens there"
    raise DaemonSilent(
        f"the mount's daemon cannot be asked ({address.path}): {reason or 'no answer'}"
    ) from problem


def _by_file(connection: socket.socket, address: Address) -> None:
    with _short(address.path) as name:
        connection.connect(name)


def _by_name(connection: socket.socket, address: Address) -> None:
    connection.connect(address.abstract)


def _by_file_of_0_1_0(connection: socket.socket, address: Address) -> None:
    """Connect to a mount that was there before dserverfs was upgraded."""
    number = address.path.name.partition("-")[2]
    with _short(address.path.with_name(number)) as name:
        connection.connect(name)


class _Peer(NamedTuple):
    """The process at the other end of a socket: struct ucred of unix(7)."""

    pid: int  # 0: of another pid namespace
    uid: int
    gid: int


def _peer(connection: socket.socket) -> _Peer:
    ucred = struct.Struct("3i")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, ucred.size)
    return _Peer(*ucred.unpack(found))


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield an address of `path` that fits: a socket's has at most 107 bytes."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
