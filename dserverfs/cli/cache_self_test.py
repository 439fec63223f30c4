"""The self-test of the cache: filled from a dataset, damaged by a seed, read and compared.

Used by `dserverfs cache corrupt`. Works in a cache of its own, which is deleted afterwards;
never in one that a mount uses. Blocking.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.damage import DAMAGES
from dserverfs.base.errors import DserverfsError, LocalDiskError
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.model import Dataset, DserverURI
from dserverfs.cli import remote_items
from dserverfs.cli.remote_items import RemoteItem
from dserverfs.client import Client
from dserverfs.reading.open_item import OpenItem

MAX_BYTES = 64 * 1024 * 1024  # of items that are read in each round
MAX_ITEMS = 1000
_MOST_DAMAGES = 5  # in one round
_ERROR = "error: "

# What was read, by name: the digest of an item or a manifest, or the error.
Shown = Mapping[str, str]


class Result(NamedTuple):
    """What became of the damage."""

    items: int
    size_in_bytes: int
    damaged: Mapping[str, int]  # files, by kind
    wrong: list[str]  # what was read differently afterwards, with its round
    is_in_use: bool  # whether the cache holds all of it again in the end


class _Reading(NamedTuple):
    """What one process read."""

    shown: Shown
    items: int = 0
    size_in_bytes: int = 0
    was_cached: bool = False  # all of it, before it was read


def run(
    uri: DserverURI,
    directory: Path,
    *,
    seed: int,
    rounds: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Result:
    """Fill a cache in an empty directory, damage it again and again, and compare what is read.

    Raises what keeps the dataset from being read before anything is damaged. For a process
    without other threads: it is forked.
    """
    before = _read_apart(uri, directory)
    failed = [f"{name}: {text}" for name, text in before.shown.items() if text.startswith(_ERROR)]
    if failed:
        raise LocalDiskError(f"{uri}: cannot be read before anything is damaged: {failed[0]}")
    damaged = Counter[str]()
    wrong: list[str] = []
    for number in range(rounds):
        damaged.update(_hurt(directory, random.Random(f"{seed} {number}")))
        after = _read_apart(uri, directory).shown
        wrong += [
            f"round {number}: {name}: {after.get(name, 'is missing')}"
            for name in sorted({*before.shown, *after})
            if after.get(name) != before.shown.get(name)
        ]
        progress(number + 1)
    _read_apart(uri, directory)
    is_in_use = _read_apart(uri, directory).was_cached
    return Result(before.items, before.size_in_bytes, damaged, wrong, is_in_use)


def _read_apart(uri: DserverURI, directory: Path) -> _Reading:
    """Return what another process reads, which has nothing open when this returns."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                json.dump(_read(uri, directory), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status:
        return _Reading({str(uri): f"{_ERROR}the process that read it ended with {status}"})
    return _Reading(*json.loads(text))


def _read(uri: DserverURI, directory: Path) -> _Reading:
    try:
        with remote_items.client_of(uri, directory) as client:
            items = _chosen(client, uri)
            was_cached = all(client.reader.has_all_verified(item.content) for item in items)
            size_in_bytes = sum(item.content.size_in_bytes for item in items)
            return _Reading(_shown(client, uri, items), len(items), size_in_bytes, was_cached)
    except DserverfsError as error:
        return _Reading({str(uri): f"{_ERROR}{error}"})


def _chosen(client: Client, uri: DserverURI) -> list[RemoteItem]:
    """Return the first items that together are not too much; those that are refused left out."""
    chosen: list[RemoteItem] = []
    left = MAX_BYTES
    items = remote_items.items_of(client, client.catalogue.datasets_below(uri))
    for item in itertools.islice(items, MAX_ITEMS):
        if not item.content.is_refused and item.content.size_in_bytes <= left:
            left -= item.content.size_in_bytes
            chosen.append(item)
    return chosen


def _shown(client: Client, uri: DserverURI, items: list[RemoteItem]) -> Shown:
    """Return what is read of items and manifests."""
    shown = {item.name: _outcome(_bytes_of(client, item)) for item in items}
    for dataset in client.catalogue.datasets_below(uri):
        name = f"{client.catalogue.uri_of(dataset)} manifest"
        shown[name] = _outcome(_manifest_of(client, dataset))
    return shown


def _bytes_of(client: Client, item: RemoteItem) -> Iterator[bytes]:
    opened = OpenItem(client.reader, item.content)
    yield repr((item.content.identifier, item.content.size_in_bytes, item.content.hash)).encode()
    for offset in range(0, item.content.size_in_bytes, BLOCK_SIZE):
        yield opened.read(offset, BLOCK_SIZE)


def _manifest_of(client: Client, dataset: Dataset) -> Iterator[bytes]:
    yield repr(client.catalogue.parsed_manifest(dataset)).encode("utf-8", "replace")


def _outcome(pieces: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    try:
        for piece in pieces:
            digest.update(piece)
    except DserverfsError as error:
        return f"{_ERROR}{error}"
    return digest.hexdigest()


def _hurt(directory: Path, chance: random.Random) -> Iterator[str]:
    """Damage some files below a directory; yield their kinds."""
    for _ in range(chance.randrange(1, _MOST_DAMAGES + 1)):
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        kinds = sorted({_kind(path) for path in files})
        if not kinds:
            return
        kind = chance.choice(kinds)  # or there would be blocks only
        alike = [path for path in files if _kind(path) == kind]
        path = alike.pop(chance.randrange(len(alike)))
        DAMAGES[chance.choice(sorted(DAMAGES))](path, alike, chance)
        yield kind


def _kind(path: Path) -> str:
    """Return the kind of a file of a cache, by its name."""
    name = path.name
    ends = (".blk", ".index", ".answer", ".json.seal", ".json")
    return next((f"*{end}" for end in ends if name.endswith(end)), name)
