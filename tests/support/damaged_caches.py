"""Block caches that are damaged on purpose, and what is then found in them."""

from __future__ import annotations

import contextlib
import logging
import random
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from dserverfs.base.damage import DAMAGES
from dserverfs.reading.cache.block_cache import BlockCache, CacheTuning
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import MemoryBlock
from tests.support.cache_worker import BLOCKS, bytes_of, check
from tests.support.patience import LATE_S

ITEMS = 6
_TUNING = CacheTuning(busy_timeout_s=2.0, retry_after_failure_s=0.02)
# Every kind of file of a cache directory, by the name that it has there.
KINDS = {
    "database": r"cache\.db",
    "write-ahead log": r"cache\.db-wal",
    "index of the log": r"cache\.db-shm",
    "blocks": r"[0-9a-f]/[0-9a-f]{31}-[0-9a-f]{1,8}\.blk",
    "layout": "format",
    "lock": "lock",
    "mark of the sweep": "swept",
    "mark of evictions": "evicted",
}


def opened(directory: Path) -> BlockCache:
    cache = BlockCache(directory, size_limit=1 << 30, tuning=_TUNING)
    cache.open()
    return cache


def fill(cache: BlockCache) -> None:
    """Keep every item, of which every second one is verified."""
    for item in range(ITEMS):
        blocks = [MemoryBlock(bytes_of(item, block)) for block in range(BLOCKS)]
        cache.store([(BlockKey(f"item{item}", i), block) for i, block in enumerate(blocks)])
        if item % 2:
            serials = [block.serial for block in blocks]
            cache.enter_verified(f"item{item}", f"=content{item}", serials)


def left_by_a_kill(directory: Path, scratch: Path) -> Path:
    """Return a filled cache as a killed process leaves it, with SQLite's log."""
    cache = opened(scratch)
    fill(cache)
    shutil.copytree(scratch, directory)
    cache.close()
    return directory


def files_by_kind(directory: Path) -> dict[str, list[Path]]:
    """Return what is there; fails for a file of no kind that is known."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != "file":  # that of `a_directory`
            name = str(path.relative_to(directory))
            kinds = [kind for kind, form in KINDS.items() if re.fullmatch(form, name)]
            assert kinds, f"{name}: a kind of file that no damage was tried on"
            found[kinds[0]].append(path)
    return found


def hurt(directory: Path, kind: str, damage: str, seed: str) -> None:
    """Damage one of the files of a kind."""
    chance = random.Random(seed)
    files = files_by_kind(directory)[kind]
    path = files.pop(chance.randrange(len(files)))
    DAMAGES[damage](path, files, chance)


def require_right(directory: Path, about: str) -> dict[str, int]:
    """Read all that may be there: right bytes or none; then keep it, and find it all."""
    seen = dict.fromkeys(("right", "wrong", "missed", "damaged"), 0)
    with without_warnings():
        cache = opened(directory)
        for item in range(ITEMS):
            for block in range(BLOCKS):
                check(cache, item, block, seen)
        end_s = time.monotonic() + LATE_S
        while not _is_in_use(cache, seen):
            assert time.monotonic() < end_s, f"{about}: the cache is not used again"
            time.sleep(0.01)
        cache.close()
    assert not seen["wrong"], f"{about}: wrong bytes"
    return seen


def _is_in_use(cache: BlockCache, seen: dict[str, int]) -> bool:
    """Keep all once more, and return whether all of it is found."""
    fill(cache)
    now = dict.fromkeys(seen, 0)
    for item in range(ITEMS):
        for block in range(BLOCKS):
            check(cache, item, block, now)
    seen["wrong"] += now["wrong"]
    return now["right"] >= ITEMS * BLOCKS


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Let the block log what it finds."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
