"""The rows of the table: what is measured, and how.

A scenario measures some rows on fresh mounts of one peer; it is repeated for
each peer in turn. "Cold" is a new mount with an empty cache directory, while the
kernel holds all files of the server. A scenario may leave out what is not wanted.
To add a row: a title, and a scenario that yields its measurement.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmark import measuring
from benchmark.lab import Lab, Published, drop_page_cache
from benchmark.measuring import Buffer, Measurement, WrongAnswer, measure
from benchmark.mounts import Mount, Mounts
from benchmark.peers import Dserverfs, Peer, curl
from dserverfs.base.model import Item

MIB = 1024 * 1024
READERS = (1, 16)
WARM_READS_PER_COLD = 20  # they take that much less time
COLD = "sequential-cold"
SEQUENTIAL = (COLD, "first-byte", "sequential-disk", "sequential-again")
UNVERIFIED = "sequential-off"  # dserverfs with --verify off
# Of a dataset that dtool made: no hash of a block tells dserverfs that it is right.
FOREIGN = "sequential-foreign"
CERTAIN = "sequential-certain"  # the others, and md5sum behind them


class Bench:
    """What scenarios work with."""

    def __init__(self, lab: Lab, mounts: Mounts, wanted: Collection[str]) -> None:
        self.lab = lab
        self.mounts = mounts
        self.wanted = wanted
        self.repeat = 0
        self.may_drop = True
        self._buffer: Buffer | None = None

    def buffer(self) -> Buffer:
        if self._buffer is None:
            self._buffer = Buffer(self.lab.sizes.large_bytes)
        return self._buffer

    def wants(self, *rows: str) -> bool:
        """Return whether any of these rows is to be measured."""
        return any(row in self.wanted for row in rows)

    def settle(self) -> None:
        """Have nothing that came before go on: no writing behind, the server's files in memory."""
        os.sync()
        self.lab.warm_store()
        _load_programs()

    def make_cold(self) -> None:
        """Likewise, and have the kernel hold nothing else: no file, no name, for anyone."""
        if not drop_page_cache():
            self.may_drop = False
        self.settle()

    def forget_pages(self, mount: Mount) -> None:
        """Have the next reading of a file go to the peer, and the peer's to the disk."""
        if drop_page_cache():
            _load_programs()
            return
        self.may_drop = False
        for top in {mount.items, mount.cache}:
            for path in top.rglob("*"):
                if path.is_file():
                    forget_pages_of(path)


def _load_programs() -> None:
    """Have the programs that rows run in memory again, for they are not what is measured."""
    for program in ("ls", "tar"):
        measuring.output_of(program, "--version")


