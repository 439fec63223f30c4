"""Block hashes at the simulated dserver: put by a signed URL, taken over if they are its own."""

from __future__ import annotations

from typing import Any

from dserverfs.base.block_hashes import ManifestDigest, digest_of
from dserverfs.base.model import Identifier
from tests.simulation.store import Store

Items = dict[str, dict[str, Any]]  # by identifier, as announced or in a manifest


class BlockHashes:
    """The objects with the block hashes of all datasets; `place` is bucket and prefix."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def announced(self, place: str, items: Items, life_s: float) -> dict[str, Any]:
        """Return what an announcement answers; what was put for one before is dropped."""
        if not are_of(items):
            return {}
        self._store.objects.pop(f"{place}/uploaded/block-hashes", None)
        return {"block_hashes_url": self.place_to_put(place, life_s)}

    def place_to_put(self, place: str, life_s: float) -> dict[str, Any]:
        url = self._store.signed("PUT", f"{place}/uploaded/block-hashes", life_s)
        return {"url": url, "headers": {}}

    def signed(self, place: str, life_s: float) -> dict[str, str]:
        """Return what the answer about a frozen dataset has."""
        if not self.are_stored(place):
            return {}
        return {"block_hashes_url": self._store.signed("GET", f"{place}/block-hashes", life_s)}

    def are_stored(self, place: str) -> bool:
        return f"{place}/block-hashes" in self._store.objects

    def adopt(self, place: str, items: Items) -> bool:
        """Take what was put; return whether it was. Raises ValueError if it is not its own."""
        digest, key = _digest(items), f"{place}/uploaded/block-hashes"
        content = self._store.objects.get(key)
        if content is None or not digest.number_of_hashes:
            return False
        if len(content) != digest.size_in_bytes or not content.startswith(digest.head):
            raise ValueError(f"{place} cannot be completed: its block hashes are not its own")
        self._store.objects[f"{place}/block-hashes"] = self._store.objects.pop(key)
        return True


def are_of(items: Items) -> bool:
    """Return whether there is something to hash."""
    return _digest(items).number_of_hashes > 0


def _digest(items: Items) -> ManifestDigest:
    return digest_of(
        (Identifier(key), item["hash"], item["size_in_bytes"]) for key, item in items.items()
    )
