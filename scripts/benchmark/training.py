"""Rows of a training job: processes that read all items of a dataset, each its share, shuffled.

The items are in the peer's cache, and the kernel holds that in memory. First the mount's own pages
are dropped, as of a dataset that is larger than the memory; then it is read once more, in another
order, from what the kernel has kept.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence

from benchmark import reader_process
from benchmark.measuring import READ_BYTES, Measurement, WrongAnswer, measure
from benchmark.mounts import Mount
from benchmark.peers import Peer
from benchmark.rows import Bench, forget_pages_of
from dserverfs.base.model import Item

PROCESSES = 8
ROWS = ("training-warm", "training-again")


def training(bench: Bench, peer: Peer) -> Iterator[Measurement]:
    dataset = bench.lab.images()
    items = [*dataset.local.items.values()]
    with peer.mounted(bench.lab, bench.mounts, dataset) as mount:
        bench.settle()
        _epoch(mount, items, "before")
        os.sync()
        if not peer.is_floor:
            for item in items:
                forget_pages_of(mount.path_of(item))
        for row in ROWS:
            yield _epoch(mount, items, f"{row} {bench.repeat}", row)
            if not bench.wants(ROWS[-1]):
                return


def _epoch(mount: Mount, items: Sequence[Item], seed: str, row: str = "") -> Measurement:
    """Read all items once, in the order that `seed` says, the same for all peers."""
    shuffled = random.Random(seed).sample(items, len(items))
    shares = [shuffled[i::PROCESSES] for i in range(PROCESSES)]
    with _Readers([_Reader(mount, share) for share in shares if share]) as readers:
        result, _ = measure(row, mount.processes, readers.read)
        readers.check()
    return result


class _Reader:
    """One of the processes, which is ready to read."""

    def __init__(self, mount: Mount, items: Sequence[Item]) -> None:
        self._items = items
        size = sum(item.size_in_bytes for item in items)
        self.process = subprocess.Popen(
            [sys.executable, "-S", reader_process.__file__, str(size), str(READ_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        paths = [mount.path_of(item) for item in items]
        self._write("".join(f"{path}\n" for path in paths) + "\n")

    def begin(self) -> None:
        self._write("\n")

    def expect(self, word: str) -> None:
        said = self._line()
        if said != word:
            raise RuntimeError(f"a reader says {said!r} in place of {word!r}")

    def check(self) -> None:
        """Raise WrongAnswer unless it read the items."""
        for item in self._items:
            if self._line() != item.hash:
                raise WrongAnswer(f"{item.relpath}: bytes that are not the item's")

    def _write(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().rstrip("\n")


class _Readers:
    """All of them; the end of the block ends them."""

    def __init__(self, readers: Sequence[_Reader]) -> None:
        self._readers = readers

    def __enter__(self) -> _Readers:
        try:
            self._expect("ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers:
            with contextlib.suppress(OSError), reader.process:
                reader.process.kill()

    def read(self) -> None:
        for reader in self._readers:
            reader.begin()
        self._expect("read")

    def check(self) -> None:
        for reader in self._readers:
            reader.check()

    def _expect(self, word: str) -> None:
        for reader in self._readers:
            reader.expect(word)
