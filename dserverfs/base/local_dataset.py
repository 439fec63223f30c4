"""A frozen dataset on the local disk, as it is described to a server.

Made from a directory of dtool's layout by `read`, and by the staging area from its
fields. Holds no bytes of items; immutable.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base import dtool_layout
from dserverfs.base.disk_tables import ItemTable
from dserverfs.base.errors import UsageError
from dserverfs.base.model import Item

# Of a file with that MD5: the hashes of its blocks, or None if they are not known.
KnownBlocks = Callable[[Path, str], "bytes | None"]


def _none_known() -> AbstractContextManager[KnownBlocks]:
    return nullcontext(lambda path, md5: None)


class LocalDataset(NamedTuple):
    """A frozen dataset whose items are local files, wherever each of them is."""

    admin_metadata: Mapping[str, Any]  # uuid, name, creator_username, frozen_at, maybe created_at
    readme: bytes
    hash_function: str
    items: ItemTable
    path_of: Callable[[Item], Path]
    tags: list[str]
    annotations: Mapping[str, Any]
    overlays: Mapping[str, Any]
    known_blocks: Callable[[], AbstractContextManager[KnownBlocks]] = _none_known

    @classmethod
    def read(cls, directory: Path) -> LocalDataset:
        """Read a frozen dataset of dtool's layout, but for its items' bytes; raises UsageError."""
        admin, frozen = dtool_layout.read_frozen(directory)
        data = directory / dtool_layout.DATA
        items = ItemTable()
        try:
            for key, item in frozen.items.items():
                moment_s = frozen.timestamps[key]
                items.add(item.relpath, item.size_in_bytes, item.hash, item.mtime_ns, moment_s)
            return cls(
                admin,
                (directory / dtool_layout.README).read_bytes(),
                frozen.hash_function,
                items,
                lambda item: data / item.relpath,
                dtool_layout.read_tags(directory),
                dtool_layout.read_json_files(directory / dtool_layout.ANNOTATIONS),
                dtool_layout.read_json_files(directory / dtool_layout.OVERLAYS),
            )
        except (OSError, UsageError, sqlite3.IntegrityError) as error:
            raise UsageError(f"{directory}: not a frozen dataset: {error}") from error

    def description(self) -> dict[str, Any]:
        """Return what an upload announces of the dataset, without the items."""
        admin = self.admin_metadata
        return {
            "uuid": admin["uuid"],
            "name": admin["name"],
            "creator_username": admin["creator_username"],
            "created_at": admin.get("created_at", admin["frozen_at"]),
            "frozen_at": admin["frozen_at"],
            "hash_function": self.hash_function,
            "tags": self.tags,
            "annotations": self.annotations,
            "overlays": self.overlays,
        }

    def described_items(self) -> DescribedItems:
        """Return what an upload announces of each item."""
        return DescribedItems(self.items)


class DescribedItems:
    """A dataset's items as they are announced; made each time they are asked for."""

    def __init__(self, items: ItemTable) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for item, timestamp in self._items.dated():
            yield {
                "relpath": item.relpath,
                "size_in_bytes": item.size_in_bytes,
                "hash": item.hash,
                "utc_timestamp": timestamp,
            }
