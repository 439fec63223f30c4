"""The parts of the cluster as children of this process.

    NAME/pid    of the process that runs now
    NAME/log    its output; log.1 is that of the process before
    NAME/down   keeps it from being started again, as long as this file is there

A part that ends is started again, after a pause, as `Restart=always` of systemd does.
All die with this process, however that ends. Main thread only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dserverfs.base import child_processes
from dserverfs.base.durable_files import write_unsynced
from dserverfs.server.store import die_with_parent

# They end at once by SIGINT, closing connections; by SIGTERM they wait for them.
_END = {"postgresql": signal.SIGINT, "gunicorn": signal.SIGINT}


class Part(NamedTuple):
    """One program, and what is in its environment beside this process's."""

    name: str
    command: Sequence[str | Path]
    environment: Mapping[str, str] = {}


class Running:
    """One part that is kept running from `start` until `stop`."""

    def __init__(self, part: Part, directory: Path, restart_after_s: float) -> None:
        self.name = part.name
        self._part = part
        self._directory = directory / part.name
        self._config = directory / "config"
        self._restart_after_s = restart_after_s
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at_s: float | None = None
        self.ends = 0  # so many times it ended by itself

    def start(self) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        log = self._directory / "log"
        if log.exists():
            log.replace(log.with_name("log.1"))
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())),
                    *self._part.command,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=child_processes.environment(**self._part.environment),
                cwd=self._config,
                start_new_session=True,  # Ctrl-C in a terminal is for us alone
            )
        write_unsynced(self._directory / "pid", b"%d\n" % self._process.pid)
        self._start_at_s = None

    def tend(self) -> str | None:
        """Start the part again when it is time; return what happened, if it just ended."""
        if self._start_at_s is not None:
            if time.monotonic() >= self._start_at_s and not (self._directory / "down").exists():
                self.start()
            return None
        status = None if self._process is None else self._process.poll()
        if status is None:
            return None
        self._start_at_s = time.monotonic() + self._restart_after_s
        self.ends += 1
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return f"{self.name} ended {how}; it is started again in {self._restart_after_s:g} s"

    def has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def begin_to_stop(self) -> None:
        self._start_at_s = None
        if self._process is not None:
            self._process.send_signal(_END.get(self.name, signal.SIGTERM))

    def stop(self, deadline_s: float) -> None:
        """Return when the process has ended, by SIGKILL at the deadline, with its own children."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
