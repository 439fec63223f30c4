"""A SeaweedFS cluster as the store: its parts are killed while clients write and read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dserverfs.cli.main import main
from dserverfs.server.store.bucket import ObjectStore
from tests.support.accounts import Account
from tests.support.child_processes import spawn
from tests.support.cluster_objects import require_frozen
from tests.support.mount_daemons import Remountable, remountable
from tests.support.promises import PromiseList
from tests.support.server_store import set_dtool_s3
from tests.support.servers import ServerHandle, running_server, upload
from tests.support.store_cluster import SCRIPT, StoreCluster, running_cluster

CLIENTS = ("a1", "b1", "a2", "b2", "a3", "b3", "a4", "b4")
GOES_ON_S = 120.0
POLL_S = 0.1


@pytest.fixture(scope="module")
def cluster(test_root: Path) -> Iterator[StoreCluster]:
    for name in ("botocore", "boto3"):  # at DEBUG they tell a page per request
        logging.getLogger(name).setLevel(logging.INFO)
    with running_cluster(test_root / "cluster", "killed", "--restart-after", "1") as cluster:
        yield cluster


@pytest.fixture
def server(
    cluster: StoreCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServerHandle]:
    """A server whose bucket the cluster has."""
    set_dtool_s3(monkeypatch, cluster.storage, tmp_path)
    with running_server(tmp_path / "data", "--bucket", "killed") as server:
        yield server


@pytest.fixture
def mounts(
    fuse: None, current_user: Account, server: ServerHandle, tmp_path: Path
) -> Iterator[dict[str, Remountable]]:
    """Two mounts, each with a cache of its own, as on two hosts."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name in "ab":
            env = {"DSERVER_TOKEN": server.token, "DSERVER_CACHE_DIR": str(tmp_path / name)}
            mount = stack.enter_context(remountable(current_user, server.base_uri, env))
            mount.mount("--freeze-delay", "manual")
            found[name] = mount
        yield found


@pytest.fixture
def clients(
    mounts: dict[str, Remountable], tmp_path: Path, current_user: Account
) -> Iterator[Clients]:
    with contextlib.ExitStack() as stack:
        clients = Clients(tmp_path, mounts, current_user)
        clients.start(stack)
        yield clients


class Clients:
    """Eight programs that make datasets in one mount and read those of the other one."""

    def __init__(self, directory: Path, mounts: dict[str, Remountable], account: Account) -> None:
        self.promises = PromiseList(directory / "promises")
        self.log = directory / "clients.log"
        self._reads = directory / "reads"
        self._reads.touch()
        self._mounts = mounts
        self._account = account
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, stack: contextlib.ExitStack) -> None:
        for name in CLIENTS:
            command = [self._account.python, "-m", "tests.support.cluster_client"]
            places = [self._mounts[name[0]].path, self.promises.path, self._reads, name]
            log = stack.enter_context(self.log.open("ab"))
            program = spawn(
                [*map(str, command), *map(str, places)],
                env=dict(self._account.environment),
                stderr=log,
            )
            self._running.append(stack.enter_context(program))

    def reads(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._reads.read_text().splitlines()]

    def say(self, part: str, since_s: float) -> None:
        """Print the longest wait of a reader, for the docs."""
        waits = [each["wait_s"] for each in self.reads() if each["at_s"] > since_s]
        print(f"{part}: longest wait of a reader {max(waits):.1f} s, of {len(waits)} reads")

    def wait_until_all_have_gone_on(self) -> None:
        """Return when each has frozen and read something since this was called."""
        self.promises.read()
        frozen, read = self._frozen(), len(self.reads())

        end_s = time.monotonic() + GOES_ON_S
        late: set[str] = set(CLIENTS)
        while late:
            assert time.monotonic() < end_s, f"{late} do not go on: {self.log.read_text()}"
            assert all(each.poll() is None for each in self._running), self.log.read_text()
            time.sleep(POLL_S)
            self.promises.read()
            made, readers = self._frozen(), {each["client"] for each in self.reads()[read:]}
            late = {c for c in CLIENTS if made[c] <= frozen[c] or c not in readers}

    def end(self) -> None:
        """Let each make what it has begun, and end."""
        for process in self._running:
            process.terminate()
        print(f"{len(self.log.read_text().splitlines())} freezes took more than 25 s")
        assert [process.wait(GOES_ON_S) for process in self._running] == [0] * len(CLIENTS), (
            self.log.read_text()
        )

    def _frozen(self) -> dict[str, int]:
        names = [name for name, each in self.promises.datasets.items() if each.frozen]
        return {c: sum(name.startswith(f"{c}-") for name in names) for c in CLIENTS}


@pytest.mark.parametrize(
    "parts",
    [("volume1", "leader", "postgresql"), ("filer1", "filer2")],
    ids=" ".join,
)
def test_no_part_of_the_store_takes_a_dataset_or_a_mount_with_it(
    parts: Sequence[str],
    cluster: StoreCluster,
    server: ServerHandle,
    mounts: dict[str, Remountable],
    clients: Clients,
) -> None:
    daemons = {name: mount.daemon() for name, mount in mounts.items()}
    clients.wait_until_all_have_gone_on()

    for name in parts:
        part = cluster.leader() if name == "leader" else name
        killed_s = time.time()
        with cluster.without(part):
            if part != "postgresql":  # without which nothing can go on
                clients.wait_until_all_have_gone_on()
        clients.wait_until_all_have_gone_on()
        clients.say(name, killed_s)

    clients.end()
    assert {name: mount.daemon() for name, mount in mounts.items()} == daemons
    clients.promises.read()
    frozen = [each for each in clients.promises.datasets.values() if each.frozen]
    assert len(frozen) >= len(CLIENTS)
    require_frozen(cluster.storage, server, frozen)


def test_directory_of_others_is_left_alone(
    cluster: StoreCluster, test_root: Path, tmp_path: Path
) -> None:
    foreign = test_root / "not-a-cluster"
    foreign.mkdir()
    (foreign / "file").touch()
    before = foreign.stat()

    for directory, said in ((foreign, ""), (cluster.directory, "has a cluster that runs")):
        done = subprocess.run([SCRIPT, directory], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("cluster: ")
        assert done.stderr.count("\n") == 1
        assert said in done.stderr

    after = foreign.stat()
    assert (after.st_uid, after.st_mode, after.st_mtime) == (
        before.st_uid,
        before.st_mode,
        before.st_mtime,
    )


def test_bucket_moves_into_the_cluster_and_outlives_one_of_its_parts(
    cluster: StoreCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    contents = {f"{n}": random.Random(n).randbytes(n * 5000) for n in range(30)}
    contents["large"] = random.Random(0).randbytes(40 * 1024**2)
    storage = dataclasses.replace(cluster.storage, bucket="moved")
    store = ObjectStore(storage)
    store.ensure_bucket(storage.bucket)
    store.client.close()
    with running_server(tmp_path / "data", "--bucket", storage.bucket) as server:
        upload(server, contents)
    set_dtool_s3(monkeypatch, storage, tmp_path)
    command = ["serve", "--data", str(tmp_path / "data"), "migrate", "s3://moved"]

    with cluster.without("filer2"):
        assert main(command) == 0
    with cluster.without("volume2"):  # each object is on another one as well
        assert main([*command, "--verify"]) == 0

    assert "as they have to be" in capsys.readouterr().out
