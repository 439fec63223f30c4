"""The bytes of a frozen dataset in the cache: the right ones, or none."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from dserverfs.base.items import BLOCK_SIZE, content_key
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import BackendURI, DserverURI
from dserverfs.reading.cache.adopting import adopt
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_keys import BlockKey
from tests.support.local_uploads import local_dataset

pytest_plugins = ["tests.support.cache_fixtures"]

CONTENTS = {"small.txt": b"small\n", "large.bin": os.urandom(BLOCK_SIZE + 5)}


@pytest.fixture
def local(tmp_path: Path) -> LocalDataset:
    local = local_dataset(tmp_path / "items", CONTENTS)
    for item in local.items.values():
        os.utime(local.path_of(item), ns=(item.mtime_ns, item.mtime_ns))
    return local


def uri_of(local: LocalDataset) -> DserverURI:
    return DserverURI("server", BackendURI("s3://bucket"), local.admin_metadata["uuid"])


def found(cache: BlockCache, local: LocalDataset) -> dict[str, bytes]:
    """Return the items all of whose blocks are in the cache as verified."""
    items = {}
    for item in local.items.values():
        key = content_key(local.hash_function, item.hash, item.size_in_bytes)
        content = CONTENTS[item.relpath]
        lengths = [
            len(content[start : start + BLOCK_SIZE]) for start in range(0, len(content), BLOCK_SIZE)
        ]
        blocks = [cache.load(BlockKey(key, index), size) for index, size in enumerate(lengths)]
        if all(block is not None for block in blocks):
            items[item.relpath] = b"".join(
                bytes(block.read(0, BLOCK_SIZE)) for block in blocks if block is not None
            )
    return items


def test_frozen_items_are_found_by_their_content(cache: BlockCache, local: LocalDataset) -> None:
    adopt(cache, uri_of(local), local, threading.Event())

    assert found(cache, local) == CONTENTS


def test_item_that_was_changed_after_the_freeze_is_left_out(
    cache: BlockCache, local: LocalDataset
) -> None:
    (item,) = (item for item in local.items.values() if item.relpath == "small.txt")
    local.path_of(item).write_bytes(b"other\n")

    adopt(cache, uri_of(local), local, threading.Event())

    assert found(cache, local) == {"large.bin": CONTENTS["large.bin"]}


def test_nothing_is_taken_over_after_the_stop(cache: BlockCache, local: LocalDataset) -> None:
    stop = threading.Event()
    stop.set()

    adopt(cache, uri_of(local), local, stop)

    assert found(cache, local) == {}


@pytest.mark.parametrize("max_bytes", [5, 6, 7, sum(map(len, CONTENTS.values()))])
def test_no_more_is_taken_over_than_the_limit(
    cache: BlockCache, local: LocalDataset, max_bytes: int
) -> None:
    adopt(cache, uri_of(local), local, threading.Event(), max_bytes=max_bytes)

    fitting = {name: data for name, data in CONTENTS.items() if len(data) <= max_bytes}
    assert found(cache, local) == fitting


def test_stop_between_two_items_ends_it(cache: BlockCache, local: LocalDataset) -> None:
    class Soon(threading.Event):
        def is_set(self) -> bool:
            was_set = super().is_set()
            self.set()
            return was_set

    adopt(cache, uri_of(local), local, Soon())

    assert found(cache, local) == {"small.txt": CONTENTS["small.txt"]}


@pytest.mark.parametrize("fault", ["missing", "shorter"])
def test_item_that_cannot_be_read_keeps_no_other_away(
    cache: BlockCache, local: LocalDataset, fault: str
) -> None:
    (item,) = (item for item in local.items.values() if item.relpath == "small.txt")
    path = local.path_of(item)
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(b"small")
        os.utime(path, ns=(item.mtime_ns, item.mtime_ns))

    adopt(cache, uri_of(local), local, threading.Event())

    assert found(cache, local) == {"large.bin": CONTENTS["large.bin"]}
