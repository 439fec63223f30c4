"""The datasets of a mount, by the slot of inode numbers that each has.

Used by the tree. A dataset gets the next slot when it is first shown, and keeps it, a staged one
also when it is frozen. The journal has what each slot is of, for another daemon. For one thread at
a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dserverfs.base.errors import ProtocolError
from dserverfs.base.model import BackendURI, Dataset
from dserverfs.catalogue.catalogue import Catalogue
from dserverfs.tree.frozen_dataset import DatasetTree
from dserverfs.tree.number_journal import Known, NumberJournal, of_kind
from dserverfs.tree.staged_dataset import BECAME, StagedTree
from dserverfs.writing.edits.edits import DatasetEdits
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.staging.states import Record

_SLOT, _OWN = "slot", "own"  # kinds of what the journal keeps


class Slots:
    """Those of one mount; slots count from 1."""

    def __init__(
        self, catalogue: Catalogue, edits: DatasetEdits | None, journal: NumberJournal
    ) -> None:
        self._catalogue = catalogue
        self._edits = edits
        self._journal = journal
        self._trees: list[DatasetTree | StagedTree] = []  # slot N is at N - 1
        self._frozen: dict[tuple[BackendURI, bool], int] = {}  # (dataset, is an alias) -> slot
        self._staged: dict[StagedDataset, int] = {}
        self._staged_trees: list[tuple[StagedTree, int]] = []  # with their slots

    def __len__(self) -> int:
        return len(self._trees)

    def __getitem__(self, slot: int) -> DatasetTree | StagedTree:
        return self._trees[slot - 1]

    def of(self, dataset: Dataset, *, alias: bool) -> int:
        """Return the slot of a frozen dataset, or of its place below `.uuid`."""
        slot = None if alias else self._as_staged(dataset)
        slot = slot or self._frozen.get((dataset.uri, alias))
        if slot is None:
            slot = self._frozen[dataset.uri, alias] = len(self._trees) + 1
            self._journal.note(_SLOT, slot, value={"dataset": asdict(dataset), "alias": alias})
            self._trees.append(self._dataset_tree(dataset, slot))
        else:
            tree = self[slot]
            frozen = tree if isinstance(tree, DatasetTree) else tree.frozen()
            if frozen is not None:
                frozen.renew(dataset)
        return slot

    def of_staged(self, staged: StagedDataset) -> int:
        """Return the slot of a staged dataset; raises OSError if it is gone."""
        slot = self._staged.get(staged)
        if slot is None:
            slot = len(self._trees) + 1
            self._add_staged(StagedTree(staged, self._frozen_tree(slot), self._journal, slot))
        return slot

    def restore(
        self, known: Known, staged_in: Callable[[str], Iterable[StagedDataset]]
    ) -> dict[str, set[int]]:
        """Take the slots that another daemon gave; return those of what is staged, by base URI.

        `staged_in` gives what is staged for a base URI. Raises ProtocolError.
        """
        shown: dict[str, set[int]] = {}
        slots = of_kind(known, _SLOT)
        became = of_kind(known, BECAME)
        if sorted(slots) != list(range(1, len(slots) + 1)):
            raise ProtocolError("the journal of inode numbers lacks a dataset")
        for slot, value in sorted(slots.items()):
            if "dataset" in value:
                self.of(Dataset(**value["dataset"]), alias=value["alias"])
            else:
                staged = _staged_again(value, became.get(slot), staged_in)
                tree = StagedTree(staged, self._frozen_tree(slot), self._journal, slot)
                self._add_staged(tree)
                tree.restore(known)
                shown.setdefault(staged.record.base_uri, set()).add(slot)
            tree_now = self[slot]
            frozen = tree_now if isinstance(tree_now, DatasetTree) else tree_now.frozen()
            if frozen is not None:
                frozen.restore(of_kind(known, _OWN, slot))
        return shown

    def _add_staged(self, tree: StagedTree) -> None:
        staged = tree.staged
        slot = self._staged[staged] = len(self._trees) + 1
        directory = str(staged.directory)
        self._journal.note(
            _SLOT, slot, value={"directory": directory, "record": staged.record.to_json()}
        )
        self._trees.append(tree)
        self._staged_trees.append((tree, slot))

    def _as_staged(self, dataset: Dataset) -> int | None:
        """Return the slot a dataset had while it was staged, also by another process."""
        for tree, slot in self._staged_trees:
            if tree.staged.is_over and _becomes(tree.staged, dataset):
                if tree.staged.frozen_as is None:
                    tree.staged.frozen_as = dataset
                return slot
        return None

    def _frozen_tree(self, slot: int) -> Callable[[Dataset], DatasetTree]:
        return lambda dataset: self._dataset_tree(dataset, slot)

    def _dataset_tree(self, dataset: Dataset, slot: int) -> DatasetTree:
        return DatasetTree(dataset, self._catalogue, self._edits, self._journal.of(_OWN, slot))


def first_dataset(known: Known) -> Dataset | None:
    """Return the dataset of the first slot, which a mount of one dataset shows."""
    value = of_kind(known, _SLOT).get(1)
    return None if value is None or "dataset" not in value else Dataset(**value["dataset"])


def _becomes(staged: StagedDataset, dataset: Dataset) -> bool:
    """Return whether a dataset is what a staged one becomes when it is frozen."""
    return (staged.record.base_uri, staged.uuid) == (dataset.base_uri, dataset.uuid)


def _staged_again(
    value: dict[str, Any],
    became: Any,
    staged_in: Callable[[str], Iterable[StagedDataset]],
) -> StagedDataset:
    """Return a staged dataset of another daemon, which may be frozen or discarded by now."""
    directory, record = Path(value["directory"]), Record.from_json(value["record"])
    for staged in staged_in(record.base_uri):
        if staged.directory == directory:
            return staged
    if became is not None:
        frozen_as = Dataset(**became[0])
        gone = StagedDataset(directory, replace(record, uuid=frozen_as.uuid))
        gone.frozen_as, gone.frozen_below = frozen_as, became[1]
    else:
        gone = StagedDataset(directory, record)
    gone.take_as_gone()
    return gone
