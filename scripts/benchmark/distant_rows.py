"""Rows of a store that is far away: everything goes through a line of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmark import measuring
from benchmark.distant import seen_from_afar, there
from benchmark.measuring import Measurement, measure
from benchmark.peers import Peer
from benchmark.rows import Bench, only_item

ROUND_TRIPS_MS = (20, 100)


def reading(round_trip_ms: int) -> Callable[[Bench, Peer], Iterator[Measurement]]:
    """Return the scenario: one large item, then many small ones."""

    def run(bench: Bench, peer: Peer) -> Iterator[Measurement]:
        if peer.is_floor or peer.is_reference:  # neither speaks S3
            return
        large, small = bench.lab.distant_large(), bench.lab.distant_small()
        item, items = only_item(large), small.local.items.values()
        buffer = measuring.Buffer(item.size_in_bytes)
        with seen_from_afar(bench.lab, round_trip_ms) as lab:
            with peer.mounted(lab, bench.mounts, there(lab, large)) as mount:
                bench.settle(peer)
                path = mount.path_of(item)
                row = f"distant-{round_trip_ms}-large"
                cold, got = measure(row, mount.processes, lambda: buffer.read(path))
                measuring.check_content(item, got.content)
                yield cold
            with peer.mounted(lab, bench.mounts, there(lab, small)) as mount:
                bench.settle(peer)
                row = f"distant-{round_trip_ms}-small"
                command = ("tar", "--create", "--directory", mount.items, ".")
                cold, archive = measure(row, mount.processes, lambda: measuring.output_of(*command))
                measuring.check_archive(mount, items, archive)
                yield cold

    return run
