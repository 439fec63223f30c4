"""Damage that a disk, a crash or a hand does to files, done on purpose and chosen by a seed.

Used by the self-test of the cache, and by tests. Never call it for files that are the only copy of
something. No state.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

PAGE_BYTES = 4096

# Given a file that is there, and other files of its kind.
Hurt = Callable[[Path, "list[Path]", random.Random], None]


def bit(path: Path, others: list[Path], chance: random.Random) -> None:
    """One bit is another."""
    place, mask = chance.randrange(max(1, path.stat().st_size)), 1 << chance.randrange(8)
    _change(path, place, lambda old: bytes([old[0] ^ mask]) if old else b"")


def bits(path: Path, others: list[Path], chance: random.Random) -> None:
    """Twenty bits are others."""
    for _ in range(20):
        bit(path, others, chance)


def zeros(path: Path, others: list[Path], chance: random.Random) -> None:
    """A page, or the whole of a smaller file, reads as zeros."""
    pages = max(1, -(-path.stat().st_size // PAGE_BYTES))
    place = PAGE_BYTES * chance.randrange(pages)
    _change(path, place, lambda old: bytes(len(old)), PAGE_BYTES)


def noise(path: Path, others: list[Path], chance: random.Random) -> None:
    """A page, or the whole of a smaller file, is another's."""
    pages = max(1, -(-path.stat().st_size // PAGE_BYTES))
    place = PAGE_BYTES * chance.randrange(pages)
    _change(path, place, lambda old: chance.randbytes(len(old)), PAGE_BYTES)


def pages_swapped(path: Path, others: list[Path], chance: random.Random) -> None:
    """Two pages of a file are in each other's place; a file of one page is turned around."""
    content = path.read_bytes()
    pages = [content[at : at + PAGE_BYTES] for at in range(0, len(content), PAGE_BYTES)]
    if len(pages) < 3:
        path.write_bytes(content[::-1])
        return
    one, two = chance.sample(range(len(pages) - 1), 2)
    pages[one], pages[two] = pages[two], pages[one]
    path.write_bytes(b"".join(pages))


def cut(path: Path, others: list[Path], chance: random.Random) -> None:
    """The end is missing."""
    os.truncate(path, chance.randrange(max(1, path.stat().st_size)))


def emptied(path: Path, others: list[Path], chance: random.Random) -> None:
    """Nothing is in it."""
    os.truncate(path, 0)


def grown(path: Path, others: list[Path], chance: random.Random) -> None:
    """More is in it."""
    with path.open("ab") as file:
        file.write(chance.randbytes(chance.randrange(1, 2 * PAGE_BYTES)))


def gone(path: Path, others: list[Path], chance: random.Random) -> None:
    """It is not there."""
    path.unlink()


def swapped(path: Path, others: list[Path], chance: random.Random) -> None:
    """It and another file of its kind, of the same size if there is one, have changed places."""
    size_in_bytes = path.stat().st_size
    alike = [other for other in others if other.stat().st_size == size_in_bytes]
    if not others:
        path.write_bytes(path.read_bytes()[::-1])
        return
    other = chance.choice(sorted(alike or others))
    scratch = path.with_name(f"{path.name}.swapped")
    path.rename(scratch)
    other.rename(path)
    scratch.rename(other)


def a_directory(path: Path, others: list[Path], chance: random.Random) -> None:
    """A directory is in its place, with a file in it."""
    path.unlink()
    path.mkdir()
    (path / "file").write_bytes(b"of something else")


def a_fifo(path: Path, others: list[Path], chance: random.Random) -> None:
    """A named pipe without another end is in its place."""
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path, others: list[Path], chance: random.Random) -> None:
    """A symbolic link that leads nowhere is in its place."""
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


DAMAGES: dict[str, Hurt] = {
    hurt.__name__: hurt
    for hurt in (
        *(bit, bits, zeros, noise, pages_swapped, cut, emptied, grown, gone, swapped),
        *(a_directory, a_fifo, a_link),
    )
}


def _change(path: Path, place: int, change: Callable[[bytes], bytes], length: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        old = file.read(length)
        file.seek(place)
        file.write(change(old))
