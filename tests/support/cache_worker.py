"""A process that uses a block cache hard; started by the tests of several at once.

    python -m tests.support.cache_worker DIRECTORY SIZE_LIMIT SEED SECONDS

Stores, verifies and reads blocks of which anybody can tell whether they are
right, and prints, at its end or never, what it saw.
"""

from __future__ import annotations

import functools
import json
import random
import sys
import time
from pathlib import Path

from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import DamagedBlock, MemoryBlock

ITEMS = 40
BLOCKS = 4
LENGTHS = (700, 90_000, 300_000)


def length_of(item: int, block: int) -> int:
    return LENGTHS[(item + block) % len(LENGTHS)]


@functools.cache
def bytes_of(item: int, block: int) -> bytes:
    return random.Random(f"{item} {block}").randbytes(length_of(item, block))


def check(cache: BlockCache, item: int, block: int, seen: dict[str, int]) -> None:
    for key in (BlockKey(f"item{item}", block), BlockKey(f"=content{item}", block)):
        found = cache.load(key, length_of(item, block))
        if found is None:
            seen["missed"] += 1
            continue
        try:
            right = bytes(found.read(0, 1 << 20)) == bytes_of(item, block)
        except DamagedBlock:
            cache.drop_damaged(key)
            seen["damaged"] += 1
            continue
        seen["right" if right else "wrong"] += 1


def main(directory: str, size_limit: str, seed: str, seconds: str) -> None:
    cache = BlockCache(Path(directory), size_limit=int(size_limit))
    cache.open()
    chance = random.Random(seed)
    seen = dict.fromkeys(("right", "wrong", "missed", "damaged"), 0)
    print("ready", flush=True)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        item = chance.randrange(ITEMS)
        blocks = [MemoryBlock(bytes_of(item, block)) for block in range(BLOCKS)]
        cache.store([(BlockKey(f"item{item}", i), block) for i, block in enumerate(blocks)])
        if chance.random() < 0.5:
            serials = [block.serial for block in blocks]
            cache.enter_verified(f"item{item}", f"=content{item}", serials)
        for _ in range(10):
            check(cache, chance.randrange(ITEMS), chance.randrange(BLOCKS), seen)
    cache.close()
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
