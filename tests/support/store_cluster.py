"""`scripts/cluster` for tests: with its server, each part on a host of its own if that is allowed.

Its parts and hosts can be killed, held up and unplugged one by one.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from dserverfs.server.store.signing import Storage
from tests.support.child_processes import spawn
from tests.support.hosts import Host, why_there_are_none
from tests.support.mount_daemons import wait_for
from tests.support.servers import ServerHandle

SCRIPT = Path(__file__).parents[2] / "scripts" / "cluster"
START_TIMEOUT_S = 240.0  # 15 s where the packages are installed
STOP_S = 40.0
READY = "ready: "
ON_HOSTS, HERE = 17, 11  # processes of a cluster that is whole
MASTERS = ("master1", "master2", "master3")
# One of each kind, the hosts included; without some nothing can go on.
KINDS = ("gunicorn", "volume1", "postgresql", "filer1", "leader", "store1")
NEEDED = frozenset({"postgresql", "gunicorn", "haproxy", "haproxy3", "server"})


class StoreCluster(NamedTuple):
    """A cluster that runs, with its server."""

    directory: Path
    storage: Storage  # by an address that this process reaches, once it has `entered`
    server: ServerHandle  # likewise; its base URI has the name that clients know
    authority: Path
    process: subprocess.Popen[bytes]
    hosts: Mapping[str, Host]  # empty: all is on this machine

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread open its sockets where the cluster is, inside the block."""
        with self.hosts["server"].entered() if self.hosts else contextlib.nullcontext():
            yield

    def pid(self, part: str) -> int:
        return int((self.directory / part / "pid").read_text())

    def parts(self) -> list[str]:
        """Return the names of all parts and hosts that can be killed."""
        return sorted(path.parent.name for path in self.directory.glob("*/pid"))

    @contextlib.contextmanager
    def without(self, part: str) -> Iterator[None]:
        """Kill a part, which is down until the end of the block; it is started again then."""
        pid, down = self.pid(part), self.directory / part / "down"
        down.touch()
        with contextlib.suppress(ProcessLookupError):  # its host was killed
            os.kill(pid, signal.SIGKILL)
        try:
            yield
        finally:
            down.unlink()
        wait_for(lambda: self.pid(part) != pid, f"{part} is started again")

    @contextlib.contextmanager
    def held_up(self, part: str) -> Iterator[None]:
        """Stop a part, which keeps its connections and says nothing, inside the block.

        Of gunicorn its workers are stopped: the process above them would begin new ones.
        """
        pids = _children(self.pid(part)) if part == "gunicorn" else [self.pid(part)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def unplugged(self, host: str) -> Iterator[None]:
        """Take a host's cable out, inside the block."""
        self.hosts[host].run("ip", "link", "set", "lan", "down")
        try:
            yield
        finally:
            self.hosts[host].run("ip", "link", "set", "lan", "up")

    def leader(self) -> str:
        """Return which master leads."""
        prefix = self.hosts["server"].prefix if self.hosts else ()
        done = subprocess.run(
            [*prefix, str(self.directory / "weed-shell")],
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
    why_not = why_there_are_none()
    if why_not:
        print(f"the cluster has no hosts of its own: {why_not}")
    layout = "--server" if why_not else "--hosts"
    with (
        log.open("ab") as errors,
        spawn(
            [SCRIPT, directory, "--bucket", bucket, layout, *options],
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        cluster = _started(_said(process, log), directory, bucket, process)
        yield cluster
        process.terminate()
        process.wait(STOP_S)
        pids = {part: cluster.pid(part) for part in cluster.parts()}
    assert len(pids) == (HERE if why_not else ON_HOSTS)
    left = [part for part, pid in pids.items() if Path(f"/proc/{pid}").exists()]
    assert not left  # it ends with all of them


def _started(
    said: Mapping[str, str], directory: Path, bucket: str, process: subprocess.Popen[bytes]
) -> StoreCluster:
    prefixes = {
        name.removeprefix("on "): value.split()
        for name, value in said.items()
        if name.startswith("on ")
    }
    hosts = {name: _host(prefix) for name, prefix in prefixes.items()}
    of_store, of_server = urlsplit(said["S3 endpoint"]), urlsplit(said["dserver URL"])
    store, server = "127.0.0.1", "127.0.0.1"
    if hosts:
        store, server = hosts["store1"].address, hosts["server"].address
    storage = Storage(
        f"https://{store}:{of_store.port}", said["access key"], said["secret key"], bucket
    )
    handle = ServerHandle(
        f"https://{server}:{of_server.port}",
        said["base URI"],
        directory / "dserver" / "token",
        process,  # type: ignore[arg-type]  # of bytes
        {},
    )
    authority = Path(said["certificate authority, for clients"])
    return StoreCluster(directory, storage, handle, authority, process, hosts)


def _host(prefix: Sequence[str]) -> Host:
    net, mounts = (Path(each.partition("=")[2]) for each in prefix[1:3])
    host = Host(net, (), mounts)
    shown = subprocess.run(
        [*host.prefix, "ip", "-brief", "-4", "address", "show", "lan"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return host._replace(addresses=(shown.stdout.split()[2].partition("/")[0],))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


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
