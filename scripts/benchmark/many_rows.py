"""Rows of datasets with very many items, and of very many datasets.

They are registered and not uploaded (`registered`), so that only dserverfs, which
knows them from their manifests, can be measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from benchmark import measuring, registered
from benchmark.lab import Lab
from benchmark.measuring import Measurement, WrongAnswer, measure
from benchmark.mounts import Processes, end
from benchmark.peers import Dserverfs, Peer
from benchmark.rows import Bench


def _registered(lab: Lab, name: str, number_of_items: int) -> str:
    """Return the URI of a dataset, which is registered the first time."""
    return lab.registered(
        name, lambda: registered.register(lab, lab.storage.bucket, name, number_of_items)
    )


def _many_datasets(lab: Lab) -> str:
    """Register many datasets of two items; return their base URI."""
    bucket = "benchmark-many"
    uri = registered.add_base_uri(lab, bucket)
    for number in range(lab.sizes.many_datasets):
        registered.register(lab, bucket, f"dataset-{number:05}", 2)
    return uri


def datasets(bench: Bench, peer: Peer) -> Iterator[Measurement]:
    """From the command to the names of all datasets."""
    if not isinstance(peer, Dserverfs):
        return
    uri = bench.lab.registered("datasets", lambda: _many_datasets(bench.lab))
    bench.settle()
    with bench.mounts.place() as (place, processes):
        start_s = time.perf_counter()
        peer.start(bench.lab, place, peer.command_for(uri, place))
        names = os.listdir(place.path)
        seconds = time.perf_counter() - start_s
        if len(names) != bench.lab.sizes.many_datasets:
            raise WrongAnswer(f"{len(names)} datasets")
        cpu_s = processes.cpu_seconds()
        yield Measurement("datasets-mount", seconds, cpu_s, processes.peak_bytes())


def shown(bench: Bench, peer: Peer) -> Iterator[Measurement]:
    """`ls -l` of one directory, once the dataset was visited, and again."""
    if not isinstance(peer, Dserverfs):
        return
    count = bench.lab.sizes.shown_items
    uri = _registered(bench.lab, "shown", count)
    with bench.mounts.place() as (place, processes):
        peer.start(bench.lab, place, peer.command_for(uri, place))
        _first_name(place.path / "data")
        bench.settle()
        for row in ("shown-list", "shown-again"):
            result, text = measure(
                row, processes, lambda: measuring.output_of("ls", "-l", place.path / "data")
            )
            lines = [line.split() for line in text.decode().splitlines()]
            found = {line[8]: int(line[4]) for line in lines if len(line) == 9}
            if found != {registered.name_of(i): registered.ITEM_BYTES for i in range(count)}:
                raise WrongAnswer(f"ls -l shows {len(found)} items that are not the {count}")
            yield result
            if not bench.wants("shown-again"):
                return


def many(bench: Bench, peer: Peer) -> Iterator[Measurement]:
    """From the command to the first name, with nothing known; `find`; and the next time."""
    if not isinstance(peer, Dserverfs):
        return
    count = bench.lab.sizes.many_items
    uri = _registered(bench.lab, "many", count)
    bench.settle()
    with bench.mounts.place() as (place, processes):
        command = peer.command_for(uri, place)
        for row in ("many-first", "many-second"):
            start_s = time.perf_counter()
            peer.start(bench.lab, place, command)
            _first_name(place.path / "data")
            seconds = time.perf_counter() - start_s
            yield Measurement(row, seconds, processes.cpu_seconds(), processes.peak_bytes())
            if row == "many-first":
                if bench.wants("many-find"):
                    yield _find(place.path / "data", processes, count)
                if not bench.wants("many-second"):
                    return
                end(place.path, processes)


def _find(path: Path, processes: Processes, count: int) -> Measurement:
    result, text = measure(
        "many-find", processes, lambda: measuring.output_of("find", path, "-type", "f")
    )
    names = {line.rpartition(b"/")[2] for line in text.splitlines()}
    if names != {registered.name_of(number).encode() for number in range(count)}:
        raise WrongAnswer(f"find shows {len(names)} items that are not the {count}")
    return result


def _first_name(path: Path) -> str:
    with os.scandir(path) as entries:
        return next(entries).name
