"""Reads of items of which one bit is flipped in the store, in all the ways programs read.

    python -m tests.support.flipped_bits WAY SEED RIGHT MOUNTED

compares the file MOUNTED with RIGHT, piece by piece, and prints which pieces are right, are
errors and are wrong. Started as the user of the mount: SIGBUS is an answer.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.items import BLOCK_SIZE
from tests.support.accounts import Account
from tests.support.server_store import StoredItems

SIZE = 3 * BLOCK_SIZE + 4097
PIECE = 64 * 1024


def sequential(path: str, chance: random.Random) -> Iterator[tuple[int, bytes | None]]:
    """One read after the other, on one descriptor."""
    yield from _read(path, range(0, SIZE, PIECE), os.O_RDONLY)


def shuffled(path: str, chance: random.Random) -> Iterator[tuple[int, bytes | None]]:
    """All pieces in any order."""
    yield from _read(path, chance.sample(range(0, SIZE, PIECE), -(-SIZE // PIECE)), os.O_RDONLY)


def a_few(path: str, chance: random.Random) -> Iterator[tuple[int, bytes | None]]:
    """One piece in ten, each by a descriptor of its own."""
    for offset in chance.sample(range(0, SIZE, PIECE), SIZE // PIECE // 10):
        yield from _read(path, [offset], os.O_RDONLY)


def direct(path: str, chance: random.Random) -> Iterator[tuple[int, bytes | None]]:
    """All pieces in any order, past the page cache."""
    offsets = chance.sample(range(0, SIZE, PIECE), -(-SIZE // PIECE))
    yield from _read(path, offsets, os.O_RDONLY | os.O_DIRECT)


def mapped(path: str, chance: random.Random) -> Iterator[tuple[int, bytes | None]]:
    """Through memory: an error ends a process with SIGBUS, so each piece has one."""
    fd = os.open(path, os.O_RDONLY)
    with mmap.mmap(fd, SIZE, prot=mmap.PROT_READ) as memory:
        os.close(fd)
        for offset in chance.sample(range(0, SIZE, PIECE), -(-SIZE // PIECE)):
            ours, theirs = os.pipe()
            child = os.fork()
            if child == 0:
                piece = memory[offset : offset + PIECE]
                os.write(theirs, piece)
                os._exit(0)
            os.close(theirs)
            with open(ours, "rb") as pipe:
                content = pipe.read()
            _, status = os.waitpid(child, 0)
            is_bus_error = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS
            assert is_bus_error or status == 0, status
            yield offset, None if is_bus_error else content


WAYS: dict[str, Callable[[str, random.Random], Iterator[tuple[int, bytes | None]]]] = {
    way.__name__: way for way in (sequential, shuffled, a_few, direct, mapped)
}


def _read(path: str, offsets: range | list[int], flags: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield each piece, None for an EIO."""
    fd = os.open(path, flags)
    buffer = mmap.mmap(-1, PIECE)  # aligned
    try:
        for offset in offsets:
            try:
                count = os.preadv(fd, [buffer], offset)
                yield offset, buffer[:count]
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                yield offset, None
    finally:
        os.close(fd)


class Seen(NamedTuple):
    """The offsets of the pieces of a file."""

    right: list[int]
    errors: list[int]
    wrong: list[int]


class Flips:
    """The items of one dataset, as they are right, and a bit of each that is not, in the store."""

    def __init__(
        self, account: Account, stored: StoredItems, right: Path, chance: random.Random
    ) -> None:
        """`right` has all items of SIZE bytes, where the account may read them."""
        self._account = account
        self._stored = stored
        self._right = right
        self._chance = chance

    def round(self, mounted: AbstractContextManager[Path], ways: list[str]) -> int:
        """Flip a bit of each item, mount, read each in one of the ways; return how many there are.

        Raises AssertionError unless exactly the pieces of the wrong block are errors.
        """
        items = sorted(path.name for path in self._right.iterdir())
        flipped = {}
        for name in items:
            content = bytearray((self._right / name).read_bytes())
            place = flipped[name] = self._chance.randrange(SIZE)
            content[place] ^= 1 << self._chance.randrange(8)
            self._stored.put(name, bytes(content))
        with mounted as path:
            for number, name in enumerate(items):
                way = ways[number % len(ways)]
                seen = self._read(way, self._right / name, path / "data" / name)
                about = f"{name}, {way}, bit of byte {flipped[name]}"
                assert not seen.wrong, f"{about}: wrong bytes at {seen.wrong}"
                block = flipped[name] // BLOCK_SIZE
                pieces = [*seen.right, *seen.errors]
                of_block = {at for at in pieces if at // BLOCK_SIZE == block}
                assert way == "a_few" or of_block, about
                missed, too_many = of_block - {*seen.errors}, {*seen.errors} - of_block
                assert not missed, f"{about}: no error, and the right bytes, at {missed}"
                assert not too_many, f"{about}: errors in other blocks at {too_many}"
        return len(items)

    def _read(self, way: str, right: Path, mounted: Path) -> Seen:
        seed = self._chance.randrange(1 << 32)
        done = self._account.run(
            *(self._account.python, "-m", "tests.support.flipped_bits"),
            *(way, f"{seed}", right, mounted),
        )
        assert done.returncode == 0, done.stderr
        return Seen(**json.loads(done.stdout))


def make_items(directory: Path, number: int, chance: random.Random) -> None:
    """Write items of SIZE bytes; others may read them."""
    directory.mkdir(mode=0o755)
    for each in range(number):
        (directory / f"item {each}").write_bytes(chance.randbytes(SIZE))


def main(way: str, seed: str, right: str, mounted: str) -> None:
    content = Path(right).read_bytes()
    seen = Seen([], [], [])
    for offset, piece in WAYS[way](mounted, random.Random(seed)):
        if piece is None:
            seen.errors.append(offset)
        elif piece == content[offset : offset + PIECE]:
            seen.right.append(offset)
        else:
            seen.wrong.append(offset)
    print(json.dumps(seen._asdict()))


if __name__ == "__main__":
    main(*sys.argv[1:])
