"""A server with its store, a mount, writers and a dtool, any of which can be killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from dserverfs.base.mountinfo import find_mounted
from tests.support import accounts
from tests.support.child_processes import spawn
from tests.support.directory_trees import md5_of_files
from tests.support.mount_daemons import remountable
from tests.support.promises import Promised, PromiseList
from tests.support.server_store import weed_of
from tests.support.servers import ServerHandle, running_server

SETTLE_S = 120.0
POLL_S = 0.05
Running = contextlib.AbstractContextManager[subprocess.Popen[bytes]]
# Below those that the kernel gives to whom asks for any.
PORTS = (15000, 30000)


class World:
    """One machine with all of it; `directory` is empty.

    Server, staging area and cache are on `disk`, the rest is outside: whom it is for.
    """

    def __init__(
        self,
        directory: Path,
        dice: random.Random,
        disk: Path | None = None,
        record: Path | None = None,
    ) -> None:
        disk = disk or directory
        # For those who note promises about that disk.
        self._where: tuple[str, ...] = () if record is None else ("--record", str(record))
        self.account = accounts.current(directory)
        self.promises = PromiseList(directory / "promises")
        self.scratch = directory / "scratch"
        self.scratch.mkdir()
        self.log = directory / "programs.log"
        self.log.touch()
        self.settled: dict[str, str] = {}  # uuid of each frozen dataset by name
        self._data = disk / "server"
        self._port = _free_port(dice)
        self._server = contextlib.ExitStack()
        self.server = self._serve()
        self._token = self.server.token
        self._stack = contextlib.ExitStack()
        self.environment = {"DSERVER_TOKEN": self._token}
        self.mount = self._stack.enter_context(
            remountable(self.account, self.server.base_uri, self.environment)
        )
        self._settle_on(disk)

    def move_to(self, disk: Path) -> None:
        """Go on, all having been killed, with what another disk has of it."""
        self._server.close()
        self._data = disk / "server"
        self._settle_on(disk)
        self.settled.clear()
        self.server = self._serve()

    def _settle_on(self, disk: Path) -> None:
        self.mount.staging = disk / "staging"
        self.environment["DSERVER_STAGING_DIR"] = str(self.mount.staging)
        self.environment["DSERVER_CACHE_DIR"] = str(disk / "cache")

    def close(self) -> None:
        with self._server, self._stack:
            pass

    # Processes

    def _serve(self) -> ServerHandle:
        return self._server.enter_context(running_server(self._data, "--port", str(self._port)))

    def bring_up(self, *options: str) -> int:
        """Start what does not run; return the process id of the daemon, which serves."""
        if self.server.process.poll() is not None:
            self._server.close()
            self.server = self._serve()
        if not self._is_served():
            self.mount.mount(*options)
        daemon = self.mount.daemon()
        mounted = find_mounted(self.mount.path)
        assert mounted is not None, "nothing is mounted"
        assert mounted.fstype == "fuse.dserverfs"
        assert os.stat(self.mount.path).st_dev != os.stat(self.mount.path.parent).st_dev
        return daemon

    def _is_served(self) -> bool:
        try:
            self.mount.daemon()
        except AssertionError:
            return False
        return True

    def kill(self, victim: str, broker: subprocess.Popen[bytes] | None = None) -> None:
        """End a part at once; it is gone when this returns."""
        if victim == "daemon":
            self.mount.end(signal.SIGKILL)
        elif victim == "store":
            os.kill(weed_of(self.server), signal.SIGKILL)
            self.server.process.wait(60)  # it cannot work without
        elif victim == "server":
            self.server.process.kill()
            self.server.process.wait(60)
        elif broker is not None:
            broker.kill()
            broker.wait(60)

    def kill_all(self) -> None:
        """Kill server, store and daemon: what the power does that is cut."""
        self.kill("server")
        self.kill("daemon")

    def writer(self, prefix: str, *options: str) -> Running:
        """Run a writer in the mount; it ends with the block, its dataset made."""
        mount, promises = str(self.mount.path), str(self.promises.path)
        return self._running("steady_writer", mount, promises, prefix, *self._where, *options)

    def broker(self, what: str, *names: str) -> Running:
        """Run dtool; it ends with the block."""
        places = (self.server.base_uri, str(self.promises.path), str(self.scratch))
        return self._running("steady_broker", what, *places, *names, *self._where)

    @contextlib.contextmanager
    def _running(self, module: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        environment = {**self.account.environment, **self.environment}
        command = [str(self.account.python), "-m", f"tests.support.{module}", *words]
        with (
            self.log.open("ab") as output,
            spawn(
                command, env=environment, cwd=self.scratch, stdout=output, stderr=output
            ) as process,
        ):
            yield process
            process.terminate()
            process.wait(SETTLE_S)

    def bytes_written_by(self, pid: int) -> int:
        """Return how much a process has given to write(2) and its kind."""
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("wchar: "):
                return int(line.split()[1])
        raise AssertionError("no wchar")

    # What is there

    def staged(self) -> dict[str, str]:
        return self.mount.states()

    def wait_until_settled(self) -> None:
        """Return when all that was sealed is frozen, and all changes are sent."""
        end_s = time.monotonic() + SETTLE_S
        while True:
            states = set(self.staged().values())
            if states <= {"open"} and not self._unsent():
                return
            assert time.monotonic() < end_s, f"not settled: {self.staged()}, {self._unsent()}"
            time.sleep(POLL_S)

    def _unsent(self) -> list[Path]:
        return list(self.mount.staging.glob(".edits/*/*/*.json"))

    def seen(self, promised: Promised) -> dict[str, str]:
        """Return what the mount shows of a staged dataset."""
        found = md5_of_files(self.account, self.mount.path / promised.name)
        if promised.facts.get("broker"):
            kept = {name: md5 for name, md5 in found.items() if name.startswith("data/")}
            return {name.removeprefix("data/"): md5 for name, md5 in kept.items()}
        return found


def _free_port(dice: random.Random) -> int:
    while True:
        port = dice.randrange(*PORTS)
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            return port
