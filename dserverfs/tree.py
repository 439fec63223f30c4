"""One mount as a tree: backends, buckets, prefixes, datasets and what is in them.

Used by the operations. Inode numbers are stable for the life of the mount:
slot << 36 | number, where slot 0 holds the directories above the datasets and
every dataset, and every alias of one below `.uuid`, has a slot of its own (the
kernel allows a directory one place only). No I/O: raises NotLoaded where
something must be fetched first, and NotFound. Thread-safe as long as one thread
at a time calls; the daemon calls from its event loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, NewType

from dserverfs.catalogue import UUID_DIRECTORY, Catalogue
from dserverfs.dataset_tree import MUTABLE_S, OWN, Attributes, Content, DatasetTree, Entry
from dserverfs.errors import NotFound
from dserverfs.model import UUID, Dataset, DserverURI, is_uuid, split_base_uri

Inode = NewType("Inode", int)

ROOT = Inode(1)
SLOT_BITS = 36
_NUMBER_MASK = (1 << SLOT_BITS) - 1
# Datasets are listed behind the directories of slot 0, which are few.
_FIRST_DATASET_COOKIE = 1 << 32


class Totals(NamedTuple):
    """What `df` shows."""

    size_in_bytes: int
    number_of_items: int


class Tree:
    """What a mount of `uri` shows."""

    def __init__(self, uri: DserverURI, catalogue: Catalogue, mounted_ns: int) -> None:
        """`mounted_ns` is the mtime of the directories above the datasets."""
        self._uri = uri
        self._catalogue = catalogue
        self._mounted_ns = mounted_ns
        self._datasets: list[DatasetTree] = []  # slot N is at N - 1
        self._slots: dict[tuple[UUID, bool], int] = {}  # (uuid, is an alias) -> slot
        # Slot 0: paths of directories above the datasets, place + 1 is the number.
        self._paths: list[tuple[str, ...]] = [()]
        self._places: dict[tuple[str, ...], int] = {(): 0}
        self._top: tuple[str, ...] = ()
        if uri.base_uri is not None:
            self._top = tuple(split_base_uri(uri.base_uri))
        self._shows_one = False

    def show_only(self, dataset: Dataset) -> None:
        """Make that dataset the root of the mount; before anything else is asked."""
        self._slot(dataset, alias=False)
        self._shows_one = True

    def attributes(self, inode: Inode) -> Attributes:
        """Return the attributes; their number is the inode's."""
        slot, number = self._split(inode)
        if slot:
            return self._as_shown(self._datasets[slot - 1].attributes(number))
        return self._directory(self._path(number))

    def lookup(self, inode: Inode, name: str) -> Attributes:
        """Return the attributes of an entry; raises NotFound."""
        slot, number = self._split(inode)
        if slot:
            return self._datasets[slot - 1].lookup(number, name)
        path = self._path(number)
        if path and path[-1] == UUID_DIRECTORY:
            return self._lookup_uuid(path, name)
        if name in self._directories(path):
            return self._directory((*path, name))
        if self._is_base_uri(path):
            if name == UUID_DIRECTORY:
                return self._directory((*path, name))
            dataset = self._listed(path).get(name)
            if dataset is not None:
                return self._dataset_root(dataset, alias=False)
        raise NotFound(f"{self._uri}: nothing named {name!r} in {'/'.join(path) or '/'}")

    def children(self, inode: Inode, cookie: int) -> Iterator[Entry]:
        """Yield the entries behind `cookie` (0: all) in a stable order."""
        slot, number = self._split(inode)
        if slot:
            yield from self._datasets[slot - 1].children(number, cookie)
            return
        path = self._path(number)
        below = [(self._directory((*path, name)), name) for name in self._directories(path)]
        for attributes, name in sorted(below):
            if attributes.number > cookie:
                yield Entry(name, attributes, attributes.number)
        if self._is_base_uri(path):
            listed = [
                (self._slot(dataset, alias=False), name, dataset)
                for name, dataset in self._listed(path).items()
            ]
            for place, name, dataset in sorted(listed, key=lambda entry: entry[0]):
                behind = _FIRST_DATASET_COOKIE + place
                if behind > cookie:
                    yield Entry(name, self._dataset_root(dataset, alias=False), behind)

    def content(self, inode: Inode) -> Content:
        """Return what a file holds; raises NotFound and IntegrityError."""
        slot, number = self._split(inode)
        if not slot:
            raise NotFound(f"{self._uri}: inode {inode} is a directory")
        return self._datasets[slot - 1].content(number)

    def totals(self) -> Totals:
        """Return what is shown in all, as far as listings are known."""
        known = self._catalogue.known_datasets()
        if self._shows_one:
            known = [self._datasets[0].dataset]
        return Totals(
            sum(dataset.size_in_bytes or 0 for dataset in known),
            sum(dataset.number_of_items or 0 for dataset in known),
        )

    # Directories above the datasets

    def _directories(self, path: tuple[str, ...]) -> list[str]:
        """Return the directories right below `path` that lead to base URIs."""
        if path and path[-1] == UUID_DIRECTORY:
            return []
        depth = len(self._top) + len(path)
        names = {
            parts[depth]
            for parts in self._permitted()
            if len(parts) > depth and parts[:depth] == (*self._top, *path)
        }
        return sorted(names)

    def _permitted(self) -> list[tuple[str, ...]]:
        user = self._catalogue.user()
        return [tuple(split_base_uri(base_uri)) for base_uri in user.search_base_uris]

    def _is_base_uri(self, path: tuple[str, ...]) -> bool:
        return (*self._top, *path) in self._permitted()

    def _base_uri(self, path: tuple[str, ...]) -> str:
        backend, *rest = (*self._top, *path, "")
        return f"{backend}://{'/'.join(rest[:-1])}"

    def _listed(self, path: tuple[str, ...]) -> Mapping[str, Dataset]:
        reserved = frozenset(self._directories(path))
        return self._catalogue.datasets(self._base_uri(path), reserved)

    def _lookup_uuid(self, path: tuple[str, ...], name: str) -> Attributes:
        if is_uuid(name):
            for dataset in self._listed(path[:-1]).values():
                if dataset.uuid == name:
                    return self._dataset_root(dataset, alias=True)
        raise NotFound(f"{self._uri}: no dataset {name!r} in {self._base_uri(path[:-1])}")

    def _directory(self, path: tuple[str, ...]) -> Attributes:
        place = self._places.get(path)
        if place is None:
            place = self._places[path] = len(self._paths)
            self._paths.append(path)
        writable = self._base_uri(path) in self._catalogue.user().register_base_uris
        permissions = 0o755 if writable else 0o555
        return Attributes(place + ROOT, True, permissions, 0, self._mounted_ns, MUTABLE_S)

    def _path(self, number: int) -> tuple[str, ...]:
        try:
            return self._paths[number - ROOT]
        except IndexError as error:
            raise NotFound(f"{self._uri}: no inode {number}") from error

    # Datasets

    def _slot(self, dataset: Dataset, *, alias: bool) -> int:
        slot = self._slots.get((dataset.uuid, alias))
        if slot is None:
            slot = self._slots[dataset.uuid, alias] = len(self._datasets) + 1
            key = str(DserverURI(self._uri.server, dataset.base_uri, dataset.uuid))
            base = slot << SLOT_BITS
            self._datasets.append(DatasetTree(dataset, self._catalogue, key, base))
        return slot

    def _dataset_root(self, dataset: Dataset, *, alias: bool) -> Attributes:
        slot = self._slot(dataset, alias=alias)
        return self._as_shown(self._datasets[slot - 1].attributes(DatasetTree.ROOT))

    def _as_shown(self, attributes: Attributes) -> Attributes:
        """Return the attributes with the mount's root in place of that of the only dataset."""
        if self._shows_one and attributes.number == 1 << SLOT_BITS | DatasetTree.ROOT:
            return attributes._replace(number=ROOT)
        return attributes

    def _split(self, inode: Inode) -> tuple[int, int]:
        if self._shows_one and inode == ROOT:
            return 1, DatasetTree.ROOT
        slot, number = inode >> SLOT_BITS, inode & _NUMBER_MASK
        if slot > len(self._datasets):
            raise NotFound(f"{self._uri}: no inode {inode}")
        return slot, number


assert OWN < 1 << SLOT_BITS
