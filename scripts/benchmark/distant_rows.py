"""Rows of a store that is far away: everything goes through a line of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmark import measuring
from benchmark.distant import seen_from_afar, there
from benchmark.lab import Lab
from benchmark.measuring import Measurement, measure
from benchmark.peers import Peer
from benchmark.rows import Bench, only_item

ROUND_TRIPS_MS = (20, 100)


def reading(round_trip_ms: int) -> Callable[[Bench, Peer], Iterator[Measurement]]:
    """Return the scenario: one large item, then many small ones."""

    def run(bench: Bench, peer: Peer) -> Iterator[Measurement]:
        if peer.is_floor or peer.is_reference:  # neither speaks S3
            return
        with seen_from_afar(bench.lab, round_trip_ms) as lab:
            if bench.wants(large := f"distant-{round_trip_ms}-large"):
                yield _large(large, bench, lab, peer)
            if bench.wants(small := f"distant-{round_trip_ms}-small"):
                yield _small(small, bench, lab, peer)

    return run


def _large(row: str, bench: Bench, lab: Lab, peer: Peer) -> Measurement:
    dataset = bench.lab.distant_large()
    item = only_item(dataset)
    buffer = measuring.Buffer(item.size_in_bytes)
    with peer.mounted(lab, bench.mounts, there(lab, dataset)) as mount:
        bench.make_cold()
        path = mount.path_of(item)
        cold, got = measure(row, mount.processes, lambda: buffer.read(path))
        measuring.check_content(item, got.content)
    return cold


def _small(row: str, bench: Bench, lab: Lab, peer: Peer) -> Measurement:
    dataset = bench.lab.distant_small()
    with peer.mounted(lab, bench.mounts, there(lab, dataset)) as mount:
        bench.make_cold()
        command = ("tar", "--create", "--directory", mount.items, ".")
        cold, archive = measure(row, mount.processes, lambda: measuring.output_of(*command))
        measuring.check_archive(mount, dataset.local.items.values(), archive)
    return cold
