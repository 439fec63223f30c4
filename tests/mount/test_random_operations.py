"""A proto dataset in a mount is a local directory: random operations on both, then the freeze."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.accounts import Account
from tests.support.directory_trees import md5_of_files
from tests.support.mounts import mounted
from tests.support.servers import ServerHandle

# By user; what the kernel permits differs, what the daemon does with it does not.
OPERATIONS = {True: 10_000, False: 3_000}
# The same operations in every run; `python -m tests.support.random_operations` takes others.
SEED = 5


@pytest.mark.timeout(600)
def test_proto_dataset_does_what_a_local_directory_does_and_freezes_to_the_same_bytes(
    fuse: None, current_user: Account, account: Account, server: ServerHandle, token: str
) -> None:
    if account.python != Path(sys.executable):
        pytest.skip("other users can run neither this Python nor these tests")
    local = account.home / "local"
    account.run("mkdir", local, check=True)
    with mounted(account, server.base_uri, token, "--freeze-delay", "manual") as mount:
        dataset = mount / f"random-{account.name}"
        account.run("mkdir", dataset, check=True)

        number = OPERATIONS[account == current_user]
        options = ["--operations", str(number), "--seed", str(SEED)]
        program: list[str | Path] = [account.python, "-m", "tests.support.random_operations"]
        done = account.run(*program, dataset, local, *options, timeout_s=400)

        assert done.returncode == 0, done.stdout + done.stderr
        frozen = account.dserverfs("freeze", dataset, timeout_s=200)
        assert frozen.returncode == 0, frozen.stderr
    with mounted(
        account, server.base_uri, token, "--cache-dir", str(account.home / "cold")
    ) as mount:
        items = mount / f"random-{account.name}" / "data"
        assert md5_of_files(account, items) == md5_of_files(account, local)
