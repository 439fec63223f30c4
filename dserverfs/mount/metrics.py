"""The figures of a mount, as text that Prometheus reads.

Used by the file `.dserverfs/stats` and by the page that `mount --metrics` serves, in threads.
Written here in a few lines: the library of that name takes 40 ms to import and another
package, for which a mount that nobody watches should not wait.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dserverfs import __version__
from dserverfs.base.errors import DserverfsError
from dserverfs.client import Client
from dserverfs.mount.request_counts import BOUNDS_S, RequestCounts

# What is staged is looked for in all of its files: for at most a twentieth of the time.
_STAGED_SHARE = 0.05


class Sample(NamedTuple):
    value: float
    labels: Mapping[str, object] = {}
    suffix: str = ""


class Family(NamedTuple):
    name: str
    kind: str
    help: str
    samples: Sequence[Sample]


class Metrics:
    """Those of one mount."""

    def __init__(
        self,
        client: Client,
        requests: RequestCounts,
        pending: Callable[[], Sequence[Mapping[str, Any]]],
    ) -> None:
        """`pending` gives the facts of each staged dataset."""
        self._client = client
        self._requests = requests
        self._pending = pending
        self._lock = threading.Lock()
        self._staged: Sequence[Family] = ()
        self._staged_until_s = 0.0

    def text(self) -> str:
        """Return the figures of this moment; may look at the staged files on the disk."""
        return "".join(_lines(self._families()))

    def _families(self) -> Iterator[Family]:
        requests, client = self._requests, self._client
        version = [Sample(1, {"version": __version__})]
        yield Family("dserverfs_build_info", "gauge", "The version of dserverfs.", version)
        yield Family(
            "dserverfs_request_duration_seconds",
            "histogram",
            "How long the kernel's requests took, by kind.",
            list(_durations(requests)),
        )
        errors = [
            Sample(count, {"request": request, "errno": errno.errorcode.get(number, number)})
            for (request, number), count in sorted(requests.errors.copy().items())
        ]
        yield _counter("request_errors", "Requests that were answered with an errno.", *errors)
        of_channel = requests.of_channel()
        yield _counter(
            "read_bytes",
            "Bytes given to programs.",
            Sample(requests.read_bytes + of_channel.read_bytes + of_channel.pushed_bytes),
        )
        yield _counter(
            "written_bytes", "Bytes that programs wrote.", Sample(requests.written_bytes)
        )
        yield _counter(
            "item_reads",
            "Reads of items: from memory or an open file of the cache, or after a wait.",
            Sample(requests.reads_at_once, {"found": "memory"}),
            Sample(of_channel.reads, {"found": "channel"}),
            Sample(requests.reads_that_waited, {"found": "elsewhere"}),
        )
        yield _counter(
            "channel_answers",
            "Requests about names, attributes, listings and handles that the channel answered.",
            Sample(of_channel.others),
        )
        yield _counter(
            "pushed_items",
            "Items whose bytes the kernel was given at their open, and need not ask for.",
            Sample(of_channel.pushed),
        )
        counts = client.reader.report.counts
        yield _counter(
            "fetched_bytes",
            "Bytes of items from the disk cache or the store, for reads or ahead of them.",
            Sample(counts.from_cache, {"source": "cache"}),
            Sample(counts.received, {"source": "store"}),
        )
        yield _counter(
            "verified_bytes",
            "Bytes from the store that were compared: with hashes of blocks, or of whole items.",
            Sample(counts.by_block, {"by": "block"}),
            Sample(counts.as_files, {"by": "item"}),
        )
        sent = client.uploader.sent_in_bytes
        yield _counter("uploaded_bytes", "Bytes sent to the store, also in vain.", Sample(sent))
        yield from self._staged_families()
        unsent = Sample(len(client.edits.unsent()))
        yield Family("dserverfs_unsent_edits", "gauge", "Changes the server lacks.", [unsent])
        usage = client.cache_usage()
        if usage is not None:
            size, limit = Sample(usage.size_in_bytes), Sample(usage.limit_in_bytes)
            yield Family("dserverfs_cache_bytes", "gauge", "Bytes in the disk cache.", [size])
            yield Family("dserverfs_cache_limit_bytes", "gauge", "Bytes it may have.", [limit])

    def _staged_families(self) -> Sequence[Family]:
        """Return the figures of what is staged: of now, or of a short while ago."""
        with self._lock:
            begun_s = time.monotonic()
            if begun_s >= self._staged_until_s:
                with contextlib.suppress(DserverfsError):  # of the disk, which may be better soon
                    self._staged = _of_staged(self._pending())
                end_s = time.monotonic()
                self._staged_until_s = end_s + (end_s - begun_s) / _STAGED_SHARE
            return self._staged


def _of_staged(pending: Sequence[Mapping[str, Any]]) -> Sequence[Family]:
    by_state = Counter(str(facts["state"]) for facts in pending)
    number = [Sample(count, {"state": state}) for state, count in sorted(by_state.items())]
    size = [Sample(sum(int(facts["size_in_bytes"] or 0) for facts in pending))]
    return (
        Family("dserverfs_staged_datasets", "gauge", "Datasets that are being made.", number),
        Family("dserverfs_staged_bytes", "gauge", "Bytes of the items in them.", size),
    )


def _counter(name: str, help: str, *samples: Sample) -> Family:
    return Family(f"dserverfs_{name}_total", "counter", help, samples)


def _durations(requests: RequestCounts) -> Iterator[Sample]:
    for request, durations in sorted(requests.durations.copy().items()):
        cumulated = list(itertools.accumulate(durations.counts.copy()))
        for bound_s, count in zip((*BOUNDS_S, "+Inf"), cumulated, strict=True):
            yield Sample(count, {"request": request, "le": bound_s}, "_bucket")
        yield Sample(durations.sum_s, {"request": request}, "_sum")
        yield Sample(cumulated[-1], {"request": request}, "_count")


def _lines(families: Iterator[Family]) -> Iterator[str]:
    """Yield the lines of the text; no label and no help has a letter that is escaped in it."""
    for name, kind, help, samples in families:
        yield f"# HELP {name} {help}\n# TYPE {name} {kind}\n"
        for value, labels, suffix in samples:
            inside = ",".join(f'{key}="{each}"' for key, each in labels.items())
            yield f"{name}{suffix}{{{inside}}} {value}\n" if inside else f"{name} {value}\n"
