"""Mounts on a cache whose disk is full, fails or goes away: whatever can be read is read."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.accounts import Account
from tests.support.broken_disks import WAYS, full, own_disk
from tests.support.dtool_datasets import README, content_of, make_dataset
from tests.support.mount_daemons import wait_for
from tests.support.mounts import mounted, publish
from tests.support.servers import ServerHandle
from tests.support.small_disk import MIB, free_bytes, small_disk

DISK_BYTES = 48 * MIB
LARGE_BYTES = 30 * MIB


@pytest.fixture
def disk(test_root: Path) -> Iterator[Path]:
    with small_disk(test_root / "small-cache-disk", DISK_BYTES) as path:
        yield path


SMALL = 6
ITEMS = {
    **{f"small/{number}": content_of(f"small {number}", 3000) for number in range(SMALL)},
    "three-blocks": content_of("three-blocks", 3 * MIB + 7),
}


@pytest.fixture(scope="module")
def datasets(server: ServerHandle, token: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    local = [
        make_dataset(
            tmp_path_factory.mktemp("local"),
            name,
            {relpath: name.encode() + content for relpath, content in ITEMS.items()},
        )
        for name in ("visited", "unvisited")
    ]
    publish(server.base_uri, token, tmp_path_factory.mktemp("cache"), *local)


def read_all(base: Path, name: str) -> None:
    """Read everything of a dataset in many ways, and find it right."""
    path = base / name
    assert sorted(os.listdir(path / "data/small")) == sorted(str(n) for n in range(SMALL))
    manifest = json.loads((path / ".dtool/manifest.json").read_bytes())
    assert len(manifest["items"]) == len(ITEMS)
    assert (path / "README.yml").read_text() == README
    assert os.listdir(path / ".dtool/tags") == ["testing"]
    for relpath, content in ITEMS.items():
        assert (path / "data" / relpath).read_bytes() == name.encode() + content
    assert (path / "data/three-blocks").read_bytes() == name.encode() + ITEMS["three-blocks"]


def warnings_of(account: Account) -> list[str]:
    logs = sorted(account.home.glob(".local/state/dserverfs/*.log"), key=os.path.getmtime)
    return [line for line in logs[-1].read_text().splitlines() if " WARNING " in line]


# Without inodes it is as full, and held by the tests of the manifests.
@pytest.mark.parametrize("way", [way for way in WAYS if way != "no_inodes"])
def test_what_was_not_visited_before_is_read_whatever_becomes_of_the_cache(
    fuse: None,
    current_user: Account,
    server: ServerHandle,
    token: str,
    datasets: None,
    test_root: Path,
    way: str,
) -> None:
    with own_disk(test_root / "broken-disk") as directory:
        cache = ("--cache-dir", str(directory), "--read-only")
        with mounted(current_user, server.base_uri, token, *cache) as base:
            read_all(base, "visited")
            with WAYS[way](directory):
                read_all(base, "unvisited")
                read_all(base, "visited")
                # A file that was overwritten may be looked at again meanwhile, which is told.
                said = [line for line in warnings_of(current_user) if "made anew" not in line]
                assert len(said) <= 2, "one line for blocks, one for manifests"
            if way == "gone":
                assert [*directory.glob("manifests/*.index")], "it is made anew"
                # Blocks are written behind the reads, by a thread.
                wait_for((directory / "blocks/cache.db").exists, "the block cache made anew")


def test_cache_that_cannot_be_made_is_done_without(
    fuse: None,
    current_user: Account,
    server: ServerHandle,
    token: str,
    datasets: None,
    test_root: Path,
) -> None:
    with own_disk(test_root / "broken-disk") as directory, full(directory):
        cache = ("--cache-dir", str(directory), "--read-only")
        with mounted(current_user, server.base_uri, token, *cache) as base:
            read_all(base, "visited")


def test_limit_on_the_size_of_files_is_none_on_what_can_be_read(
    fuse: None,
    current_user: Account,
    server: ServerHandle,
    token: str,
    datasets: None,
    tmp_path: Path,
) -> None:
    limited = dataclasses.replace(current_user, _become=("prlimit", "--fsize=8192"))
    cache = ("--cache-dir", str(tmp_path / "cache"), "--read-only", "--log-level", "error")
    without = ("--channel", "auto")  # it cannot be started
    with mounted(limited, server.base_uri, token, *cache, *without) as base:
        read_all(base, "unvisited")


@pytest.fixture(scope="module")
def uri(server: ServerHandle, token: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    items = {"large": content_of("large", LARGE_BYTES), "small": content_of("small", 5000)}
    local = make_dataset(tmp_path_factory.mktemp("local"), "space", items)
    return publish(server.base_uri, token, tmp_path_factory.mktemp("cache"), local)[0]


def test_staging_gets_the_space_that_the_cache_of_two_mounts_has(
    fuse: None, current_user: Account, server: ServerHandle, token: str, uri: str, disk: Path
) -> None:
    cache = ("--cache-dir", str(disk / "cache"), "--cache-size", "40M")
    staging = ("--staging-dir", str(disk / "staging"), "--freeze-delay", "manual")
    large = content_of("large", LARGE_BYTES)
    with (
        mounted(current_user, uri, token, *cache, "--read-only") as reading,
        mounted(current_user, server.base_uri, token, *cache, *staging) as writing,
    ):
        dataset = writing / "takes-the-space"
        assert (reading / "data/large").read_bytes() == large
        assert (writing / "space/data/large").read_bytes() == large
        assert free_bytes(disk) < DISK_BYTES - LARGE_BYTES

        dataset.mkdir()
        with (dataset / "written").open("wb") as file:
            for _ in range(40):
                file.write(bytes(MIB))

        done = current_user.dserverfs("cache", "info", "--json", "--cache-dir", disk / "cache")
        facts = json.loads(done.stdout)
        assert facts["size_in_bytes"] < DISK_BYTES - 40 * MIB
        assert facts["limit_in_bytes"] == 40 * MIB
        assert (reading / "data/large").read_bytes() == large
        (dataset / "written").unlink()
        dataset.rmdir()
