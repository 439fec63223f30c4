"""One program that reads by fsspec, cold and again: started by `benchmark.programs`.

Takes what it is to do from its standard input, as JSON, and imports nothing of dserverfs: it
runs with what a peer has installed. Prints the seconds of both readings, the requests that each
sent by port, and a digest of what was read, as JSON.
"""

from __future__ import annotations

import _socket
import hashlib
import io
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import fsspec
import numpy
import pyarrow
import pyarrow.parquet
import zarr

READ_BYTES = 4096
_LINE_END = b" HTTP/1.1\r\n"
_HEAD_BYTES = 64 * 1024


class RequestCounter:
    """The requests over plain HTTP/1.1 that this process sends, by the port that they go to.

    All libraries here send by a socket object of Python, and a request is known by the end of its
    first line. That takes 2 us for each piece that is sent (guess). Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[int] = Counter()

    def install(self) -> None:
        """Count what all sockets send from now on, as long as this process lives."""
        note = self._note

        def send(self: socket.socket, data: Any, *rest: Any) -> int:
            count = _socket.socket.send(self, data, *rest)
            note(self, memoryview(data).cast("B")[:count])
            return count

        def sendall(self: socket.socket, data: Any, *rest: Any) -> None:
            _socket.socket.sendall(self, data, *rest)
            note(self, data)

        def sendmsg(self: socket.socket, buffers: Any, *rest: Any) -> int:
            buffers = list(buffers)
            count = _socket.socket.sendmsg(self, buffers, *rest)
            note(self, b"".join(buffers)[:count])
            return count

        for name, method in (("send", send), ("sendall", sendall), ("sendmsg", sendmsg)):
            setattr(socket.socket, name, method)

    def taken(self) -> dict[int, int]:
        """Return the counts by port, and begin anew."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return dict(counts)

    def _note(self, sender: socket.socket, data: Any) -> None:
        number = bytes(memoryview(data).cast("B")[:_HEAD_BYTES]).count(_LINE_END)
        if number:
            try:
                port = sender.getpeername()[1]
            except (OSError, IndexError):  # it is closed, or a pair of this process
                return
            with self._lock:
                self._counts[port] += number


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


def import_all() -> None:
    """Have pyarrow import what it does at its first table: pandas, for who has it installed."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"b": [1.0]}), file)
    pyarrow.parquet.read_table(file, columns=["b"])


def main() -> None:
    wanted = json.load(sys.stdin)
    import_all()
    counter = RequestCounter()
    counter.install()
    seconds, requests = [], []
    digests = set()
    for _ in range(2):
        fs = fsspec.filesystem(wanted["protocol"], **wanted["options"])
        start_s = time.perf_counter()
        content = READS[wanted["reads"]](fs, wanted)
        seconds.append(time.perf_counter() - start_s)
        requests.append(counter.taken())
        digests.add(hashlib.sha256(content).hexdigest())
    (digest,) = digests
    print(json.dumps({"seconds": seconds, "requests": requests, "digest": digest}))


if __name__ == "__main__":
    main()
