"""What the mount does about bytes that are not the manifest's, and about expired tokens."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dserverfs.base.items import BLOCK_SIZE
from tests.support.accounts import Account
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mounts import mounted, publish
from tests.support.patience import LATE_S
from tests.support.server_store import StoredItems
from tests.support.servers import ServerHandle

SMALL, LARGE = 5000, 4 * BLOCK_SIZE + 99
Mount = Callable[..., AbstractContextManager[Path]]


@pytest.fixture
def uri(server: ServerHandle, token: str, tmp_path: Path) -> str:
    items = {"small": content_of("small", SMALL), "large": content_of("large", LARGE)}
    local = make_dataset(tmp_path, "damaged", items)
    return publish(server.base_uri, token, tmp_path / "cache", local)[0]


@pytest.fixture
def stored(server: ServerHandle, uri: str) -> StoredItems:
    return StoredItems.of(server, uri)


@pytest.fixture
def mount(fuse: None, current_user: Account, token: str, tmp_path: Path) -> Mount:
    """Mounts a URI, with a cache of the test: verified bytes of one dataset serve others."""
    options = ("--cache-dir", str(tmp_path / "own"))
    return lambda uri, *more: mounted(current_user, uri, token, *options, *more)


@pytest.mark.parametrize(("relpath", "size"), [("small", SMALL), ("large", LARGE)])
def test_copy_of_damaged_bytes_fails_and_of_mended_ones_is_right(
    current_user: Account, mount: Mount, stored: StoredItems, uri: str, relpath: str, size: int
) -> None:
    right = content_of(relpath, size)
    damaged = bytearray(right)
    damaged[size // 2] ^= 1
    stored.put(relpath, bytes(damaged))
    with mount(uri) as path:
        copy = current_user.run("cp", path / "data" / relpath, "damaged-copy")
        assert copy.returncode != 0
        assert os.strerror(5) in copy.stderr

        stored.put(relpath, right)
        # The kernel is told in another thread to forget what it was given.
        end = time.monotonic() + LATE_S
        while (path / "data" / relpath).read_bytes() != right:
            assert time.monotonic() < end, "wrong bytes stay in the page cache"
        assert hashlib.md5((path / "data" / relpath).read_bytes()).digest() == (
            hashlib.md5(right).digest()
        )


def test_item_gone_from_the_store_is_an_error_and_the_rest_is_readable(
    mount: Mount, stored: StoredItems, uri: str
) -> None:
    stored.delete("large")

    with mount(uri) as path:
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
    mount: Mount, server: ServerHandle, stored: StoredItems, uri: str
) -> None:
    """Without block hashes, as of datasets that others made."""
    damaged = bytearray(content_of("large", LARGE))
    damaged[0] ^= 1
    stored.put("large", bytes(damaged))
    stored.client.delete_object(Bucket=stored.bucket, Key=f"{stored.uuid}/block-hashes")

    with mount(uri, "--verify", "strict") as path:
        with (path / "data/large").open("rb", buffering=0) as file:
            file.seek(LARGE - 10)
            with pytest.raises(OSError, match=os.strerror(5)):
                file.read(1)
        assert (path / "data/small").read_bytes() == content_of("small", SMALL)


def test_content_that_was_verified_is_read_in_another_dataset_without_its_object(
    mount: Mount, server: ServerHandle, token: str, uri: str, tmp_path: Path
) -> None:
    twin = make_dataset(tmp_path, "twin-content", {"of/large": content_of("large", LARGE)})
    twin_uri = publish(server.base_uri, token, tmp_path / "publishing", twin)[0]
    StoredItems.of(server, twin_uri).delete("of/large")
    with mount(uri) as path:
        assert (path / "data/large").read_bytes() == content_of("large", LARGE)

    with mount(twin_uri) as path:
        assert (path / "data/of/large").read_bytes() == content_of("large", LARGE)
