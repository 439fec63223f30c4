"""dtool commands without the start of a Python for each: forks of a process that is warm.

The warm process has imported what dtool's command imports of others, a third of a second of
processor time, and nothing of dtool or dserverfs itself. A fork of it gets its own arguments,
environment, directory and files, imports dtool and dserverfs as a new process does, and ends
as one: by the interpreter's own end. Requests come over a socket, whose end ends the warm
process; each brings a socket of its own, for the process id and then the exit status.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MAX_REQUEST = 1 << 20
_OWN = ("dtool", "dserverfs")  # a name of a module of theirs begins so


class WarmDtool:
    """Runs dtool commands by forks of one process, which is started by the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    def run(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        input: str,
        timeout_s: float,
    ) -> subprocess.CompletedProcess[str]:
        """Return an ended `dtool ARGUMENTS...` with its output, as subprocess.run does."""
        command = [str(Path(sys.executable).with_name("dtool")), *arguments]
        request = json.dumps({"command": command, "env": dict(env), "cwd": str(cwd)}).encode()
        with (
            tempfile.TemporaryFile() as stdin,
            tempfile.TemporaryFile() as stdout,
            tempfile.TemporaryFile() as stderr,
        ):
            stdin.write(input.encode())
            stdin.seek(0)
            files = [file.fileno() for file in (stdin, stdout, stderr)]
            status = self._ended(request, files, timeout_s)
            texts = []
            for file in (stdout, stderr):
                file.seek(0)
                texts.append(file.read().decode())
        return subprocess.CompletedProcess(command, status, *texts)

    def _ended(self, request: bytes, files: list[int], timeout_s: float) -> int:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(self._started(), [request], [*files, theirs.fileno()])
            with ours.makefile("r") as answers:
                pid = int(answers.readline())
                ended, _, _ = select.select([ours], [], [], timeout_s)
                if not ended:
                    os.kill(pid, signal.SIGKILL)
                status = int(answers.readline())
        if not ended:
            raise subprocess.TimeoutExpired(request, timeout_s)
        return status

    def _started(self) -> socket.socket:
        with self._lock:
            if self._requests is None:
                self._requests, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
                with theirs:
                    fd = theirs.fileno()
                    self._process = subprocess.Popen(
                        [sys.executable, __file__, str(fd)],
                        stdin=subprocess.DEVNULL,
                        pass_fds=[fd],
                    )
            return self._requests

    def close(self) -> None:
        """End the warm process."""
        with self._lock:
            if self._requests is not None and self._process is not None:
                self._requests.close()
                self._process.wait()
                self._requests = self._process = None


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for each request and return it in the fork, with its files in place; None at the end."""
    running: dict[int, tuple[int, socket.socket]] = {}  # by pidfd
    while True:
        ready, _, _ = select.select([requests.fileno(), *running], [], [])
        for pidfd in set(running).intersection(ready):
            pid, answers = running.pop(pidfd)
            _, status = os.waitpid(pid, 0)
            answers.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            answers.close()
            os.close(pidfd)
        if requests.fileno() not in ready:
            continue
        message, fds, _, _ = socket.recv_fds(requests, _MAX_REQUEST, 4)
        if not message:
            return None
        answers = socket.socket(fileno=fds.pop())
        pid = os.fork()
        if not pid:
            for number, fd in enumerate(fds):
                os.dup2(fd, number)
            for fd in [*fds, *running, answers.detach(), requests.detach()]:
                os.close(fd)
            for _, other in running.values():
                other.close()
            request: dict[str, Any] = json.loads(message)
            return request
        for fd in fds:
            os.close(fd)
        answers.sendall(b"%d\n" % pid)
        running[os.pidfd_open(pid)] = pid, answers


def _import_what_others_made() -> None:
    before = set(sys.modules)
    importlib.import_module("dtool_cli.cli")
    # What they know of a home is that of whoever imports them.
    for name in set(sys.modules) - before:
        if name.startswith(_OWN):
            del sys.modules[name]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the run, which ends this
    _import_what_others_made()
    if request := serve(socket.socket(fileno=int(sys.argv[1]))):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.argv[:] = request["command"]
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
