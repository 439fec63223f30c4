"""Users of a cluster: two mounts, on hosts of their own, and eight programs that work in them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.accounts import Account
from tests.support.child_processes import spawn
from tests.support.cluster_objects import require_frozen
from tests.support.mount_daemons import Remountable, remountable
from tests.support.promises import PromiseList
from tests.support.store_cluster import StoreCluster

CLIENTS = ("a1", "b1", "a2", "b2", "a3", "b3", "a4", "b4")
MOUNTS = {"a": "client1", "b": "client2"}
GOES_ON_S = 150.0
POLL_S = 0.1


class Users:
    """Programs that make datasets in one mount and read those of the other one."""

    def __init__(
        self, cluster: StoreCluster, mounts: dict[str, Remountable], directory: Path
    ) -> None:
        self.promises = PromiseList(directory / "promises")
        self.log = directory / "clients.log"
        self._cluster = cluster
        self._reads = directory / "reads"
        self._reads.touch()
        self._mounts = mounts
        self._daemons = {name: mount.daemon() for name, mount in mounts.items()}
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, stack: contextlib.ExitStack) -> None:
        for name in CLIENTS:
            mount = self._mounts[name[0]]
            account = mount.account
            places = (mount.path, self.promises.path, self._reads, name)
            log = stack.enter_context(self.log.open("ab"))
            program = spawn(
                account.command(account.python, "-m", "tests.support.cluster_client", *places),
                env=dict(account.environment),
                stderr=log,
            )
            self._running.append(stack.enter_context(program))

    def longest_wait_s(self, since_s: float) -> tuple[float, int]:
        """Return the longest wait of a reader since then, for the docs, and how many read."""
        waits = [each["wait_s"] for each in self._read_reads() if each["at_s"] > since_s]
        return max(waits, default=0.0), len(waits)

    def wait_until_all_have_gone_on(self) -> None:
        """Return when each has frozen and read something since this was called."""
        self.promises.read()
        frozen, read = self._frozen(), len(self._read_reads())

        end_s = time.monotonic() + GOES_ON_S
        late: set[str] = set(CLIENTS)
        while late:
            assert time.monotonic() < end_s, f"{late} do not go on: {self.log.read_text()}"
            assert all(each.poll() is None for each in self._running), self.log.read_text()
            time.sleep(POLL_S)
            self.promises.read()
            made, readers = self._frozen(), {each["client"] for each in self._read_reads()[read:]}
            late = {c for c in CLIENTS if made[c] <= frozen[c] or c not in readers}

    def end(self) -> int:
        """Let each make what it has begun, and require all that was said to be frozen.

        Return how many datasets that are.
        """
        for process in self._running:
            process.terminate()
        lines = self.log.read_text().splitlines()
        reads = sum(" read: " in line for line in lines)
        print(f"{len(lines) - reads} freezes took more than 25 s; {reads} reads found no server")
        assert [process.wait(GOES_ON_S) for process in self._running] == [0] * len(CLIENTS), (
            self.log.read_text()
        )
        assert {name: mount.daemon() for name, mount in self._mounts.items()} == self._daemons
        self.promises.read()
        frozen = [each for each in self.promises.datasets.values() if each.frozen]
        with self._cluster.entered():
            require_frozen(self._cluster.storage, self._cluster.server, frozen)
        return len(frozen)

    def _read_reads(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._reads.read_text().splitlines()]

    def _frozen(self) -> dict[str, int]:
        names = [name for name, each in self.promises.datasets.items() if each.frozen]
        return {c: sum(name.startswith(f"{c}-") for name in names) for c in CLIENTS}


@contextlib.contextmanager
def working_users(cluster: StoreCluster, account: Account, directory: Path) -> Iterator[Users]:
    """Mount the cluster's base URI twice, each with a cache of its own, and begin to work."""
    server = urlsplit(cluster.server.base_uri).netloc
    with contextlib.ExitStack() as stack:
        mounts = {}
        for name, host in MOUNTS.items():
            settings = {
                f"DSERVER_TOKEN_{server}": cluster.server.token,
                "DSERVER_PROTOCOL": "https",
                "DSERVER_CA_FILE": str(cluster.authority),
                "DSERVER_CACHE_DIR": str(directory / name),
            }
            user = account
            if cluster.hosts:
                user = dataclasses.replace(account, _become=cluster.hosts[host].prefix)
            mount = stack.enter_context(remountable(user, cluster.server.base_uri, settings))
            mount.mount("--freeze-delay", "manual")
            mounts[name] = mount
        users = Users(cluster, mounts, directory)
        users.start(stack)
        yield users