def forget_pages_of(path: Path) -> None:
    """Have the kernel drop the clean pages of one file; nobody needs to be root for it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def sequential(bench: Bench, peer: Peer) -> Iterator[Measurement]:
    """Cold, again from the peer's cache, and again from memory; and cold, compared otherwise.

    Only dserverfs compares what it reads with the manifest, so that one cold reading of
    another is in all of these rows. Its user has to read it once more for the same certainty.
    """
    dataset = bench.lab.large()
    if not isinstance(peer, Dserverfs):
        for measurement in _sequentially(bench, peer, dataset):
            yield measurement
            if measurement.row == COLD:
                yield dataclasses.replace(measurement, row=UNVERIFIED)
                yield dataclasses.replace(measurement, row=FOREIGN)
        return
    if bench.wants(*SEQUENTIAL):
        yield from _sequentially(bench, peer, dataset)
    if bench.wants(UNVERIFIED):
        with peer.unverified().mounted(bench.lab, bench.mounts, dataset) as mount:
            bench.make_cold()
            yield _whole(UNVERIFIED, bench, mount, dataset)[0]
    if bench.wants(FOREIGN, CERTAIN):
        foreign = bench.lab.foreign()
        with peer.mounted(bench.lab, bench.mounts, foreign) as mount:
            bench.make_cold()
            cold, _ = _whole(FOREIGN, bench, mount, foreign)
            yield cold
            yield dataclasses.replace(cold, row=CERTAIN)


def _sequentially(bench: Bench, peer: Peer, dataset: Published) -> Iterator[Measurement]:
    with peer.mounted(bench.lab, bench.mounts, dataset) as mount:
        bench.make_cold()
        cold, first_byte_s = _whole(COLD, bench, mount, dataset)
        yield cold
        yield Measurement("first-byte", first_byte_s)
        if bench.wants(CERTAIN) and not isinstance(peer, Dserverfs):
            yield _with_md5sum(cold, mount, dataset)
        if not bench.wants("sequential-disk", "sequential-again"):
            return
        bench.forget_pages(mount)
        yield _whole("sequential-disk", bench, mount, dataset)[0]
        if bench.wants("sequential-again"):
            yield _whole("sequential-again", bench, mount, dataset)[0]


def _with_md5sum(cold: Measurement, mount: Mount, dataset: Published) -> Measurement:
    """Return a cold reading with the run of md5sum that says that it is right."""
    item = only_item(dataset)
    again, said = measure(
        CERTAIN, mount.processes, lambda: measuring.output_of("md5sum", mount.path_of(item))
    )
    if said.split()[0].decode() != item.hash:
        raise WrongAnswer(f"md5sum says {said!r}")
    cpu_s = None
    if cold.cpu_seconds is not None and again.cpu_seconds is not None:
        cpu_s = cold.cpu_seconds + again.cpu_seconds
    return dataclasses.replace(
        cold, row=CERTAIN, seconds=cold.seconds + again.seconds, cpu_seconds=cpu_s
    )


def _whole(row: str, bench: Bench, mount: Mount, dataset: Published) -> tuple[Measurement, float]:
    """Read the only item; return that, and when its first byte came."""
    item = only_item(dataset)
    path = mount.path_of(item)
    buffer = bench.buffer()
    result, reading = measure(row, mount.processes, lambda: buffer.read(path))
    measuring.check_content(item, reading.content)
    return result, reading.first_byte_s


def download(bench: Bench) -> Iterator[Measurement]:
    """What curl takes for the same object, without keeping it."""
    dataset = bench.lab.large()
    item = only_item(dataset)
    url = bench.lab.signed_url(dataset, item.identifier)
    command = [curl(), "--silent", "--show-error", "--fail", "--noproxy", "*", url]
    os.sync()
    bench.lab.warm_store()
    wanted = ["--output", os.devnull, "--write-out", "%{time_total} %{time_starttransfer}"]
    times = measuring.output_of(*command, *wanted).split()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        md5 = hashlib.md5()
        while chunk := process.stdout.read(MIB):
            md5.update(chunk)
    if md5.hexdigest() != item.hash:
        raise WrongAnswer(f"{item.relpath}: the store has other bytes")
    yield Measurement(COLD, float(times[0]))
    yield Measurement(UNVERIFIED, float(times[0]))
    yield Measurement("first-byte", float(times[1]))


def listing(bench: Bench, peer: Peer) -> Iterator[Measurement]:
    dataset = bench.lab.listed()
    items = dataset.local.items.values()
    with peer.mounted(bench.lab, bench.mounts, dataset) as mount:
        bench.make_cold()
        for row in ("list-first", "list-again"):
            result, text = measure(
                row, mount.processes, lambda: measuring.output_of("ls", "-lR", mount.items)
            )
            measuring.check_listing(mount, items, text)
            yield result
            if not bench.wants("list-again"):
                return


def archiving(bench: Bench, peer: Peer) -> Iterator[Measurement]:
    dataset = bench.lab.small()
    items = dataset.local.items.values()
    with peer.mounted(bench.lab, bench.mounts, dataset) as mount:
        bench.make_cold()
        for row in ("tar-cold", "tar-disk"):
            result, archive = measure(
                row,
                mount.processes,
                lambda: measuring.output_of("tar", "--create", "--directory", mount.items, "."),
            )
            measuring.check_archive(mount, items, archive)
            yield result
            if not bench.wants("tar-disk"):
                return
            if row == "tar-cold":
                bench.forget_pages(mount)


def mounting(bench: Bench, peer: Peer) -> Iterator[Measurement]:
    """From the command to the first listing; once before, so that the programs are in memory."""
    dataset = bench.lab.small()
    if peer.is_floor:
        return
    with peer.mounted(bench.lab, bench.mounts, dataset) as mount:
        os.listdir(mount.items)
    bench.settle()
    start_s = time.perf_counter()
    with peer.mounted(bench.lab, bench.mounts, dataset) as mount:
        with mount.processes.killed_after(measuring.LIMIT_S):
            names = os.listdir(mount.items)
        seconds = time.perf_counter() - start_s
        measuring.check_names(mount, dataset.local.items.values(), names)
        cpu_s = mount.processes.cpu_seconds()
        yield Measurement("mount-list", seconds, cpu_s, mount.processes.peak_bytes())


def random_cold(bench: Bench, peer: Peer) -> Iterator[Measurement]:
    dataset = bench.lab.large()
    for readers in READERS:
        row = f"random-cold-{readers}"
        if not bench.wants(row):
            continue
        with peer.mounted(bench.lab, bench.mounts, dataset) as mount:
            bench.make_cold()
            yield _random(bench, mount, dataset, row, readers, bench.lab.sizes.random_reads)


def random_warm(bench: Bench, peer: Peer) -> Iterator[Measurement]:
    """From the peer's cache, which the kernel holds in memory as it does the plain file."""
    dataset = bench.lab.large()
    item = only_item(dataset)
    count = bench.lab.sizes.random_reads * WARM_READS_PER_COLD
    with peer.mounted(bench.lab, bench.mounts, dataset) as mount:
        bench.settle()
        path = mount.path_of(item)
        with mount.processes.killed_after(measuring.LIMIT_S):
            measuring.check_content(item, bench.buffer().read(path).content)
        os.sync()
        for readers in READERS:
            row = f"random-warm-{readers}"
            if not bench.wants(row):
                continue
            if not peer.is_floor:
                forget_pages_of(path)
            yield _random(bench, mount, dataset, row, readers, count)


