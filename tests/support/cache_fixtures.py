"""The fixture of tests of the block cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.reading.cache.block_cache import BlockCache


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[BlockCache]:
    cache = BlockCache(tmp_path / "blocks")
    cache.open()
    yield cache
    cache.close()
