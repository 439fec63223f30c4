"""The items of datasets that are directories, on a disk or in a mount.

Comparing them with their manifests reads every byte, in a mount past the kernel's pages.
Blocking.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

from dserverfs.base.dtool_layout import DATA, MANIFEST, read_frozen
from dserverfs.base.errors import IntegrityError, Unsupported, UsageError
from dserverfs.base.hashes import Taker, hash_file, hasher_of
from dserverfs.base.limits import relpath_is_usable
from dserverfs.base.model import Item
from dserverfs.cli.mounted import problem_of
from dserverfs.cli.whole_items import BytesSoFar, Totals, WholeItem


class LocalItem(NamedTuple):
    """A file that ought to be an item, or is one too many (`item` is None)."""

    name: str  # for messages
    path: Path
    item: Item | None
    hash_function: str

    @property
    def size_in_bytes(self) -> int:
        return self.item.size_in_bytes if self.item else 0


def items_of(path: Path) -> Iterator[LocalItem]:
    """Yield the items at or below `path`, which is a dataset, in one, or has some in it.

    Raises UsageError if there is no dataset, or one that is not frozen.
    """
    path = Path(os.path.abspath(path))
    try:
        path.lstat()
    except OSError as error:
        raise UsageError(f"{path}: cannot be looked at: {problem_of(path, error)}") from error
    for directory in (path, *path.parents):
        if _is_dataset(directory):
            data = directory / DATA
            if path != directory and not path.is_relative_to(data):
                raise UsageError(f"{path}: is no item: the items of its dataset are below {data}")
            yield from _items(directory, path)
            return
    found = False
    for below, directories, _ in _walk(path):
        if _is_dataset(Path(below)):
            directories.clear()
            found = True
            yield from _items(Path(below), Path(below))
        directories.sort()
    if not found:
        raise UsageError(f"{path}: there is no dataset at, above or below it")


def totals_of(path: Path) -> Totals:
    """Return how many items are at or below `path`, and of how many bytes; raises as `items_of`."""
    number = size_in_bytes = 0
    for local in items_of(path):
        number += 1
        size_in_bytes += local.size_in_bytes
    return Totals(number, size_in_bytes)


def _items(directory: Path, path: Path) -> Iterator[LocalItem]:
    """Yield the items of the dataset in `directory` that are at or below `path`."""
    _, frozen = read_frozen(directory)
    data = directory / DATA
    known = set()
    for item in frozen.items.values():
        place = data / item.relpath if relpath_is_usable(item.relpath) else data
        known.add(place)
        if path in (directory, place, *place.parents) or place == data:
            yield LocalItem(f"{directory} {item.relpath}", place, item, frozen.hash_function)
    top = path if path != directory else data
    for below, _, names in _walk(top if top.is_relative_to(data) else data):
        for name in names:
            place = Path(below) / name
            if place not in known and path in (directory, *place.parents):
                yield LocalItem(f"{directory} {place.relative_to(data)}", place, None, "")


def _is_dataset(directory: Path) -> bool:
    """Return whether there is a manifest; raises IntegrityError if that cannot be told."""
    try:
        return (directory / MANIFEST).is_file()
    except OSError as error:
        raise IntegrityError(f"{directory}: cannot be looked at: {error.strerror}") from error


def _walk(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, but what cannot be listed is an error, and not empty: IntegrityError."""

    def fail(error: OSError) -> NoReturn:
        raise IntegrityError(f"{error.filename}: cannot be listed: {error.strerror}") from error

    try:
        is_directory = path.is_dir()  # one that is missing lacks its items, which is told of each
    except OSError as error:
        fail(error)
    if is_directory:
        yield from os.walk(path, onerror=fail)


def to_be_compared(local: LocalItem) -> WholeItem:
    so_far = BytesSoFar()
    return WholeItem(local.name, local.size_in_bytes, partial(compare, local, so_far), so_far)


def compare(local: LocalItem, *others: Taker) -> None:
    """Raise IntegrityError unless the file is the item; `others` get its bytes."""
    item = local.item
    if item is None:
        raise IntegrityError("is not in the manifest")
    if not relpath_is_usable(item.relpath):
        raise IntegrityError("its relpath cannot be a file's")
    hasher = hasher_of(local.hash_function)
    if hasher is None:
        raise Unsupported(f"its {local.hash_function} cannot be computed")
    size_in_bytes = read(local.path, hasher, *others)
    if size_in_bytes != item.size_in_bytes:
        raise IntegrityError(f"has {size_in_bytes} bytes, the manifest says {item.size_in_bytes}")
    found = hasher.hexdigest()
    if found != item.hash:
        raise IntegrityError(f"has hash {found}, the manifest says {item.hash}")


def read(path: Path, *takers: Taker) -> int:
    """Read all bytes of a file, feed them to the takers, and return how many there are.

    Raises IntegrityError if it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            # What the kernel holds would not be asked of the disk or the daemon.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return hash_file(file.fileno(), *takers)
    except OSError as error:
        raise IntegrityError(f"cannot be read: {error.strerror}") from error
