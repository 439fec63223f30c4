"""Mounts on a cache whose disk is full, fails or goes away: whatever can be read is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.accounts import Account
from tests.datasets import content_of, make_dataset
from tests.mounting import mounted, publish
from tests.serving import ServerHandle
from tests.small_disk import MIB, free_bytes, small_disk

DISK_BYTES = 48 * MIB
LARGE_BYTES = 30 * MIB


@pytest.fixture
def disk(test_root: Path) -> Iterator[Path]:
    with small_disk(test_root / "small-cache-disk", DISK_BYTES) as path:
        yield path


@pytest.fixture(scope="module")
def uri(server: ServerHandle, token: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    items = {"large": content_of("large", LARGE_BYTES), "small": content_of("small", 5000)}
    local = make_dataset(tmp_path_factory.mktemp("local"), "disk-full", items)
    return publish(server.base_uri, token, tmp_path_factory.mktemp("cache"), local)[0]


def test_staging_gets_the_space_that_the_cache_of_two_mounts_has(
    fuse: None, current_user: Account, server: ServerHandle, token: str, uri: str, disk: Path
) -> None:
    cache = ("--cache-dir", str(disk / "cache"), "--cache-size", "40M")
    staging = ("--staging-dir", str(disk / "staging"), "--freeze-delay", "manual")
    with (
        mounted(current_user, uri, token, *cache, "--read-only") as reading,
        mounted(current_user, server.base_uri, token, *cache, *staging) as writing,
    ):
        dataset = writing / "takes-the-space"
        assert (reading / "data/large").read_bytes() == content_of("large", LARGE_BYTES)
        assert (writing / "disk-full/data/large").read_bytes() == content_of("large", LARGE_BYTES)
        assert free_bytes(disk) < DISK_BYTES - LARGE_BYTES

        dataset.mkdir()
        with (dataset / "written").open("wb") as file:
            for _ in range(40):
                file.write(bytes(MIB))

        done = current_user.dserverfs("cache", "info", "--json", "--cache-dir", disk / "cache")
        facts = json.loads(done.stdout)
        assert facts["size_in_bytes"] < DISK_BYTES - 40 * MIB
        assert facts["limit_in_bytes"] == 40 * MIB
        assert (reading / "data/large").read_bytes() == content_of("large", LARGE_BYTES)
        (dataset / "written").unlink()
        dataset.rmdir()
