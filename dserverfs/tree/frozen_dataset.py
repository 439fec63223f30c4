"""The inside of a frozen dataset as a directory in dtool's own on-disk layout.

Used by the tree, which gives each dataset a slot of inode numbers. Numbers in
the slot are arithmetic: an item's or directory's row in the manifest index for
what is below `data`, ALIAS plus the row for the same by its path without `data/`
(unlisted, for paths from before the freeze), OWN plus a place in a short list for the
rest, and EDITED plus the edits' number for files that are on the local disk, or were.
No I/O but stat of those: raises NotLoaded where the catalogue does.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base import dtool_layout
from dserverfs.base.errors import IntegrityError, NotFound, ProtocolError, StaleInode
from dserverfs.base.items import ItemContent
from dserverfs.base.limits import MAX_COMPONENT_BYTES, component_is_usable, parse_json, understood
from dserverfs.base.model import Dataset, Identifier, Item, mtime_ns_of, path_of_entry
from dserverfs.catalogue.catalogue import Catalogue
from dserverfs.catalogue.items import ROWS_AT_A_TIME
from dserverfs.catalogue.manifest_index import Listed, ManifestIndex, Row
from dserverfs.tree.attributes import EDITABLE_S, FROZEN_S, MUTABLE_S, Attributes, Entry
from dserverfs.tree.number_journal import NOTHING, Note
from dserverfs.writing.edits import editable
from dserverfs.writing.edits.editable import target_of
from dserverfs.writing.edits.edits import DatasetEdits
from dserverfs.writing.edits.local_file import LocalFile

ALIAS = 1 << 34  # numbers from here on are rows by their other path
OWN = 1 << 35  # numbers from here on are not rows
EDITED = OWN + (1 << 33)  # numbers from here on are the edits'


_LISTED = itemgetter(0, 1, 2, 3, 4, 5)

Content = ItemContent | Path | bytes
_UNCHANGEABLE = frozenset(
    {dtool_layout.MANIFEST, dtool_layout.STRUCTURE, dtool_layout.DTOOL_README}
)


_METADATA = (
    dtool_layout.ADMIN_METADATA,
    dtool_layout.MANIFEST,
    dtool_layout.STRUCTURE,
    dtool_layout.DTOOL_README,
    dtool_layout.OVERLAYS,
    dtool_layout.ANNOTATIONS,
    dtool_layout.TAGS,
)


class ShownRows(NamedTuple):
    """Consecutive rows of the index as listings show them."""

    entries: Iterator[Entry]
    children: dict[int, tuple[int, int]]  # of the directories: the first, and how many
    refused: list[int]  # which cannot be opened


class DatasetTree:
    """One dataset."""

    def __init__(
        self,
        dataset: Dataset,
        catalogue: Catalogue,
        edits: DatasetEdits | None = None,
        note: Note = NOTHING.note,
    ) -> None:
        """Without `edits` nothing in it can be changed.

        `note` keeps the numbers of what is no item for another daemon.
        """
        self.dataset = dataset
        self._note = note
        self._catalogue = catalogue
        self._edits = edits
        self._frozen_ns = mtime_ns_of(dataset.frozen_at)
        self._paths: list[str] = [""]
        self._places: dict[str, int] = {"": 0}

    ROOT = OWN

    def restore(self, paths: Mapping[int, str]) -> None:
        """Take the numbers of what is no item as another daemon gave them."""
        for _, path in sorted(paths.items()):
            self._number(path)

    def renew(self, dataset: Dataset) -> None:
        """Take what the server says now of the same dataset, which may have another name."""
        self.dataset = dataset

    def attributes(self, number: int) -> Attributes:
        """Return the attributes of a number; raises NotFound."""
        if number < OWN:
            row = self.index().row(number & ~ALIAS)
            return _aliased(self._row_attributes(row), number)
        if (local := self._local_attributes(self.local_file(number), number)) is not None:
            return local
        return self._own_attributes(self._path(number))._replace(number=number)

    def lookup(self, number: int, name: str) -> Attributes:
        """Return the attributes of the entry `name`; raises NotFound."""
        if number < OWN:
            row = self.index().child(number & ~ALIAS, name)
            return _aliased(self._row_attributes(row), number)
        path = self._path(number)
        if path == "" and name == dtool_layout.DATA:
            return self._row_attributes(self.index().row(0))
        if not self._has(path, name):
            if path == "" and name not in self._own_names(""):
                row = self.index().child(0, name)
                return _aliased(self._row_attributes(row), ALIAS)
            if path in editable.DIRECTORIES_OF_METADATA:
                self._catalogue.renew_metadata(self.dataset)
            raise NotFound(f"{self.dataset.uri}: nothing named {name!r} in {path or '/'}")
        return self._own_attributes(path_of_entry(path, name))

    def children(self, number: int, cookie: int, base: int = 0) -> Iterator[Entry]:
        """Yield the entries behind `cookie` (0: all), in a stable order.

        `base` is added to the numbers in their attributes: another tuple for each
        of a million entries takes a third of the time.
        """
        if number < OWN:
            rows = self._rows(self.index(), number & ~ALIAS, cookie, base)
            if not number & ALIAS:
                yield from rows
                return
            for entry in rows:
                yield entry._replace(attributes=_aliased(entry.attributes, number))
            return
        path = self._path(number)
        if path == "" and cookie == 0:
            # The cookie of row 0 must not be 0, which means the beginning.
            yield Entry(dtool_layout.DATA, self._row_attributes(self.index().row(0), base), OWN)
        entries = []
        for name in self._names(path):
            # An entry that changed between the two looks is gone; no other is left out.
            with contextlib.suppress(NotFound):
                entries.append((self._own_attributes(path_of_entry(path, name)), name))
        for attributes, name in sorted(entries):
            number = attributes.number
            if number > cookie:
                yield Entry(name, attributes._replace(number=base + number), number)

    def index(self) -> ManifestIndex:
        """Return what the rows are from; keep it no longer than one operation."""
        return self._catalogue.index(self.dataset)

    def rows(self, index: ManifestIndex, first: int, limit: int, base: int) -> ShownRows:
        """Return the rows [first, first+limit); `base` is as in `children`."""
        found = index.listing_from(first, limit)
        return ShownRows(
            self._entries(map(_LISTED, found), base),
            {each[0]: (each[6], each[7]) for each in found if each[2]},
            [each[0] for each in found if each[5]],
        )

    def contents_from(self, row: int, limit: int) -> list[ItemContent]:
        """Return the items in the rows [row, row+limit), without the refused ones."""
        return self._catalogue.items(self.dataset).contents_from(row, limit)

    def content(self, number: int) -> Content:
        """Return what a file holds; raises IntegrityError for an item that cannot be shown."""
        if number >= OWN:
            if (file := self.local_file(number)) is not None:
                with contextlib.suppress(FileNotFoundError):  # if it was sent just now
                    return file.local.read_bytes()
            path = self._path(number)
            if path == dtool_layout.MANIFEST and self.index().unsafe:
                # dtool would read and write wherever its relpaths say.
                raise IntegrityError(
                    f"{self.dataset.uri}: its manifest is not handed out: {self.index().unsafe}"
                    " of its items have a relpath or an identifier that they must not have"
                )
            return self._own_content(path)
        items = self._catalogue.items(self.dataset)
        row = items.index.row(number & ~ALIAS)
        if row.refused:
            raise IntegrityError(
                f"{self.dataset.uri} ({self.dataset.name}): {items.relpath(row)} (item"
                f" {row.identifier}) is refused: the manifest gives it a"
                " relpath, size, hash or date that an item cannot have"
            )
        return items.content(row)

    def contents(self) -> Iterator[ItemContent]:
        """Yield every item; blocks, in any thread."""
        return (content for _, content in self._catalogue.contents(self.dataset))

    def path(self, number: int) -> str | None:
        """Return the path of what is outside `data`; None for items and their directories."""
        return None if number < OWN else self._path(number)

    def describe(self, number: int) -> str:
        """Return the relative path of a number, for messages; the root's is empty."""
        if number >= OWN:
            return self._path(number)
        items = self._catalogue.items(self.dataset)
        path = items.relpath(items.index.row(number & ~ALIAS))
        return path if number & ALIAS else path_of_entry(dtool_layout.DATA, path).rstrip("/")

    def local_file(self, number: int) -> LocalFile | None:
        """Return the file on the local disk that a number is of just now."""
        if self._edits is None or number < OWN:
            return None
        if number >= EDITED:
            return self._edits.with_number(self.dataset, number - EDITED)
        return self._edits.shown(self.dataset, self._path(number)).file

    def item(self, number: int) -> Item | None:
        """Return the item that a number is of; None for directories and what is no item."""
        if number >= OWN:
            return None
        items = self._catalogue.items(self.dataset)
        row = items.index.row(number & ~ALIAS)
        if row.identifier is None:
            return None
        return Item(row.identifier, items.relpath(row), row.size_in_bytes, row.hash, row.mtime_ns)

    def overlay_values(self, identifier: Identifier) -> dict[str, Any]:
        """Return the item's value in each overlay that has one."""
        values = {}
        for name, content in self._catalogue.metadata(self.dataset).overlays.items():
            # It may have none for this item, or be nothing that dtool wrote.
            with contextlib.suppress(ProtocolError), understood(name):
                values[name] = parse_json(content, name)[identifier]
        return values

    def _rows(self, index: ManifestIndex, number: int, cookie: int, base: int) -> Iterator[Entry]:
        parent = index.row(number)
        start = cookie + 1 if cookie else parent.first_child
        while rows := index.listing(parent, start, ROWS_AT_A_TIME):
            yield from self._entries(rows, base)
            start = rows[-1][0] + 1
        if start < parent.first_child + parent.children:
            raise ProtocolError(f"{self.dataset.uri}: its index is damaged: rows are missing")

    def _entries(self, rows: Iterable[Listed], base: int) -> Iterator[Entry]:
        frozen_ns = self._frozen_ns
        new = tuple.__new__
        # As `_row_attributes`, which a million calls of are 2 s more, and as the constructors
        # of the two, which are 0.6 s (CPython 3.11; a newer one may need no `tuple.__new__`).
        for row, name, is_directory, size, mtime_ns, refused in rows:
            if is_directory:
                permissions, size, mtime_ns = 0o755, 0, frozen_ns
            else:
                permissions = 0o444 if refused else 0o644
            fields = (
                base + row,
                bool(is_directory),
                permissions,
                size,
                mtime_ns,
                FROZEN_S,
                None,
                None,
                None,
                None,
            )
            yield new(Entry, (name, new(Attributes, fields), row))

    def _row_attributes(self, row: Row, base: int = 0) -> Attributes:
        number = base + row.row
        if row.identifier is None:
            return Attributes(number, True, 0o755, 0, self._frozen_ns, FROZEN_S)
        permissions = 0o444 if row.refused else 0o644
        return Attributes(number, False, permissions, row.size_in_bytes, row.mtime_ns, FROZEN_S)

    def _own_attributes(self, path: str) -> Attributes:
        if self._own_is_directory(path):
            return Attributes(self._number(path), True, 0o755, 0, self._frozen_ns, MUTABLE_S)
        mtime_ns, number, believed_s = self._frozen_ns, None, MUTABLE_S
        if self._edits is not None and path not in _UNCHANGEABLE:
            shown = self._edits.shown(self.dataset, path)
            number = None if shown.number is None else EDITED + shown.number
            if (file := shown.file or shown.moved) is not None:
                local = self._local_attributes(file, number or self._number(path))
                return local or self._own_attributes(path)  # if it was sent just now
            mtime_ns, believed_s = shown.mtime_ns or mtime_ns, EDITABLE_S
        content = self._own_content(path)
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        number = number or self._number(path)
        return Attributes(number, False, 0o644, size, mtime_ns, believed_s)

    def _local_attributes(self, file: LocalFile | None, number: int) -> Attributes | None:
        """Return the attributes of a local file; None if there is none any more."""
        status = self._edits.status(file) if self._edits is not None and file is not None else None
        if status is None:
            return None
        return Attributes(
            number,
            False,
            status.mode,
            status.size_in_bytes,
            status.on_disk.st_mtime_ns,
            EDITABLE_S,
            number_of_links=status.number_of_links,
            blocks=status.on_disk.st_blocks,
            atime_ns=status.on_disk.st_atime_ns,
            ctime_ns=status.on_disk.st_ctime_ns,
        )

    def _own_is_directory(self, path: str) -> bool:
        return path in editable.DIRECTORIES

    def _has(self, path: str, name: str) -> bool:
        """Return whether a directory outside `data` shows an entry; `data` itself is not asked."""
        if self._edits is not None:
            shown = self._edits.shown(self.dataset, path_of_entry(path, name))
            if shown.file is not None or shown.moved is not None:
                return shown.file is not None
        return name in self._own_names(path)

    def _names(self, path: str) -> list[str]:
        """Return what a directory outside `data` shows."""
        names = self._own_names(path)
        if self._edits is None:
            return names
        local = self._edits.names(self.dataset, path)
        return [*(name for name in names if name not in local and self._has(path, name)), *local]

    def _own_names(self, path: str) -> list[str]:
        """Return what a directory outside `data` holds; `data` itself is not among them."""
        if path == "":
            return [dtool_layout.README, dtool_layout.METADATA]
        if path == dtool_layout.METADATA:
            return [path.rpartition("/")[2] for path in _METADATA]
        metadata = self._catalogue.metadata(self.dataset)
        if path == dtool_layout.OVERLAYS:
            return _json_names(metadata.overlays)
        if path == dtool_layout.ANNOTATIONS:
            return _json_names(metadata.annotations)
        if path == dtool_layout.TAGS:
            return [tag for tag in metadata.tags if component_is_usable(tag)]
        raise NotFound(f"{self.dataset.uri}: {path} is no directory")

    def _own_content(self, path: str) -> bytes | Path:
        if path == dtool_layout.MANIFEST:
            return self._catalogue.manifest(self.dataset)
        if path in _UNCHANGEABLE:
            return _disk_layout(path)
        target = target_of(path)
        if target is None:
            raise NotFound(f"{self.dataset.uri}: no {path}")
        return editable.content_of(target, self.dataset, self._catalogue)

    def _number(self, path: str) -> int:
        place = self._places.get(path)
        if place is None:
            place = self._places[path] = len(self._paths)
            self._paths.append(path)
            self._note(place, value=path)
        # 0 is the root; listings go on behind `data`, whose cookie is OWN.
        return OWN + place

    def _path(self, number: int) -> str:
        if number >= EDITED and self._edits is not None:
            return self._edits.path_of(self.dataset, number - EDITED)
        try:
            return self._paths[number - OWN]
        except IndexError as error:
            raise StaleInode(f"{self.dataset.uri}: no inode {number}") from error


def _aliased(attributes: Attributes, number: int) -> Attributes:
    """Return the attributes with a number of the kind that `number` is of."""
    alias = number & ALIAS
    return attributes._replace(number=attributes.number | alias) if alias else attributes


def _json_names(names: Iterable[str]) -> list[str]:
    return [
        f"{name}.json"
        for name in names
        if component_is_usable(name) and len(name.encode()) + 5 <= MAX_COMPONENT_BYTES
    ]


def _disk_layout(path: str) -> bytes:
    """Return what dtool's disk broker keeps in `.dtool/structure.json` or `.dtool/README.txt`."""
    from dtoolcore.storagebroker import DiskStorageBroker  # 60 ms, and rarely looked at

    if path.endswith(".txt"):
        return str(DiskStorageBroker._dtool_readme_txt).encode("utf-8")
    parameters = DiskStorageBroker._structure_parameters
    return json.dumps(parameters, indent=2, sort_keys=True).encode("utf-8")
