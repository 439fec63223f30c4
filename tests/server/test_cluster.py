"""A SeaweedFS cluster as the store: its parts are killed while clients write and read."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.cli.main import main
from dserverfs.server.store.bucket import ObjectStore
from tests.support.accounts import Account, is_reachable_by_all
from tests.support.cluster_world import CLIENTS, working_users
from tests.support.mounts import mounted
from tests.support.server_store import set_dtool_s3
from tests.support.servers import ServerHandle, running_server, upload
from tests.support.store_cluster import (
    KINDS,
    NEEDED,
    SCRIPT,
    StoreCluster,
    running_cluster,
)


@pytest.fixture(scope="module")
def cluster(
    fuse: None, test_root: Path, server: ServerHandle, current_user: Account
) -> Iterator[StoreCluster]:
    if os.geteuid() == 0 and not is_reachable_by_all(Path(sys.executable)):  # as below /root
        pytest.skip("the user postgres cannot run the Python of this checkout")
    for name in ("botocore", "boto3"):  # at DEBUG they tell a page per request
        logging.getLogger(name).setLevel(logging.INFO)
    with contextlib.ExitStack() as earlier:
        earlier.enter_context(mounted(current_user, server.base_uri, server.token))
        with (
            running_cluster(test_root / "cluster", "killed", "--restart-after", "1") as cluster,
            pytest.MonkeyPatch.context() as patch,
        ):
            earlier.close()  # no host has that mount, or its daemon would not end
            for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
                patch.setenv(name, str(cluster.authority))
            yield cluster


def test_no_part_and_no_host_takes_a_dataset_or_a_mount_with_it(
    cluster: StoreCluster, fuse: None, current_user: Account, tmp_path: Path
) -> None:
    there = cluster.parts()
    parts = [cluster.leader() if name == "leader" else name for name in KINDS]
    with working_users(cluster, current_user, tmp_path) as users:
        users.wait_until_all_have_gone_on()

        for name in [each for each in parts if each in there]:
            killed_s = time.time()
            with cluster.without(name):
                if name not in NEEDED:
                    users.wait_until_all_have_gone_on()
            if name in NEEDED:
                users.wait_until_all_have_gone_on()
            took_s, number = users.longest_wait_s(killed_s)
            print(f"{name}: longest wait of a reader {took_s:.1f} s, of {number} reads")

        assert users.end() >= len(CLIENTS)


def test_directory_of_others_is_left_alone(
    cluster: StoreCluster, test_root: Path, tmp_path: Path
) -> None:
    foreign = test_root / "not-a-cluster"
    foreign.mkdir()
    (foreign / "file").touch()
    before = foreign.stat()

    same = ["--hosts"] if cluster.hosts else ["--server"]
    for directory, said in ((foreign, ""), (cluster.directory, "has a cluster that runs")):
        command = [str(SCRIPT), str(directory), *same]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
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
    command = ["serve", "--data", str(tmp_path / "data"), "migrate", "s3://moved"]
    with cluster.entered():
        store = ObjectStore(storage)
        store.ensure_bucket(storage.bucket)
        store.client.close()
        with running_server(tmp_path / "data", "--bucket", storage.bucket) as server:
            upload(server, contents)
        set_dtool_s3(monkeypatch, storage, tmp_path)

        with cluster.without("filer2"):
            assert main(command) == 0
        with cluster.without("volume2"):  # each object is on another one as well
            assert main([*command, "--verify"]) == 0

    assert "as they have to be" in capsys.readouterr().out
