"""The names of datasets in a directory: names in dtool are not unique, names in a directory are.

Used by the catalogue and the tree, under a lock of theirs. The oldest dataset keeps its
plain name, later ones have part of their uuid added. Pure.
"""

from __future__ import annotations

import logging

from dserverfs.base.limits import component_is_usable
from dserverfs.base.model import UUID, Dataset

logger = logging.getLogger(__name__)


class DatasetNames:
    """The names that the datasets of one base URI are shown under; a bound name stays bound."""

    def __init__(self, reserved: frozenset[str]) -> None:
        self._taken: dict[str, UUID | None] = {name: None for name in reserved}
        self._names: dict[UUID, str] = {}

    def bind(self, datasets: list[Dataset]) -> dict[str, Dataset]:
        """Return the datasets, oldest first, by name; earlier bindings are kept."""
        named = {}
        for dataset in sorted(datasets, key=lambda entry: (entry.frozen_at, entry.uuid)):
            name = self._names.get(dataset.uuid)
            if name is None:
                name = self._names[dataset.uuid] = self._choose(dataset)
                self._taken[name] = dataset.uuid
            named[name] = dataset
        return named

    def place(self, uuid: UUID, wanted: str) -> str:
        """Return the name of a staged dataset: `wanted`, unless another dataset has it."""
        name = self._names.get(uuid)
        if name is None or (name != wanted and wanted not in self._taken):
            self.release(uuid)
            name = self._names[uuid] = self._free(wanted, uuid)
            self._taken[name] = uuid
        return name

    def hand_over(self, staged: UUID, frozen: UUID) -> None:
        """Give the frozen dataset the name that it had while it was staged."""
        if staged == frozen:
            return
        name = self._names.pop(staged, None)
        if name is not None and frozen not in self._names:
            self._names[frozen] = name
            self._taken[name] = frozen

    def name_of(self, uuid: UUID) -> str | None:
        """Return the name that a dataset is shown under, None if it never was."""
        return self._names.get(uuid)

    def is_taken(self, name: str) -> bool:
        return name in self._taken

    def release(self, uuid: UUID) -> None:
        """Free the name of a staged dataset."""
        name = self._names.pop(uuid, None)
        if name is not None:
            del self._taken[name]

    def check(self) -> None:
        """Raise AssertionError unless the invariants hold; for tests."""
        for uuid, name in self._names.items():
            assert self._taken.get(name) == uuid, f"{name} is shown for {uuid}, and another's"

    def _choose(self, dataset: Dataset) -> str:
        if not component_is_usable(dataset.name):
            logger.warning("%s: its name cannot be shown, its uuid is", dataset.uri)
            return dataset.uuid
        return self._free(dataset.name, dataset.uuid)

    def _free(self, wanted: str, uuid: UUID) -> str:
        for name in (wanted, f"{wanted}~{uuid[:8]}"):
            if name not in self._taken:
                return name
        return f"{wanted}~{uuid}"
