"""Sealing: from a staged directory to the description of a frozen dataset.

Used by the freezer. Items are hashed, everything is brought to the disk, and the
description is kept beside the files, so that an upload can be carried on with by
another process without reading them again. What is hashed may be sent while the disk
is still at work; it is not sealed, and must not be registered, before all is on it.
Blocking.

On disk, in the staged dataset's directory: `sealed`, JSON, replaced atomically
before the state says so; `hashes`, what is known of files by inode and time.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dserverfs.base.disk_tables import DiskDict, ItemTable
from dserverfs.base.dtool_layout import DATA
from dserverfs.base.durable_files import replacing, sync_file_system
from dserverfs.base.errors import ItemChanged, ProtocolError
from dserverfs.base.hashes import MD5
from dserverfs.base.limits import parse_json, relpath_is_usable, understood, usable_date
from dserverfs.base.local_dataset import KnownBlocks, LocalDataset
from dserverfs.base.model import seconds_of
from dserverfs.base.progress import OnProgress, unwatched
from dserverfs.writing.staging import file_hashes, frozen_elsewhere, refused_files
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.staging.file_hashes import Hashes
from dserverfs.writing.staging.survey import Layout, Survey, survey

logger = logging.getLogger(__name__)

_SEALED = "sealed"
_HASHES = "hashes"
_ITEMS = ', "items": ['  # ends the first line; each item has one of its own


class Described(NamedTuple):
    """A staged dataset that is hashed; sealed when `keep` was called and returns."""

    dataset: LocalDataset
    notes: list[str]  # what the user should know: lost attributes, files that are left out
    # Moves it on to `sealed` when all of it is on the disk, for which it waits. Raises
    # ItemChanged after a write since, and OSError.
    keep: Callable[[], None]


def describe(
    staged: StagedDataset,
    layout: Layout | None,
    stop: threading.Event,
    *,
    by_itself: bool = False,
    on_progress: OnProgress = unwatched,
) -> Described | None:
    """Describe and hash what is staged, on its way to the disk.

    None if there is no item and no user said that it is complete: by the command, which
    makes it not `by_itself`, or by having frozen it elsewhere.
    Raises what `survey` does, ItemChanged after a write in between, Cancelled,
    IntegrityError if a dataset frozen elsewhere is not what its manifest says.
    """
    changes = staged.changes
    found = survey(staged.tree, layout, excluded=staged.excluded, by_itself=by_itself)
    if by_itself and not found.items and found.manifest is None:
        return None
    # SQLite waits for the disk when it makes a database and when it closes one: before the
    # sync, and after it, or hashing would take as long as the sync.
    hashes = Hashes(staged.directory / _HASHES, staged.tree, begun=staged.hash_ahead.take).open()
    try:
        with _syncing(staged.tree) as synced:
            dataset = _describe(staged, found, _hash(hashes, found, stop, on_progress))
    except BaseException:
        hashes.close()
        raise

    def keep() -> None:
        try:
            synced.result()
        finally:
            hashes.close()
        _write(staged.directory / _SEALED, dataset, found.layout)
        if not staged.seal(changes, dataset.admin_metadata["uuid"]):
            raise ItemChanged(
                f"{staged.record.name}: was written to while it was being frozen", relpath=""
            )

    return Described(dataset, _notes(found, staged), keep)


def forget_hashes(staged: StagedDataset) -> None:
    """Have everything hashed anew when it is sealed again: a file is not what was known of it."""
    file_hashes.forget(staged.directory / _HASHES)


def has_dtool_layout(staged: StagedDataset, local: LocalDataset) -> bool:
    """Return whether the items are in `data/`, by what was sealed."""
    item = next(iter(local.items.values()), None)  # none: of an empty dataset of dtool's
    return item is None or local.path_of(item) == staged.tree / DATA / item.relpath


def load(staged: StagedDataset) -> LocalDataset:
    """Return the description of one that is sealed; raises ProtocolError if it is damaged."""
    path = staged.directory / _SEALED
    try:
        items = ItemTable()
        with path.open("rb") as file, understood("it"):
            kept = _head(file)
            root = _items_root(staged.tree, Layout(kept["layout"]))
            entries = kept["items"] if "items" in kept else _entries(file)
            for relpath, size, md5, mtime_ns, timestamp in entries:
                if not relpath_is_usable(relpath):
                    raise ProtocolError(f"{relpath!r} is no item's path")
                items.add(relpath, int(size), str(md5), int(mtime_ns), float(timestamp))
            return LocalDataset(
                kept["admin_metadata"],
                kept["readme"].encode("utf-8", "surrogateescape"),
                MD5,
                items,
                lambda item: root / item.relpath,
                kept["tags"],
                kept["annotations"],
                kept["overlays"],
                functools.partial(_known_blocks, staged),
            )
    except (OSError, ProtocolError, sqlite3.IntegrityError) as error:
        raise ProtocolError(f"{path}: cannot be read: {error}") from error


def _head(file: BinaryIO) -> Any:
    """Return what is before the items, which are left to `_entries`; with them in 0.1.0's."""
    line = file.readline()
    if not line.endswith(f"{_ITEMS}\n".encode()):
        return parse_json(line + file.read(), "it")
    return parse_json(line[: -len(_ITEMS) - 1] + b"}", "it")


