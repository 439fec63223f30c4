"""One `weed` as a child: how it is started, ended and asked for its end.

Its output is in a log of its own; the log of the run before is kept beside it. It holds the
lock of the store's directory as long as it lives. Main thread only: the child dies with the
thread that starts it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dserverfs.base import child_processes
from dserverfs.base.errors import DserverfsError
from dserverfs.server.store import die_with_parent

STOP_DEADLINE_S = 0.5  # its volumes are closed 0.02 s after SIGTERM
_TAIL_BYTES = 64 * 1024
_FATAL = re.compile(r"F\d{4} ")


class StoreEnded(DserverfsError):
    """`weed` ended by itself; the message has the end of its log."""


class WeedProcess:
    """A `weed` that runs in `directory`, where its configuration is."""

    def __init__(self, log: Path, directory: Path) -> None:
        self._log = log
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self,
        weed: str,
        arguments: Sequence[str],
        *,
        lock: int,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Run the program `weed`; `settings` are variables of its environment."""
        if self._log.exists():
            self._log.replace(self._log.with_name(f"{self._log.name}.1"))
        with open(self._log, "ab", opener=_private_opener) as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())),
                    # Into its log here, and not /tmp as well. Warnings and worse: at INFO it
                    # grows by 4 MB a day with nothing to do.
                    *(weed, "-logtostderr", "-v=-1", *arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=child_processes.environment(**(settings or {})),
                cwd=self._directory,
                pass_fds=[lock],
                start_new_session=True,  # Ctrl-C in a terminal is for us alone
            )

    def ended(self) -> int | None:
        """Return its exit status, or None while it runs or was never started."""
        return None if self._process is None else self._process.poll()

    def failure(self) -> StoreEnded:
        """Return what to raise when it ended by itself."""
        status = self.ended()
        how = f"by signal {-status}" if status is not None and status < 0 else f"with {status}"
        return StoreEnded(f"weed ended {how}; the end of {self._log}: {_tail(self._log)}")

    def stop(self) -> None:
        """End it, at once if it does not end by itself; returns when it is gone."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _tail(path: Path) -> str:
    """Return the end of a log as one line: the fatal error if there is one."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return "(no log)"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # glog marks it so, and writes the stacks of all threads after it.
    fatal = [line for line in lines if _FATAL.match(line)]
    return " | ".join(fatal[-1:] or lines[-3:]) or "(empty)"


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
