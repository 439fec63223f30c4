"""A frozen dataset on the local disk, as it is described to a server.

Made by whoever has the files: from a directory of dtool's layout by `read`, from
the staging area by its fields. Holds no bytes of items; immutable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base.disk_tables import ItemTable
from dserverfs.base.errors import ProtocolError, UsageError
from dserverfs.base.limits import parse_json, parse_timestamp, understood
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
        metadata = directory / ".dtool"
        try:
            admin = parse_json((metadata / "dtool").read_bytes(), "dtool")
            manifest = parse_json((metadata / "manifest.json").read_bytes(), "manifest.json")
            with understood("its metadata"):
                is_frozen = admin["type"] == "dataset"
                items = {
                    Identifier(identifier): Item.from_json(identifier, entry)
                    for identifier, entry in manifest["items"].items()
                }
                timestamps = {
                    Identifier(identifier): parse_timestamp(entry["utc_timestamp"])
                    for identifier, entry in manifest["items"].items()
                }
                hash_function = str(manifest["hash_function"])
            readme = (directory / "README.yml").read_bytes()
            annotations = _json_files(metadata / "annotations")
            overlays = _json_files(metadata / "overlays")
        except (OSError, ProtocolError) as error:
            raise UsageError(f"{directory}: not a frozen dataset: {error}") from error
        if not is_frozen:
            raise UsageError(f"{directory}: is not frozen")
        data = directory / "data"
        tags = metadata / "tags"
        return cls(
            admin,
            readme,
            hash_function,
            items,
            timestamps,
            lambda item: data / item.relpath,
            sorted(path.name for path in tags.iterdir()) if tags.is_dir() else [],
            annotations,
            overlays,
        )

    def description(self) -> dict[str, Any]:
        """Return what the server wants to know before it signs, without the items."""
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
        """Return what the server wants to know of each item."""
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


def _json_files(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        return {}
    return {
        path.stem: parse_json(path.read_bytes(), path.name) for path in directory.glob("*.json")
    }
