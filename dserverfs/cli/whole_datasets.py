"""Whole datasets: every item of them into the cache, or compared with its manifest.

Used by the command line. Comparing goes to the store and past the cache, which
would hide what became of an object since. Items are taken several at a time,
in the manifest's order. Blocking.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple, TypeVar

from dserverfs.base.errors import DserverfsError, IntegrityError
from dserverfs.base.items import ItemContent
from dserverfs.base.model import Dataset, DserverURI
from dserverfs.client import Client
from dserverfs.reading.open_item import OpenItem

T = TypeVar("T")

THREADS = 8


class Named(NamedTuple):
    """An item, and how messages call it."""

    name: str
    content: ItemContent


def items_of(client: Client, uri: DserverURI) -> Iterator[Named]:
    """Yield every item of the dataset, base URI or server that `uri` names.

    Raises what keeps it from being read.
    """
    for dataset in client.datasets(uri):
        yield from items_in(client, dataset)


def items_in(client: Client, dataset: Dataset) -> Iterator[Named]:
    """Yield every item of a dataset; raises what keeps it from being read."""
    contents = client.contents(dataset)
    where = client.uri_of(dataset)
    for relpath, content in contents:
        yield Named(f"{where} {relpath}", content)


def warm(client: Client, item: Named) -> None:
    """Have the whole item in the cache, compared; raises what keeps it from being there."""
    _require_not_refused(item)
    if not client.reader.has_all_verified(item.content):
        OpenItem(client.reader, item.content).load()


def compare(client: Client, item: Named) -> None:
    """Read the object and raise IntegrityError unless it is the item."""
    _require_not_refused(item)
    content = item.content
    if content.size_in_bytes == 0 and client.stored.size(content) is None:
        raise IntegrityError("is not stored")
    found = client.stored.digest(content, content.size_in_bytes)
    if found != content.hash:
        raise IntegrityError(f"has hash {found}, the manifest says {content.hash}")


def _require_not_refused(item: Named) -> None:
    if item.content.is_refused:
        raise IntegrityError(
            "is refused: the manifest gives it a relpath, size, hash or date that no item can have"
        )


def for_each(
    things: Iterable[T],
    work: Callable[[T], None],
    done: Callable[[T, DserverfsError | None], None],
    *,
    threads: int = THREADS,
) -> None:
    """Do `work` with all, several at a time; tell `done`, one after the other, what came of it.

    Takes no more of `things` than are being worked on, so there may be a million.
    """
    stopped = threading.Event()

    def attempt(thing: T) -> DserverfsError | None:
        if stopped.is_set():
            return None
        try:
            work(thing)
        except DserverfsError as error:
            return error
        return None

    running: dict[Future[DserverfsError | None], T] = {}

    def collect() -> None:
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            done(running.pop(future), future.result())

    with ThreadPoolExecutor(threads, thread_name_prefix="whole") as pool:
        try:
            for thing in things:
                running[pool.submit(attempt, thing)] = thing
                if len(running) >= 2 * threads:
                    collect()
            while running:
                collect()
        finally:
            stopped.set()