def _entries(file: BinaryIO) -> Iterator[Any]:
    for line in file:
        if line == b"]}":
            return
        yield parse_json(line.rstrip(b",\n"), "an item")
    raise ProtocolError("it has no end")


def _describe(staged: StagedDataset, found: Survey, hashes: DiskDict) -> LocalDataset:
    record = staged.record
    timestamps: Mapping[str, float] | None = None
    if found.admin_metadata is None or found.manifest is None:
        admin: dict[str, Any] = {
            "uuid": record.id,
            "name": record.name,
            "type": "dataset",
            "creator_username": record.creator_username,
            "created_at": record.created_at,
            "frozen_at": time.time(),
        }
    else:
        admin = frozen_elsewhere.require_admin(found.admin_metadata)
        timestamps = frozen_elsewhere.require_same(
            found, found.manifest, lambda file: str(hashes[str(file.path)])
        )
    items = ItemTable()
    for relpath, file in found.items.items():
        if timestamps is None:
            timestamp = usable_date(seconds_of(file.mtime_ns))
        else:
            timestamp = timestamps[relpath]
        md5 = hashes[str(file.path)]
        items.add(relpath, file.size_in_bytes, md5, file.mtime_ns, timestamp)
    root = found.items.root
    return LocalDataset(
        admin,
        found.readme,
        MD5,
        items,
        lambda item: root / item.relpath,
        found.tags,
        found.annotations,
        found.overlays,
        functools.partial(_known_blocks, staged),
    )


@contextlib.contextmanager
def _known_blocks(staged: StagedDataset) -> Iterator[KnownBlocks]:
    """Give the hashes of blocks that were made with the MD5, by this process or an earlier one."""
    with Hashes(staged.directory / _HASHES, staged.tree) as hashes:
        yield hashes.known_blocks


def _hash(
    hashes: Hashes, found: Survey, stop: threading.Event, on_progress: OnProgress
) -> DiskDict:
    """Return the MD5 of each item by path; what was hashed before and is unchanged is kept."""
    digests = DiskDict()
    hashes.each(
        found.items.largest_first(),
        lambda path, md5: digests.__setitem__(str(path), md5),
        totals=(found.size_in_bytes, len(found.items)),
        on_progress=on_progress,
        stop=stop,
    )
    logger.debug("%d bytes were left to be hashed", hashes.bytes_read)
    return digests


def _notes(found: Survey, staged: StagedDataset) -> list[str]:
    notes = refused_files.told(staged.refused.missing())
    if losses := found.losses():
        notes.append(losses)
    if found.left_over:
        names = ", ".join(found.left_over)
        notes.append(f"left out, and kept in {staged.kept_directory}: {names}")
    if found.excluded.count:
        notes.append(
            f"left out, as DSERVER_EXCLUDE says, and kept in {staged.kept_directory}:"
            f" {found.excluded}"
        )
    return notes


def _items_root(tree: Path, layout: Layout) -> Path:
    return tree / DATA if layout is Layout.DTOOL else tree


def _write(path: Path, dataset: LocalDataset, layout: Layout) -> None:
    head = {
        "layout": layout.value,
        "admin_metadata": dataset.admin_metadata,
        "readme": dataset.readme.decode("utf-8", "surrogateescape"),
        "tags": dataset.tags,
        "annotations": dataset.annotations,
        "overlays": dataset.overlays,
    }
    with replacing(path) as file:
        file.write(f"{json.dumps(head)[:-1]}{_ITEMS}".encode("ascii"))  # JSON escapes the rest
        separator = "\n"
        for item, timestamp in dataset.items.dated():
            entry = [item.relpath, item.size_in_bytes, item.hash, item.mtime_ns, timestamp]
            file.write(f"{separator}{json.dumps(entry)}".encode("ascii"))
            separator = ",\n"
        file.write(b"\n]}")


@contextlib.contextmanager
def _syncing(tree: Path) -> Iterator[Future[None]]:
    """Sync in a thread, which is waited for only if the block fails."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="sync")
    try:
        yield pool.submit(sync_file_system, tree)
    except BaseException:
        pool.shutdown()
        raise
    pool.shutdown(wait=False)
