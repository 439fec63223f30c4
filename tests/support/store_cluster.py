"""`scripts/cluster` for tests: its parts can be killed one by one."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dserverfs.server.store.signing import Storage
from tests.support.child_processes import spawn
from tests.support.mount_daemons import wait_for

SCRIPT = Path(__file__).parents[2] / "scripts" / "cluster"
START_TIMEOUT_S = 240.0  # 8 s where the packages are installed
READY = "ready: "
PARTS = 10
MASTERS = ("master1", "master2", "master3")


class StoreCluster(NamedTuple):
    """A cluster that runs."""

    directory: Path
    storage: Storage
    process: subprocess.Popen[bytes]

    def pid(self, part: str) -> int:
        return int((self.directory / part / "pid").read_text())

    @contextlib.contextmanager
    def without(self, part: str) -> Iterator[None]:
        """Kill a part, which is down until the end of the block; it is started again then."""
        pid, down = self.pid(part), self.directory / part / "down"
        down.touch()
        os.kill(pid, signal.SIGKILL)
        try:
            yield
        finally:
            down.unlink()
        wait_for(lambda: self.pid(part) != pid, f"{part} is started again")

    def leader(self) -> str:
        """Return which master leads."""
        done = subprocess.run(
            [self.directory / "weed-shell"],
            input=b"cluster.raft.ps\n",
            capture_output=True,
            timeout=60,
            check=True,
        )
        (line,) = (line for line in done.stdout.decode().splitlines() if "(Leader)" in line)
        port = int(line.split()[1].rpartition(":")[2].partition(".")[0])
        return next(name for name in MASTERS if f"-port={port}" in self._command(name))

    def _command(self, part: str) -> list[str]:
        return Path(f"/proc/{self.pid(part)}/cmdline").read_text().split("\0")


@contextlib.contextmanager
def running_cluster(directory: Path, bucket: str, *options: str) -> Iterator[StoreCluster]:
    """Run a cluster until the end of the block; every user must be able to pass `directory`."""
    log = directory.with_name(f"{directory.name}.log")
    with (
        log.open("ab") as errors,
        spawn(
            [SCRIPT, directory, "--bucket", bucket, *options],
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        said = _said(process, log)
        storage = Storage(said["S3 endpoint"], said["access key"], said["secret key"], bucket)
        yield StoreCluster(directory, storage, process)
        pids = [int(file.read_text()) for file in directory.glob("*/pid")]
    assert len(pids) == PARTS
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []  # it ends with all of them


def _said(process: subprocess.Popen[bytes], log: Path) -> dict[str, str]:
    """Return what it prints once it is ready, by what stands before a colon."""
    assert process.stdout is not None
    deadline_s, text = time.monotonic() + START_TIMEOUT_S, ""
    while READY not in text:
        left_s = max(deadline_s - time.monotonic(), 0)
        ready, _, _ = select.select([process.stdout], [], [], left_s)
        part = os.read(process.stdout.fileno(), 4096).decode() if ready else ""
        assert part, f"the cluster did not start: {log.read_text()}"
        text += part
    pairs = (line.partition(": ") for line in text.splitlines())
    return {name.strip(): value for name, _, value in pairs}
