"""One program that reads by fsspec, cold and again: started by `benchmark.programs`.

Takes what it is to do from its standard input, as JSON, and imports nothing of dserverfs: it
runs with what a peer has installed. Prints the seconds of both readings, and a digest of what
was read, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import fsspec
import numpy
import pyarrow.parquet
import zarr

READ_BYTES = 4096


def ranges(fs: Any, wanted: dict[str, Any]) -> bytes:
    """Return many random pieces of one file."""
    source = random.Random(1)
    pieces = wanted["size"] // READ_BYTES
    starts = [source.randrange(pieces) * READ_BYTES for _ in range(wanted["count"])]
    ends = [start + READ_BYTES for start in starts]
    paths = [wanted["paths"][0]] * len(starts)
    return b"".join(fs.cat_ranges(paths, starts, ends, on_error="raise"))


def column(fs: Any, wanted: dict[str, Any]) -> bytes:
    """Return one column of a Parquet file."""
    table = pyarrow.parquet.read_table(wanted["paths"][0], columns=["b"], filesystem=fs)
    return bytes(numpy.asarray(table["b"]).tobytes())


def mean(fs: Any, wanted: dict[str, Any]) -> bytes:
    """Return the mean of an array of many chunks."""
    store = zarr.storage.FsspecStore.from_mapper(fs.get_mapper(wanted["paths"][0]), read_only=True)
    return str(numpy.asarray(zarr.open_array(store, mode="r")[:]).mean()).encode()


def files(fs: Any, wanted: dict[str, Any]) -> bytes:
    """Return all of many small files."""
    found = fs.cat(wanted["paths"])
    return b"".join(found[fs._strip_protocol(path)] for path in wanted["paths"])


READS: dict[str, Callable[[Any, dict[str, Any]], bytes]] = {
    "ranges": ranges,
    "column": column,
    "mean": mean,
    "files": files,
}


def main() -> None:
    wanted = json.load(sys.stdin)
    seconds = []
    digests = set()
    for _ in range(2):
        fs = fsspec.filesystem(wanted["protocol"], **wanted["options"])
        start_s = time.perf_counter()
        content = READS[wanted["reads"]](fs, wanted)
        seconds.append(time.perf_counter() - start_s)
        digests.add(hashlib.sha256(content).hexdigest())
    (digest,) = digests
    print(json.dumps({"seconds": seconds, "digest": digest}))


if __name__ == "__main__":
    main()
