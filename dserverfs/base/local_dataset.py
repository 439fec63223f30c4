"""A frozen dataset on the local disk, as it is described to a server.

Made from a directory of dtool's layout by `read`, and by the staging area from its
fields. Holds no bytes of items; immutable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base import dtool_layout
from dserverfs.base.disk_tables import ItemTable
from dserverfs.base.errors import UsageError
from dserverfs.base.model import Identifier, Item


class LocalDataset(NamedTuple):
    """A frozen dataset whose items are local files, wherever each of them is."""

    admin_metadata: Mapping[str, Any]  # uuid, name, creator_username, frozen_at, maybe created_at
    readme: bytes
    hash_function: str
    items: Mapping[Identifier, Item]
    timestamps: Mapping[Identifier, float]  # as the manifest has them, epoch seconds
    path_of: Callable[[Item], Path]
    tags: list[str]
    annotations: Mapping[str, Any]
    overlays: Mapping[str, Any]

    @classmethod
    def read(cls, directory: Path) -> LocalDataset:
        """Read a frozen dataset of dtool's layout, but for its items' bytes; raises UsageError."""
        admin, frozen = dtool_layout.read_frozen(directory)
        data = directory / dtool_layout.DATA
        try:
            return cls(
                admin,
                (directory / dtool_layout.README).read_bytes(),
                *frozen,
                lambda item: data / item.relpath,
                dtool_layout.read_tags(directory),
                dtool_layout.read_json_files(directory / dtool_layout.ANNOTATIONS),
                dtool_layout.read_json_files(directory / dtool_layout.OVERLAYS),
            )
        except (OSError, UsageError) as error:
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

    def dated(self) -> Iterator[tuple[Item, float]]:
        """Yield each item with its date as the manifest has it."""
        if isinstance(self.items, ItemTable):
            return self.items.dated()
        return ((item, self.timestamps[key]) for key, item in self.items.items())

    def described_items(self) -> DescribedItems:
        """Return what an upload announces of each item."""
        return DescribedItems(self)


class DescribedItems:
    """A dataset's items as they are announced; made each time they are asked for."""

    def __init__(self, dataset: LocalDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset.items)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for item, timestamp in self._dataset.dated():
            yield {
                "relpath": item.relpath,
                "size_in_bytes": item.size_in_bytes,
                "hash": item.hash,
                "utc_timestamp": timestamp,
            }
