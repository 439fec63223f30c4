"""What the channel is told of frozen datasets, so that it answers about what is in their `data`.

Used by the operations, in the event loop. A dataset is told as soon as the kernel knows a row of
it; then the channel asks for pieces of its rows. It is taken back, and answered by the daemon
again, before anything else can be an answer: when another index has taken the place of the one
that pieces were made of, and when a listing lacks the dataset, or the user may not search its
base URI any more. Rows have no other changes.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable

from dserverfs.base.errors import NotFound
from dserverfs.base.items import ItemContent
from dserverfs.catalogue.manifest_index import ManifestIndex
from dserverfs.mount.channel import rows
from dserverfs.mount.channel.link import Link
from dserverfs.mount.channel.rows import ROW_MASK, ROWS, Extent
from dserverfs.mount.replies import Ownership, packed
from dserverfs.tree.frozen_dataset import DatasetTree
from dserverfs.tree.mount_tree import Inode, Tree

LOOK_S = 1.0  # between looks at the listings while names are found


class ToldRows:
    """Those of one mount."""

    def __init__(
        self,
        link: Link,
        tree: Tree,
        ownership: Ownership,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._tree = tree
        self._ownership = ownership
        self._clock_s = clock_s
        self._looked_s = clock_s()
        # By what their rows count from:
        self._told: dict[int, DatasetTree] = {}
        self._unlisted: dict[int, DatasetTree] = {}  # taken back until they are listed again
        self._made_of: dict[int, weakref.ref[ManifestIndex]] = {}  # the last piece

    def noticed(self, inode: Inode) -> None:
        """Note that the kernel is being told of an inode, or asks about it."""
        base = inode & ~ROW_MASK
        if base in self._told or base in self._unlisted:
            return
        dataset = self._tree.dataset_of_row(inode)
        if dataset is not None:
            self._told[base] = dataset
            self._link.tell_dataset(base)

    def tell(self, base: Inode, number: int) -> None:
        """Tell a piece of a dataset's rows; raises NotLoaded, and what keeps it from being read."""
        dataset = self._tree.dataset_of_row(base)
        if dataset is None:
            raise NotFound(f"inode {base} is in no frozen dataset")
        index = dataset.index()
        made_of = self._made_of.get(base)
        if made_of is not None and made_of() is not index:
            self._link.take_back(base)
            if base in self._told:
                self._link.tell_dataset(base)
        self._made_of[base] = weakref.ref(index)
        self._link.tell_rows(base, number, self._packed(dataset, index, number * ROWS, base))

    def dataset(self, base: int) -> DatasetTree | None:
        """Return the dataset whose rows count from `base`, if it is told; in any thread."""
        return self._told.get(base)

    def inodes_of(self, content: ItemContent) -> list[Inode]:
        """Return the numbers of the rows that have an item, also by its uuid; in any thread.

        Of what was told once: the kernel may have pages of it.
        """
        once = [*list(self._told.items()), *list(self._unlisted.items())]
        return [
            Inode(base + content.place)
            for base, dataset in once
            if dataset.dataset.uri == content.dataset.uri
        ]

    def looked_up(self, directory: Inode, *, is_found: bool) -> None:
        """Look whether what was told is listed still, after a look-up above the datasets."""
        if directory & ~ROW_MASK or not (self._told or self._unlisted):
            return
        now_s = self._clock_s()
        if is_found and not self._unlisted and now_s < self._looked_s + LOOK_S:
            return
        self._looked_s = now_s
        listed = self._tree.listed_uris()
        if listed is None:
            return
        for base, dataset in list(self._told.items()):
            if dataset.dataset.uri not in listed:
                self._unlisted[base] = self._told.pop(base)
                self._link.take_back(base)
        for base, dataset in list(self._unlisted.items()):
            if dataset.dataset.uri in listed:
                del self._unlisted[base]

    def _packed(self, dataset: DatasetTree, index: ManifestIndex, first: int, base: int) -> bytes:
        shown = dataset.rows(index, first, ROWS, base)
        ownership = self._ownership
        entries = [packed(entry, ownership) for entry in shown.entries]
        extents = {row: Extent(*children) for row, children in shown.children.items()}
        return rows.packed(first, entries, extents, shown.refused)
