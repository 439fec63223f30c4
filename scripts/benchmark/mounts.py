"""One mount of a peer, as a user would have it: its daemon's time and memory, and its end.

A daemon leaves its parent, so its processes are found by a mark in their
environment. `Mounts` must be used in the main thread of a process that adopts
orphans (`adopt_orphans`), or ended daemons stay behind as zombies.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dserverfs.base.model import Item

MARK = "DSERVERFS_BENCH_MOUNT"
END_TIMEOUT_S = 30.0
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Place:
    """Where a peer is to mount, what it may write to, and its processes' environment."""

    path: Path
    cache: Path
    log: Path
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Mount:
    """A directory in which a dataset's items are files."""

    items: Path
    cache: Path
    by_identifier: bool  # files are named by identifiers, as objects are, not by relpaths
    processes: Processes

    def name_of(self, item: Item) -> str:
        return item.identifier if self.by_identifier else item.relpath

    def path_of(self, item: Item) -> Path:
        return self.items / self.name_of(item)


class Processes:
    """All processes with one mark in their environment."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()

    def pids(self) -> list[int]:
        found = []
        for name in os.listdir("/proc"):
            if not name.isdecimal() or int(name) == os.getpid():
                continue
            with contextlib.suppress(OSError):  # ended meanwhile, or another user's
                # That of a zombie is empty.
                if self._mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.append(int(name))
        return found

    def cpu_seconds(self) -> float:
        """Return the time they and their ended children have used so far."""
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/stat").read_text()
                fields = text.rpartition(")")[2].split()
                ticks += sum(int(field) for field in fields[11:15])
        return ticks / _TICKS_PER_S

    def reset_peak(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """Return the sum of what each had in memory at most since `reset_peak`."""
        peak = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        peak += int(line.split()[1]) * 1024
        return peak

    def kill(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def killed_after(self, limit_s: float) -> Iterator[None]:
        """Kill them if the block takes longer: whoever waits for them then gets an error."""
        timer = threading.Timer(limit_s, self.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def wait_ended(self, timeout_s: float) -> bool:
        """Return True when there are none any more, False if some stay that long."""
        deadline = time.monotonic() + timeout_s
        while self.pids():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


class Mounts:
    """Fresh places for mounts below one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = itertools.count()

    @contextlib.contextmanager
    def place(self) -> Iterator[tuple[Place, Processes]]:
        """Yield an empty mount point with an empty cache; unmount and remove all at the end."""
        top = self._directory / f"mount-{next(self._numbers)}"
        place = Place(top / "mnt", top / "cache", top / "log", _environment(top))
        place.path.mkdir(parents=True)
        place.cache.mkdir(mode=0o700)
        processes = Processes(str(top))
        try:
            yield place, processes
        finally:
            end(place.path, processes)
            shutil.rmtree(top, ignore_errors=True)


def adopt_orphans() -> None:
    """Become the parent of daemons that leave theirs, so that they can be waited for."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _environment(top: Path) -> dict[str, str]:
    """Return an environment without anybody's proxies, credentials and configuration."""
    kept = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "LANG": "C.UTF-8",
        "HOME": str(top),
        MARK: str(top),
        **kept,
    }


def end(path: Path, processes: Processes) -> None:
    """Unmount, and return when the daemon has ended."""
    pids = processes.pids()
    if pids or os.path.ismount(path):
        _fusermount("-u", path)
        if not processes.wait_ended(END_TIMEOUT_S):
            processes.kill()
            _fusermount("-uz", path)
            processes.wait_ended(END_TIMEOUT_S)
    for pid in pids:
        with contextlib.suppress(ChildProcessError):  # not adopted by us
            os.waitpid(pid, os.WNOHANG)


def _fusermount(option: str, path: Path) -> None:
    subprocess.run(["fusermount3", option, str(path)], capture_output=True, timeout=30, check=False)
