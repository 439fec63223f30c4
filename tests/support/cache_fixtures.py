"""The fixtures of tests of the block cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dserverfs.reading.cache.block_cache import BlockCache, CacheTuning
from dserverfs.reading.cache.block_table import BlockTable
from dserverfs.reading.cache.opening import open_table
from tests.support.block_rows import NO_LIMIT
from tests.support.failing_caches import AT_ONCE


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[BlockCache]:
    cache = BlockCache(tmp_path / "blocks")
    cache.open()
    yield cache
    cache.close()


@pytest.fixture
def cache_directory(tmp_path: Path) -> Path:
    """The directory of the caches that `open_cache` opens."""
    return tmp_path / "blocks"


@pytest.fixture
def open_cache(cache_directory: Path) -> Iterator[Callable[..., BlockCache]]:
    """Opens caches that share a directory, and closes them in the end."""
    opened: list[BlockCache] = []

    def open_one(tuning: CacheTuning = AT_ONCE, **options: Any) -> BlockCache:
        opened.append(BlockCache(cache_directory, tuning=tuning, **options))
        opened[-1].open()
        return opened[-1]

    yield open_one
    for cache in opened:
        cache.close()


@pytest.fixture
def table(tmp_path: Path) -> Iterator[BlockTable]:
    table = open_table(tmp_path, NO_LIMIT, 0.05)
    yield table
    table.close()
