"""A frozen dataset on the local disk, as it is described to a server.

Made by whoever has the files: from a directory of dtool's layout by `read`, from
the staging area by its fields. Holds no bytes of items; immutable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.errors import ProtocolError, UsageError
from dserverfs.model import Identifier, Item


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
            admin = json.loads((metadata / "dtool").read_text("utf-8"))
            manifest = json.loads((metadata / "manifest.json").read_text("utf-8"))
            items = {
                Identifier(identifier): Item.from_json(identifier, entry)
                for identifier, entry in manifest["items"].items()
            }
            timestamps = {
                Identifier(identifier): float(entry["utc_timestamp"])
                for identifier, entry in manifest["items"].items()
            }
            readme = (directory / "README.yml").read_bytes()
            hash_function = manifest["hash_function"]
        except (OSError, ValueError, KeyError, AttributeError, ProtocolError) as error:
            raise UsageError(f"{directory}: not a frozen dataset: {error}") from error
        if admin.get("type") != "dataset":
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
            _json_files(metadata / "annotations"),
            _json_files(metadata / "overlays"),
        )

    def description(self) -> dict[str, Any]:
        """Return what the server wants to know before it signs."""
        admin = self.admin_metadata
        return {
            "uuid": admin["uuid"],
            "name": admin["name"],
            "creator_username": admin["creator_username"],
            "created_at": admin.get("created_at", admin["frozen_at"]),
            "frozen_at": admin["frozen_at"],
            "hash_function": self.hash_function,
            "items": [
                {
                    "relpath": item.relpath,
                    "size_in_bytes": item.size_in_bytes,
                    "hash": item.hash,
                    "utc_timestamp": self.timestamps[identifier],
                }
                for identifier, item in self.items.items()
            ],
            "tags": self.tags,
            "annotations": self.annotations,
            "overlays": self.overlays,
        }


def _json_files(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        return {}
    return {path.stem: json.loads(path.read_text("utf-8")) for path in directory.glob("*.json")}
