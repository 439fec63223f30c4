"""The inode numbers of a staged dataset once it is frozen.

Used by the staged tree, which answers for the local files until then. A path goes
on leading to what it led to. No I/O but what the frozen dataset's tree does; for one
thread at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict

from dserverfs.base.dtool_layout import DATA, METADATA
from dserverfs.base.errors import NotFound, StaleInode
from dserverfs.base.model import Dataset, path_of_entry
from dserverfs.tree.attributes import Attributes, Entry
from dserverfs.tree.frozen_dataset import EDITED, OWN, DatasetTree
from dserverfs.tree.inode_numbers import Nodes
from dserverfs.tree.number_journal import NOTHING, Note
from dserverfs.writing.staging.dataset import StagedDataset

FIRST_NODE = OWN + (1 << 34)  # numbers from here on are of local files
LINK = FIRST_NODE - 1  # of the link that `data` is while it is staged


class Afterlife:
    """The frozen dataset that one staged dataset becomes."""

    def __init__(
        self,
        staged: StagedDataset,
        nodes: Nodes,
        frozen_tree: Callable[[Dataset], DatasetTree],
        note: Note = NOTHING.note,
    ) -> None:
        """`note` keeps what it became, for another daemon."""
        self._staged = staged
        self._note = note
        self._nodes = nodes
        self._frozen_tree = frozen_tree
        self._frozen: DatasetTree | None = None
        self._numbers_then: dict[str, int] = {}  # by path, when it was frozen
        self._paths_then: dict[int, str] = {}

    @property
    def has_begun(self) -> bool:
        """True if anything was asked of it since it was frozen."""
        return self._frozen is not None

    def frozen(self) -> DatasetTree | None:
        """Return the frozen dataset it became, if it did."""
        if self._frozen is None and self._staged.frozen_as is not None:
            self._note_paths()
            self._frozen = self._frozen_tree(self._staged.frozen_as)
            became = [asdict(self._staged.frozen_as), self._staged.frozen_below]
            self._note(value=became)
        return self._frozen

    def tree(self) -> DatasetTree:
        """Return the frozen dataset; raises NotFound if it is staged still."""
        frozen = self.frozen()
        if frozen is None:
            raise NotFound(f"{self._staged.record.name}: is staged")
        return frozen

    def number_now(self, number: int) -> int:
        """Return, once it is frozen, the number that stands now for what `number` stood for."""
        if number == LINK:
            raise NotFound(f"{self._staged.record.name}: its data is a directory now")
        if number < FIRST_NODE:
            return number
        frozen, path = self.tree(), self._path_then(number)
        if path is None:
            raise StaleInode(f"{self._staged.record.name}: inode {number} is gone")
        now = frozen.ROOT
        for name in path.split("/"):
            now = frozen.lookup(now, name).number
        return now

    def attributes(self, number: int) -> Attributes:
        attributes = self.tree().attributes(self.number_now(number))
        return attributes._replace(number=number)

    def lookup(self, number: int, name: str) -> Attributes:
        attributes = self.tree().lookup(self.number_now(number), name)
        return self._as_then(self._path_then(number), name, attributes)

    def children(self, number: int, cookie: int) -> Iterator[Entry]:
        """Yield the entries of a directory behind `cookie`, with the numbers of `lookup`.

        Of another number the kernel makes another directory, and a process that works in the
        one before has lost it.
        """
        path = self._path_then(number)
        for entry in self.tree().children(self.number_now(number), cookie):
            attributes = self._as_then(path, entry.name, entry.attributes)
            same = attributes is entry.attributes
            yield entry if same else entry._replace(attributes=attributes)

    def _as_then(self, path: str | None, name: str, attributes: Attributes) -> Attributes:
        """Return the attributes of an entry with the number that it had while it was staged.

        `path` is that of the directory then, None if it had none.
        """
        if path is None or attributes.number >= EDITED:
            return attributes  # another file since, or one that was changed
        then = self._numbers_then.get(path_of_entry(path, name))
        return attributes if then is None else attributes._replace(number=then)

    @contextlib.contextmanager
    def passing_on(self) -> Iterator[None]:
        """Let the frozen dataset answer if it was frozen, and the files deleted, in between."""
        try:
            yield
        except (FileNotFoundError, NotFound):
            if self._staged.is_gone and self._staged.frozen_as is None:
                raise NotFound(f"{self._staged}: was discarded") from None
            if self._staged.frozen_as is None or self._frozen is not None:
                raise

    def _note_paths(self) -> None:
        """Note which number stood for which path of the frozen dataset.

        A path goes on leading to what it led to, but for those below what the
        frozen dataset has at its top itself: where `data/x` was an item of that
        name, it leads to item `x` now, and the number stands for `data/data/x`.
        """
        below = self._staged.frozen_below
        for path, number in self._nodes.paths().items():
            if path.partition("/")[0] not in (DATA, METADATA) or below == "":
                self._numbers_then[path] = number
                self._paths_then[number] = path
            elif below is not None:
                self._paths_then[number] = f"{below}/{path}"

    def _path_then(self, number: int) -> str | None:
        self.frozen()
        return "" if number == OWN else self._paths_then.get(number)
