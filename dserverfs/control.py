"""A mount's control socket: how commands speak to the daemon that serves a path.

Used by the mount (Server) and the commands (ask). A Unix socket in a directory
only its user can enter, named by the mount's device number. One request a
connection: a JSON object in a line; answered by lines of JSON objects: any
number with `progress`, then one with `result` or `error`. Blocking, threads only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dserverfs.errors import DserverfsError, UsageError

logger = logging.getLogger(__name__)

Answer = dict[str, Any]
Handler = Callable[[dict[str, Any]], Iterator[Answer]]

MAX_LINE_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 10.0


def socket_name(device: int) -> str:
    """Return the name of the socket of the mount with that st_dev."""
    return f"{os.major(device)}-{os.minor(device)}"


class Server:
    """Answers requests, each in a thread of its own."""

    def __init__(self, directory: Path, name: str, handle: Handler) -> None:
        self._path = directory / name
        self._handle = handle
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Listen; raises UsageError if there can be no socket."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)  # of a mount that was killed
            listener = socket.socket(socket.AF_UNIX)
            with _short(self._path) as address:
                listener.bind(address)
            os.chmod(self._path, 0o600)
            listener.listen()
        except OSError as error:
            raise UsageError(f"{self._path}: no control socket: {error.strerror}") from error
        self._socket = listener
        threading.Thread(target=self._run, args=(listener,), name="control", daemon=True).start()

    def close(self) -> None:
        if self._socket is not None:
            self._path.unlink(missing_ok=True)
            self._socket.close()

    def _run(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed
            threading.Thread(
                target=self._serve, args=(connection,), name="command", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as file:
            try:
                for answer in self._answers(file.readline(MAX_LINE_BYTES)):
                    file.write(json.dumps(answer).encode() + b"\n")
                    file.flush()
            except (OSError, ValueError):
                pass  # who asked is gone

    def _answers(self, line: bytes) -> Iterator[Answer]:
        try:
            request = json.loads(line)
            yield from self._handle(request)
        except (DserverfsError, OSError) as error:
            yield {"error": str(error)}
        except Exception:
            logger.exception("a fault of ours in a command")
            yield {"error": "a fault of dserverfs; its log says more"}


def ask(path: Path, request: dict[str, Any]) -> Iterator[Answer]:
    """Yield the answers of the daemon whose socket is `path`, up to the last, a `result`.

    Raises UsageError with what an `error` says, or if no daemon answers.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(CONNECT_TIMEOUT_S)
        try:
            with _short(path) as address:
                connection.connect(address)
        except OSError as error:
            raise UsageError(f"the mount cannot be asked ({path}): {error.strerror}") from error
        connection.settimeout(None)
        with connection.makefile("rwb") as file:
            file.write(json.dumps(request).encode() + b"\n")
            file.flush()
            for line in file:
                answer: Answer = json.loads(line)
                if "error" in answer:
                    raise UsageError(str(answer["error"]))
                yield answer
                if "result" in answer:
                    return
    raise UsageError("the mount ended before it was done")


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield an address of `path` that fits: a socket's has at most 107 bytes."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
