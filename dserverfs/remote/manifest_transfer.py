"""A manifest on its way from a dserver, in pieces; one that breaks off goes on where it was.

Used by the resolver. Blocking.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator

from dserverfs.base import limits
from dserverfs.base.errors import DserverfsError, ProtocolError, UnusableAnswer
from dserverfs.base.model import Dataset
from dserverfs.base.retry import MIN_BYTES_PER_S, Deadline, Retries
from dserverfs.remote.dserver_http import METADATA_TIMEOUT_S, ServerTransport
from dserverfs.remote.routes import Routes

TOTAL_S = 3600.0
# The server reads and writes it before the first byte comes. Guess: ten times what ours takes.
S_PER_ITEM = 0.0002


def pieces(
    routes: Routes, transport: ServerTransport, dataset: Dataset
) -> Generator[bytes, None, None]:
    """Yield the manifest's JSON, as the server sends it.

    Takes up to TOTAL_S while it comes faster than MIN_BYTES_PER_S: a million
    items are 60 MB, compressed. A manifest that breaks off is fetched again, and goes
    on where it broke off if it is the same.
    """
    over = Deadline(TOTAL_S)
    deadline = Deadline(_timeout_s(dataset))
    retries = Retries(deadline, what=f"manifest of {dataset.uri}")
    had = _Prefix()
    while True:
        try:
            for piece in _after(had, routes, transport, dataset, retries.limit()):
                over.remaining_s()
                yield piece
            return
        except DserverfsError as error:
            retries.again(error)


class _Prefix:
    """The part of a manifest that came before it broke off."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.sha256()

    def add(self, piece: bytes) -> None:
        self.count += len(piece)
        self._hash.update(piece)

    def is_same(self, other: _Prefix) -> bool:
        return self.count == other.count and self._hash.digest() == other._hash.digest()


def _after(
    had: _Prefix,
    routes: Routes,
    transport: ServerTransport,
    dataset: Dataset,
    limit: Deadline,
) -> Iterator[bytes]:
    """Yield the manifest after its prefix `had`, in one attempt, and add it to that."""
    response = routes.core_stream("manifests", dataset.uri, limit)
    again = _Prefix()
    max_bytes = limits.MAX_MANIFEST_BYTES
    for piece in transport.read_pieces(response, limit, max_bytes=max_bytes):
        limit.extend(len(piece) / MIN_BYTES_PER_S)
        if not again.count and not piece.lstrip().startswith(b"{"):
            raise UnusableAnswer(
                f"{routes.server_url}: what came as the manifest of {dataset.uri} is none",
                uri=dataset.uri,
            )
        known = piece[: had.count - again.count]
        if known:
            again.add(known)
            if again.count == had.count and not again.is_same(had):
                break
        if len(known) < len(piece):
            had.add(piece[len(known) :])
            again = had
            yield piece[len(known) :]
    if again is not had and not again.is_same(had):
        raise ProtocolError(
            f"{routes.server_url}: the manifest of {dataset.uri} changed while it was fetched",
            uri=dataset.uri,
        )


def _timeout_s(dataset: Dataset) -> float:
    """Return how long the server may take before the next bytes of a manifest."""
    expected_s = METADATA_TIMEOUT_S + S_PER_ITEM * (dataset.number_of_items or 0)
    return min(expected_s, TOTAL_S)