def _random(
    bench: Bench, mount: Mount, dataset: Published, row: str, readers: int, count: int
) -> Measurement:
    item = only_item(dataset)
    path = mount.path_of(item)
    # Other places in each repetition, the same for all peers.
    offsets = measuring.random_offsets(item.size_in_bytes, count, f"{row} {bench.repeat}")
    result, pieces = measure(
        row, mount.processes, lambda: measuring.read_at(path, offsets, readers)
    )
    measuring.check_pieces(dataset.local.path_of(item), pieces, count)
    return result


def four_readers(bench: Bench, peer: Peer) -> Iterator[Measurement]:
    dataset = bench.lab.four()
    items = [*dataset.local.items.values()]
    quarter = max(item.size_in_bytes for item in items)
    buffers = [Buffer(quarter) for _ in items]
    with peer.mounted(bench.lab, bench.mounts, dataset) as mount, ThreadPoolExecutor(4) as pool:
        bench.make_cold()
        paths = [mount.path_of(item) for item in items]
        cold, readings = measure(
            "four-cold", mount.processes, lambda: [*pool.map(Buffer.read, buffers, paths)]
        )
        for item, reading in zip(items, readings, strict=True):
            measuring.check_content(item, reading.content)
        yield cold


def only_item(dataset: Published) -> Item:
    (item,) = dataset.local.items.values()
    return item


class Scenario(NamedTuple):
    """Rows that are measured together; `download` does for curl what there is to do."""

    rows: tuple[str, ...]
    run: Callable[[Bench, Peer], Iterator[Measurement]]
    download: Callable[[Bench], Iterator[Measurement]] | None = None
