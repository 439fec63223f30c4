"""What the mount does about bytes that are not the manifest's, and about expired tokens."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import boto3
import pytest

from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.model import identifier_of
from tests.support.accounts import Account
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mounts import mounted, publish
from tests.support.server_store import storage_of
from tests.support.servers import ServerHandle

# Each mount has a cache of its own: verified bytes of one dataset would serve the other.
SMALL, LARGE = 5000, 4 * BLOCK_SIZE + 99


def bucket_of(server: ServerHandle) -> tuple[str, Any]:
    """Return the store's bucket and a client of it, past the dserver."""
    storage = storage_of(server)
    session = boto3.session.Session(storage.access_key, storage.secret_key, region_name="us-east-1")
    return storage.bucket, session.client("s3", endpoint_url=storage.endpoint)


@pytest.fixture
def uri(server: ServerHandle, token: str, tmp_path: Path) -> str:
    items = {"small": content_of("small", SMALL), "large": content_of("large", LARGE)}
    local = make_dataset(tmp_path, "damaged", items)
    return publish(server.base_uri, token, tmp_path / "cache", local)[0]


@pytest.mark.parametrize(("relpath", "size"), [("small", SMALL), ("large", LARGE)])
def test_copy_of_damaged_bytes_fails_and_of_mended_ones_is_right(
    fuse: None,
    current_user: Account,
    server: ServerHandle,
    token: str,
    uri: str,
    relpath: str,
    size: int,
    tmp_path: Path,
) -> None:
    bucket, client = bucket_of(server)
    key = f"{uri.rpartition('/')[2]}/data/{identifier_of(relpath)}"
    right = content_of(relpath, size)
    damaged = bytearray(right)
    damaged[size // 2] ^= 1
    client.put_object(Bucket=bucket, Key=key, Body=bytes(damaged))
    with mounted(current_user, uri, token, "--cache-dir", str(tmp_path / "own")) as path:
        copy = current_user.run("cp", path / "data" / relpath, "damaged-copy")
        assert copy.returncode != 0
        assert os.strerror(5) in copy.stderr

        client.put_object(Bucket=bucket, Key=key, Body=right)
        # The kernel is told in another thread to forget what it was given.
        end = time.monotonic() + 20
        while (path / "data" / relpath).read_bytes() != right:
            assert time.monotonic() < end, "wrong bytes stay in the page cache"
        assert hashlib.md5((path / "data" / relpath).read_bytes()).digest() == (
            hashlib.md5(right).digest()
        )


def test_item_gone_from_the_store_is_an_error_and_the_rest_is_readable(
    fuse: None,
    current_user: Account,
    server: ServerHandle,
    token: str,
    uri: str,
    tmp_path: Path,
) -> None:
    bucket, client = bucket_of(server)
    key = f"{uri.rpartition('/')[2]}/data/{identifier_of('large')}"
    client.delete_object(Bucket=bucket, Key=key)

    with mounted(current_user, uri, token, "--cache-dir", str(tmp_path / "own")) as path:
        with (path / "data/large").open("rb") as file, pytest.raises(OSError, match=os.strerror(5)):
            file.read(1)
        assert (path / "data/small").read_bytes() == content_of("small", SMALL)


def test_token_that_expired_is_named_as_such(
    fuse: None, current_user: Account, server: ServerHandle, tmp_path: Path
) -> None:
    expired = server.token_for(server.username, exp=int(time.time()) - 60)
    mountpoint = current_user.home / "expired"
    mountpoint.mkdir()

    done = current_user.dserverfs(
        "mount", server.base_uri, mountpoint, env={"DSERVER_TOKEN": expired}
    )

    assert done.returncode == 1
    assert "refuses the token" in done.stderr
    assert "expired" in done.stderr
    assert done.stderr.count("\n") == 1
    mountpoint.rmdir()


def test_strict_mount_gives_no_byte_of_a_damaged_item(
    fuse: None,
    current_user: Account,
    server: ServerHandle,
    token: str,
    uri: str,
    tmp_path: Path,
) -> None:
    bucket, client = bucket_of(server)
    damaged = bytearray(content_of("large", LARGE))
    damaged[0] ^= 1
    key = f"{uri.rpartition('/')[2]}/data/{identifier_of('large')}"
    client.put_object(Bucket=bucket, Key=key, Body=bytes(damaged))
    options = ("--cache-dir", str(tmp_path / "own"), "--verify", "strict")

    with mounted(current_user, uri, token, *options) as path:
        with (path / "data/large").open("rb", buffering=0) as file:
            file.seek(LARGE - 10)
            with pytest.raises(OSError, match=os.strerror(5)):
                file.read(1)
        assert (path / "data/small").read_bytes() == content_of("small", SMALL)


def test_content_that_was_verified_is_read_in_another_dataset_without_its_object(
    fuse: None,
    current_user: Account,
    server: ServerHandle,
    token: str,
    uri: str,
    tmp_path: Path,
) -> None:
    twin = make_dataset(tmp_path, "twin", {"of/large": content_of("large", LARGE)})
    twin_uri = publish(server.base_uri, token, tmp_path / "publishing", twin)[0]
    bucket, client = bucket_of(server)
    key = f"{twin_uri.rpartition('/')[2]}/data/{identifier_of('of/large')}"
    client.delete_object(Bucket=bucket, Key=key)
    cache = ("--cache-dir", str(tmp_path / "own"))
    with mounted(current_user, uri, token, *cache) as path:
        assert (path / "data/large").read_bytes() == content_of("large", LARGE)

    with mounted(current_user, twin_uri, token, *cache) as path:
        assert (path / "data/of/large").read_bytes() == content_of("large", LARGE)
