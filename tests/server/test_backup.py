"""Backups as the page about groups has them, restored on empty directories."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.accounts import Account
from tests.support.patience import LATE_S
from tests.support.server_store import storage_of
from tests.support.servers import ServerHandle, running_server, upload

CONTENTS = {"large": os.urandom(3_000_000), "a/ü b": b"small", "empty": b""}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHandle]:
    """A server with datasets in two buckets."""
    with running_server(tmp_path_factory.mktemp("original") / "data") as server:
        upload(server, CONTENTS, readme=b"first: true", tags=["kept"])
        upload(server, {"x": b"x"}, name="another")
        base_uri = server.add_base_uri(search=[server.username], register=[server.username])
        upload(server, {"y": b"y"}, base_uri=base_uri)
        yield server


def verified(server: ServerHandle, user: Account, base: str, tmp_path: Path) -> list[str]:
    """Return the URIs of all datasets that a server has; each was read and compared."""
    settings = {
        "DSERVER_TOKEN": server.token,
        "DSERVER_CACHE_DIR": str(tmp_path / f"cache-of-{server.data.name}"),
    }
    found = user.dserverfs("find", "--uri", base, env=settings, check=True).stdout.split()
    done = user.dserverfs("verify", *found, env=settings)
    assert done.returncode == 0, done.stderr
    return sorted(uri.partition("/s3/")[2] for uri in found)


def test_copy_of_a_bucket_in_a_server_that_was_empty_has_every_dataset_right(
    original: ServerHandle, current_user: Account, tmp_path: Path
) -> None:
    beside = Path(sys.executable).with_name("rclone")
    program = str(beside) if beside.exists() else shutil.which("rclone")
    if program is None:
        pytest.skip("rclone is not installed")
    before = verified(original, current_user, original.base_uri, tmp_path)
    with running_server(tmp_path / "restored") as server:
        remotes = {}
        for name, each in (("lab", original), ("elsewhere", server)):
            storage = storage_of(each)
            remotes[f"RCLONE_CONFIG_{name.upper()}_TYPE"] = "s3"
            remotes[f"RCLONE_CONFIG_{name.upper()}_PROVIDER"] = "SeaweedFS"
            remotes[f"RCLONE_CONFIG_{name.upper()}_ENDPOINT"] = storage.endpoint
            remotes[f"RCLONE_CONFIG_{name.upper()}_ACCESS_KEY_ID"] = storage.access_key
            remotes[f"RCLONE_CONFIG_{name.upper()}_SECRET_ACCESS_KEY"] = storage.secret_key
        command = [program, "--config", "", "sync", "--metadata"]
        subprocess.run(
            [*command, "lab:datasets", "elsewhere:datasets"],
            env={**os.environ, **remotes},
            check=True,
            timeout=120,
        )
        command = [sys.executable, "-m", "dserverfs", "serve", "index", "s3://datasets"]
        indexed = subprocess.run(
            [*command, "--data", str(server.data)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert indexed.stdout.startswith("2 datasets registered")
        assert verified(server, current_user, server.base_uri, tmp_path) == before
        readmes = [server.get(f"/readmes/s3/{uri}").json()["readme"] for uri in before]
        assert json.dumps(readmes).count("first: true") == 1


def test_copy_of_the_data_directory_has_all_users_and_every_dataset_right(
    original: ServerHandle, current_user: Account, tmp_path: Path
) -> None:
    token = original.token
    before = verified(original, current_user, original.base_uri.partition("/s3/")[0], tmp_path)
    assert len(before) == 3
    original.process.terminate()  # for good: this test is the last one
    original.process.wait(LATE_S)

    subprocess.run(["rsync", "-a", f"{original.data}/", tmp_path / "restored"], check=True)
    shutil.rmtree(original.data)

    with running_server(tmp_path / "restored") as server:
        after = verified(server, current_user, server.base_uri.partition("/s3/")[0], tmp_path)
        assert after == before
        assert server.get("/me", token=token).status_code == 200
