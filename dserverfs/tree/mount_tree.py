"""One mount as a tree: backends, buckets, prefixes, datasets and what is in them.

Used by the operations. Inode numbers are stable for the life of the mount:
slot << 36 | number, where slot 0 holds the directories above the datasets, searches, our own, and
every dataset, and every alias of one below `.uuid`, has a slot of its own (the
kernel allows a directory one place only). A staged dataset keeps its slot when it
is frozen. No I/O but for the local staging area: raises NotLoaded where something
must be fetched first, and NotFound. For one thread at a time: the daemon's event
loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple, NewType

from dserverfs.base.errors import (
    DserverfsError,
    Frozen,
    NameTaken,
    NotFound,
    PermissionDenied,
    StaleInode,
)
from dserverfs.base.limits import is_uuid
from dserverfs.base.model import UUID, BackendURI, Dataset, DserverURI
from dserverfs.catalogue.catalogue import (
    FIND_DIRECTORY,
    OWN_DIRECTORY,
    UUID_DIRECTORY,
    Catalogue,
)
from dserverfs.catalogue.names import DatasetNames
from dserverfs.catalogue.refreshed import NotLoaded
from dserverfs.tree.attributes import Attributes, Entry
from dserverfs.tree.frozen_dataset import ALIAS, OWN, Content, DatasetTree
from dserverfs.tree.number_journal import NOTHING, Known, NumberJournal
from dserverfs.tree.own_files import FIRST_OWN, OwnFiles
from dserverfs.tree.searches import FIRST_SEARCH, SEARCH, Searches
from dserverfs.tree.slots import Slots
from dserverfs.tree.staged_dataset import StagedTree
from dserverfs.tree.upper_directories import TOP, Path, UpperDirectories
from dserverfs.writing.edits.edits import DatasetEdits
from dserverfs.writing.staging.area import Staging, require_name
from dserverfs.writing.staging.dataset import StagedDataset

Inode = NewType("Inode", int)

ROOT = Inode(TOP)
SLOT_BITS = 36
NUMBER_MASK = (1 << SLOT_BITS) - 1
# Datasets are listed behind the directories of slot 0, which are few.
_FIRST_DATASET_COOKIE = 1 << 32


class InFrozen(NamedTuple):
    """A number in a frozen dataset."""

    tree: DatasetTree
    number: int


class Place(NamedTuple):
    """The dataset that an inode is in, and its number there."""

    tree: DatasetTree | StagedTree | None  # None: a directory above the datasets
    number: int

    @property
    def is_item(self) -> bool:
        """True for an item of a frozen dataset, or a directory of items; looks at neither."""
        return self.tree is not None and self.number < OWN

    @property
    def staged(self) -> StagedTree | None:
        """The staged dataset, unless it is frozen by now."""
        tree = self.tree
        return tree if isinstance(tree, StagedTree) and tree.frozen() is None else None

    def frozen(self) -> InFrozen | None:
        """Return the place in a frozen dataset, in what was staged as well; None elsewhere.

        Raises NotLoaded, and NotFound for what was there only while it was staged.
        """
        tree, number = self
        if isinstance(tree, StagedTree):
            frozen = tree.frozen()
            return None if frozen is None else InFrozen(frozen, tree.number_now(number))
        return None if tree is None else InFrozen(tree, number)


class Totals(NamedTuple):
    """The sums over all datasets that `df` shows."""

    size_in_bytes: int
    number_of_items: int


class Tree:
    """The directories and datasets of a mount of `uri`."""

    def __init__(
        self,
        uri: DserverURI,
        catalogue: Catalogue,
        mounted_ns: int,
        staging: Staging | None = None,
        edits: DatasetEdits | None = None,
        *,
        control: bytes | None = None,
        journal: NumberJournal = NOTHING,
    ) -> None:
        """`mounted_ns` is the mtime of the directories above the datasets.

        Without `staging` nothing can be made, and nothing staged is shown; without
        `edits` nothing frozen can be changed. `control` is what `.dserverfs/control` holds,
        if there is to be one. `journal` keeps the inode numbers for another daemon.
        """
        self._uri = uri
        self._catalogue = catalogue
        self._staging = staging
        self._edits = edits
        self._slots = Slots(catalogue, edits, journal)
        # Slot 0, and so are the searches:
        self._upper = UpperDirectories(uri, catalogue, mounted_ns, journal)
        self._searches = Searches(uri, catalogue, self._upper, mounted_ns, journal.of(SEARCH))
        self.own = OwnFiles(mounted_ns, control)
        self._shows_one = False
        # By base URI, slots: what was shown as staged last, and what is that no more but
        # may still have its name.
        self._shown_staged: dict[str, set[int]] = {}
        self._over: dict[str, list[int]] = {}

    def show_only(self, dataset: Dataset) -> None:
        """Make that dataset the root of the mount; before anything else is asked."""
        self._slots.of(dataset, alias=False)
        self._shows_one = True

    def restore(self, known: Known) -> None:
        """Take the inode numbers that another daemon gave; before anything else is asked.

        Those of what is there no more lead to nothing. Raises ProtocolError, and LocalDiskError.
        """
        staging = self._staging
        staged_in = (lambda base_uri: ()) if staging is None else staging.datasets
        self._shown_staged = self._slots.restore(known, staged_in)
        self._upper.restore(known)
        self._searches.restore(known)

    def locate(self, inode: Inode) -> Place:
        """Return where an inode is, at once; raises NotFound."""
        slot, number = self._split(inode)
        return Place(self._slots[slot] if slot else None, number)

    def attributes(self, inode: Inode) -> Attributes:
        """Return the attributes; their number is the inode's."""
        slot, number = self._split(inode)
        if slot:
            return self._renumber(slot, self._slots[slot].attributes(number))
        if number >= FIRST_SEARCH:
            return self._searches.attributes(number)
        if number >= FIRST_OWN:
            return self.own.attributes(number)
        return self._upper.attributes(self._upper.path(number))

    def lookup(self, inode: Inode, name: str) -> Attributes:
        """Return the attributes of an entry; raises NotFound."""
        if inode == ROOT and name == OWN_DIRECTORY:
            return self.own.top()
        slot, number = self._split(inode)
        if slot:
            return self._renumber(slot, self._slots[slot].lookup(number, name))
        if number >= FIRST_SEARCH:
            return self._searches.lookup(number, name)
        if number >= FIRST_OWN:
            return self.own.lookup(number, name)
        path = self._upper.path(number)
        if path and path[-1] == UUID_DIRECTORY:
            return self._lookup_uuid(path, name)
        if name in self._upper.below(path):
            return self._upper.attributes((*path, name))
        if not path and name == FIND_DIRECTORY:
            return self._searches.top()
        if self._upper.is_base_uri(path):
            if name == UUID_DIRECTORY:
                return self._upper.attributes((*path, name))
            slots = self._slots_in(path)
            if name in slots:
                return self._root_of(slots[name])
            self._catalogue.renew_listing(self._upper.base_uri(path))
        else:
            self._catalogue.renew_user()
        raise NotFound(f"{self._uri}: nothing named {name!r} in {'/'.join(path) or '/'}")

    def children(self, inode: Inode, cookie: int) -> Iterator[Entry]:
        """Yield the entries behind `cookie` (0: all) in a stable order."""
        slot, number = self._split(inode)
        if slot:
            dataset = self._slots[slot]
            if isinstance(dataset, DatasetTree):
                yield from dataset.children(number, cookie, slot << SLOT_BITS)
                return
            for entry in dataset.children(number, cookie):
                yield entry._replace(attributes=self._renumber(slot, entry.attributes))
            return
        if number >= FIRST_OWN:
            yield from self.own.children(cookie)
            return
        path = self._upper.path(number)
        if not self._upper.is_base_uri(path):
            self._catalogue.recent_user()
        below = [(self._upper.attributes((*path, name)), name) for name in self._upper.below(path)]
        for attributes, name in sorted(below):
            if attributes.number > cookie:
                yield Entry(name, attributes, attributes.number)
        if self._upper.is_base_uri(path):
            for name, slot in sorted(self._slots_in(path).items(), key=lambda entry: entry[1]):
                behind = _FIRST_DATASET_COOKIE + slot
                if behind > cookie:
                    yield Entry(name, self._root_of(slot), behind)

    def names(self, inode: Inode) -> list[str] | None:
        """Return what a directory that changes now holds; None of one that has `children`."""
        slot, number = self._split(inode)
        if not slot:
            return self._searches.names(number) if number >= FIRST_SEARCH else None
        dataset = self._slots[slot]
        return dataset.names(number) if isinstance(dataset, StagedTree) else None

    def link_target(self, inode: Inode) -> bytes | None:
        """Return where a link to a dataset leads; None of what is no such link."""
        slot, number = self._split(inode)
        return self._searches.target(number) if number >= FIRST_SEARCH and not slot else None

    def dataset_of_row(self, inode: Inode) -> DatasetTree | None:
        """Return the dataset of which an inode is a row; None of what is no row.

        What was staged in this mount is none: its files may have their numbers from then.
        """
        slot, number = self._split(inode)
        tree = self._slots[slot] if slot and number < ALIAS else None
        return tree if isinstance(tree, DatasetTree) else None

    def listed_uris(self) -> set[BackendURI] | None:
        """Return the datasets of the last listings that the user may see; asks for none.

        None of a mount of one dataset, which no listing shows.
        """
        if self._shows_one:
            return None
        searched = self._catalogue.user().search_base_uris
        known = self._catalogue.known_datasets()
        return {dataset.uri for dataset in known if dataset.base_uri in searched}

    def content(self, inode: Inode) -> Content:
        """Return what a file holds; raises NotFound and IntegrityError."""
        slot, number = self._split(inode)
        if not slot:
            raise NotFound(f"{self._uri}: inode {inode} is a directory")
        return self._slots[slot].content(number)

    def totals(self) -> Totals:
        """Return what is shown in all, as far as listings are known."""
        known = self._catalogue.known_datasets()
        if isinstance(only := self._slots[1] if self._shows_one else None, DatasetTree):
            known = [only.dataset]
        return Totals(
            sum(dataset.size_in_bytes or 0 for dataset in known),
            sum(dataset.number_of_items or 0 for dataset in known),
        )

    # Staged datasets

    def staged_attributes(self, tree: StagedTree, attributes: Attributes) -> Attributes:
        """Return attributes that a staged dataset gave, with the mount's inode number."""
        return self._renumber(self._slots.of_staged(tree.staged), attributes)

    def kernel_learned(self, inode: Inode) -> None:
        """Note that the kernel was told of an inode that `lookup` gave."""
        tree, number = self.locate(inode)
        if isinstance(tree, StagedTree):
            tree.kernel_learned(number)
        elif tree is None and number >= FIRST_SEARCH:
            self._searches.kernel_learned(number)

    def forget(self, inode: Inode, times: int) -> None:
        """Note that the kernel forgot an inode."""
        tree, number = self.locate(inode)
        if isinstance(tree, StagedTree):
            tree.forget(number, times)
        elif tree is None and number >= FIRST_SEARCH:
            self._searches.forget(number, times)

    def describe(self, inode: Inode) -> str:
        """Return the path of an inode below the mount point, for messages; loads nothing.

        Of what is in a dataset whose index is not loaded, the dataset's.
        """
        try:
            place = self.locate(inode)
            if place.tree is None:
                return "/".join(self._upper.path(place.number))
            if (staged := place.staged) is not None:
                within = staged.describe(place.number).strip("/")
                return self._below(staged.staged.record.base_uri, UUID(staged.staged.id), within)
            frozen = place.frozen()
        except (DserverfsError, NotLoaded):
            return ""
        assert frozen is not None
        dataset = frozen.tree.dataset
        within = ""
        with contextlib.suppress(DserverfsError, NotLoaded):
            within = frozen.tree.describe(frozen.number)
        return self._below(dataset.base_uri, dataset.uuid, within)

    def _below(self, base_uri: str, uuid: UUID, within: str) -> str:
        """Return the path of what is `within` a dataset that was looked up."""
        if self._shows_one:
            return within
        name = self._catalogue.names(base_uri).name_of(uuid) or uuid
        return "/".join((*self._upper.path_of(base_uri), name, within)).rstrip("/")

    def base_uri_at(self, inode: Inode) -> str | None:
        """Return the base URI whose directory an inode is, if it is one."""
        slot, number = self._split(inode)
        if slot or self._shows_one or number >= FIRST_OWN:
            return None
        path = self._upper.path(number)
        return self._upper.base_uri(path) if self._upper.is_base_uri(path) else None

    def directory_of(self, base_uri: str) -> Inode:
        """Return the inode of a base URI's directory, which was looked up before."""
        return Inode(self._upper.number(self._upper.path_of(base_uri)))

    def require_free(self, base_uri: str, name: str) -> None:
        """Raise unless a dataset of that name can be made there: PermissionDenied, NameTaken,
        UsageError for a name dtool refuses."""
        user = self._catalogue.user()
        if base_uri not in user.register_base_uris:
            raise PermissionDenied(
                f"{base_uri}: user {user.username} may not register datasets there"
            )
        require_name(name)
        path = self._upper.path_of(base_uri)
        if name in self._slots_in(path) or self._catalogue.names(base_uri).is_taken(name):
            raise NameTaken(f"{base_uri}/{name}: there is a dataset of that name")

    def username(self) -> str:
        """Return whom the token speaks for."""
        return self._catalogue.user().username

    def show_staged(self, staged: StagedDataset) -> Attributes:
        """Return the attributes of a staged dataset's directory."""
        names = self._catalogue.names(staged.record.base_uri)
        names.place(UUID(staged.id), staged.record.name)
        slot = self._slots.of_staged(staged)
        # It may be discarded before the next listing, and its name is to be free then.
        self._shown_staged.setdefault(staged.record.base_uri, set()).add(slot)
        return self._root_of(slot)

    def rename_dataset(self, base_uri: str, old: str, new: str) -> None:
        """Rename a staged dataset; raises Frozen for a frozen one, and as `require_free`."""
        staged = self.staged_named(base_uri, old)
        if staged is None or self._staging is None:
            raise Frozen(f"{base_uri}/{old}: is frozen")
        self.require_free(base_uri, new)
        self._staging.rename(staged, new)
        self._catalogue.names(base_uri).place(UUID(staged.id), new)

    def staged_named(self, base_uri: str, name: str) -> StagedDataset | None:
        """Return the staged dataset of that name; None if it is frozen, or no dataset.

        Raises NotFound.
        """
        if name in (UUID_DIRECTORY, FIND_DIRECTORY, OWN_DIRECTORY):
            return None
        path = self._upper.path_of(base_uri)
        slot = self._slots_in(path).get(name)
        if slot is not None:
            tree = self._slots[slot]
            if isinstance(tree, StagedTree) and tree.frozen() is None:
                return tree.staged
            return None
        raise NotFound(f"{base_uri}: no dataset {name!r}")

    def _slots_in(self, path: Path) -> dict[str, int]:
        """Return the slots of all datasets in a base URI, staged or frozen, by name."""
        self._upper.listed(path)
        staged = self._staged(path)
        # Again: what is staged no more made the listing be fetched anew.
        listed = self._upper.listed(path)
        slots = {name: self._slots.of(dataset, alias=False) for name, dataset in listed.items()}
        return {**slots, **staged}

    def _staged(self, path: Path) -> dict[str, int]:
        """Return the slots of what is staged in a base URI that was listed, by name."""
        if self._staging is None:
            return {}
        base_uri = self._upper.base_uri(path)
        names = self._catalogue.names(base_uri)
        self._let_names_go(path, names)
        found: dict[str, int] = {}
        for staged in self._staging.datasets(base_uri):
            slot = self._slots.of_staged(staged)
            if not staged.is_over:
                found[names.place(UUID(staged.id), staged.record.name)] = slot
        now = set(found.values())
        over = self._shown_staged.get(base_uri, set()) - now
        self._shown_staged[base_uri] = now
        if over:  # frozen or discarded, by this process or another
            self._over.setdefault(base_uri, []).extend(over)
            self._catalogue.relist(base_uri)
        return found

    def _let_names_go(self, path: Path, names: DatasetNames) -> None:
        """Free the names of what was discarded; what was frozen instead is listed by now."""
        slots = self._over.pop(self._upper.base_uri(path), [])
        listed = {dataset.uuid for dataset in self._upper.listed(path).values()} if slots else set()
        for slot in slots:
            tree = self._slots[slot]
            assert isinstance(tree, StagedTree)
            staged_id, uuid = UUID(tree.staged.id), tree.staged.uuid
            if uuid not in listed:
                names.release(staged_id)

    def _lookup_uuid(self, path: Path, name: str) -> Attributes:
        if is_uuid(name):
            for dataset in self._upper.listed(path[:-1]).values():
                if dataset.uuid == name:
                    return self._root_of(self._slots.of(dataset, alias=True))
            self._catalogue.renew_listing(self._upper.base_uri(path[:-1]))
        raise NotFound(f"{self._uri}: no dataset {name!r} in {self._upper.base_uri(path[:-1])}")

    def _root_of(self, slot: int) -> Attributes:
        return self._renumber(slot, self._slots[slot].attributes(DatasetTree.ROOT))

    def _renumber(self, slot: int, attributes: Attributes) -> Attributes:
        """Return the attributes with the mount's inode number in place of the slot's."""
        if self._shows_one and attributes.number == DatasetTree.ROOT:
            return attributes._replace(number=ROOT)
        return attributes._replace(number=slot << SLOT_BITS | attributes.number)

    def _split(self, inode: Inode) -> tuple[int, int]:
        if self._shows_one and inode == ROOT:
            return 1, DatasetTree.ROOT
        slot, number = inode >> SLOT_BITS, inode & NUMBER_MASK
        if slot > len(self._slots):
            raise StaleInode(f"{self._uri}: no inode {inode}")
        return slot, number


assert OWN < 1 << SLOT_BITS
