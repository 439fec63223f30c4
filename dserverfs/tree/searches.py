"""The directory `.find` at the top of a mount: searches, as directories with links to datasets.

`.find/tag/<tag>`, `.find/creator/<name>` and `.find/text/<words>` hold a link to each dataset
that is found, `.find/uuid/<uuid>` is one. Any name in the first three is a search, which is
made when it is listed or looked into; no listing shows it, nor `.find`. Percent signs in a
name are those of URIs: `%2F` is a slash.

Used by the tree, in whose slot 0 the numbers from FIRST_SEARCH on are these. A number belongs
to a path for as long as the kernel knows it, and is not given again. What is found is kept
for the searches that were used last. No I/O: raises NotLoaded as the catalogue does. For one
thread at a time.
"""

from __future__ import annotations

import itertools
import os
import urllib.parse
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import partial

from dserverfs.base.conditions import Conditions, FoundAt
from dserverfs.base.errors import NotFound, StaleInode, UsageError
from dserverfs.base.limits import component_is_usable, is_uuid
from dserverfs.base.model import UUID, Dataset, DserverURI
from dserverfs.base.printable import listed
from dserverfs.catalogue.catalogue import FIND_DIRECTORY, RENEW_S, Catalogue
from dserverfs.catalogue.refreshed import NotLoaded, RefreshedValue
from dserverfs.tree.attributes import LINK_MODE, MUTABLE_S, Attributes
from dserverfs.tree.number_journal import NOTHING, Known, Note, following, of_kind
from dserverfs.tree.upper_directories import Path, UpperDirectories

FIRST_SEARCH = 1 << 35
SEARCH = "search"  # the kind of these numbers
# What is kept, but for the search that was used last.
MAX_SEARCHES = 1000
MAX_LINKS = 200_000  # of all searches; guess: 300 bytes each

UUIDS = "uuid"
_CONDITIONS = {
    "tag": lambda text: Conditions(tags=(text,)),
    "creator": lambda text: Conditions(creators=(text,)),
    "text": lambda text: Conditions(texts=(text,)),
}
KINDS = (*_CONDITIONS, UUIDS)


class _Node:
    """A directory or a link that the kernel may know."""

    __slots__ = ("lookups", "number", "path", "target")

    def __init__(self, number: int, path: Path) -> None:
        self.number = number
        self.path = path  # below `.find`
        self.target: bytes | None = None  # of a link
        self.lookups = 0  # how many times the kernel was told of it and did not forget


class _Search:
    """A search, and the links that were made of its result."""

    def __init__(self, value: RefreshedValue[tuple[FoundAt, ...]]) -> None:
        self.value = value
        self.found: tuple[FoundAt, ...] | None = None  # what the links were made of
        self.links: dict[str, str] = {}  # by name, where each leads to from the top
        # What links are being made of; by base URI, the listing that lacked some of it.
        self.making: tuple[FoundAt, ...] | None = None
        self.lacking: dict[str, Mapping[str, Dataset]] = {}


class Searches:
    """The `.find` of one mount."""

    def __init__(
        self,
        uri: DserverURI,
        catalogue: Catalogue,
        upper: UpperDirectories,
        mounted_ns: int,
        note: Note = NOTHING.note,
    ) -> None:
        """`uri` is what is mounted, `mounted_ns` the mtime of everything here.

        `note` keeps the numbers for another daemon.
        """
        self._note = note
        self._uri = uri
        self._catalogue = catalogue
        self._upper = upper
        self._mounted_ns = mounted_ns
        self._names = _LinkNames()
        self._searches: OrderedDict[Path, _Search] = OrderedDict()
        self._next = FIRST_SEARCH
        self._nodes: dict[int, _Node] = {}
        self._by_path: dict[Path, _Node] = {}
        self._untold: _Node | None = None  # of whom the kernel was not told yet

    def restore(self, known: Known) -> None:
        """Take the numbers that another daemon gave; the kernel may know them as long as it is."""
        for number, (path, target) in of_kind(known, SEARCH).items():
            node = self._nodes[number] = self._by_path[tuple(path)] = _Node(number, tuple(path))
            node.target = None if target is None else os.fsencode(target)
            node.lookups = 1 << 62
            self._note(number, value=[path, target])
        self._next = following(known, FIRST_SEARCH, SEARCH)
        if self._next > FIRST_SEARCH and self._next - 1 not in self._nodes:
            self._note(self._next - 1, value=None)

    # As the tree's

    def top(self) -> Attributes:
        """Return the attributes of `.find`."""
        return self._attributes(self._node(()))

    def attributes(self, number: int) -> Attributes:
        return self._attributes(self._at(number))

    def lookup(self, number: int, name: str) -> Attributes:
        """Return the attributes of an entry; raises NotFound. `kernel_learned` is the caller's."""
        directory = self._at(number).path
        node = None
        if not directory and name in KINDS:
            node = self._node((name,))
        elif directory == (UUIDS,):
            node = self._link((*directory, name), self._only(name))
        elif len(directory) == 1:
            _conditions_of(directory[0], name)
            node = self._node((*directory, name))
        elif len(directory) == 2:
            node = self._link((*directory, name), self._found_as(directory, name))
        if node is None:
            raise NotFound(f"{self._uri}: nothing named {name!r} in {_text(directory)}")
        return self._attributes(node)

    def names(self, number: int) -> list[str]:
        """Return what a directory lists now."""
        directory = self._at(number).path
        if not directory:
            return list(KINDS)
        return list(self._links(directory)) if len(directory) == 2 else []

    def target(self, number: int) -> bytes | None:
        """Return where a link leads to; None of a directory."""
        return self._at(number).target

    def kernel_learned(self, number: int) -> None:
        """Note that the kernel was told of a number that `lookup` gave."""
        node = self._at(number)
        node.lookups += 1
        if node is self._untold:
            self._untold = None

    def forget(self, number: int, times: int) -> None:
        """Note that the kernel forgot a number."""
        node = self._nodes.get(number)
        if node is not None:
            node.lookups -= times
            self._let_go(node)

    # Numbers

    def _at(self, number: int) -> _Node:
        try:
            return self._nodes[number]
        except KeyError:
            raise StaleInode(f"{self._uri}: no inode {number}") from None

    def _node(self, path: Path) -> _Node:
        node = self._by_path.get(path)
        if node is None:
            if self._untold is not None:
                self._let_go(self._untold)
            node = self._untold = _Node(self._next, path)
            self._by_path[path] = self._nodes[self._next] = node
            self._note(self._next, value=[path, None])
            self._next += 1
        return node

    def _link(self, path: Path, target: str | None) -> _Node | None:
        """Return the node of a link that leads to `target` from the top of the mount."""
        if target is None:
            return None
        node = self._node(path)
        up = "../" * len(path)  # out of the directories that it is in, and `.find`
        text = f"{up}{target}"
        if node.target != text.encode():
            node.target = text.encode()
            self._note(node.number, value=[path, text])
        return node

    def _let_go(self, node: _Node) -> None:
        if node.lookups <= 0:
            del self._nodes[node.number], self._by_path[node.path]
            self._note(node.number, value=None)

    def _attributes(self, node: _Node) -> Attributes:
        is_directory = node.target is None
        permissions = 0o555 if is_directory else LINK_MODE
        size = len(node.target or b"")
        return Attributes(node.number, is_directory, permissions, size, self._mounted_ns, MUTABLE_S)

    # What is found

    def _only(self, name: str) -> str | None:
        """Return where the one dataset of a uuid is; raises UsageError if there are several."""
        if not is_uuid(name):
            return None
        links = self._links((UUIDS, name))
        if len(links) > 1:
            raise UsageError(f"{name}: several base URIs have it: {listed(links.values())}")
        return self._or_renew((UUIDS, name), next(iter(links.values()), None))

    def _found_as(self, directory: Path, name: str) -> str | None:
        return self._or_renew(directory, self._links(directory).get(name))

    def _or_renew(self, path: Path, target: str | None) -> str | None:
        """Return what a search found; if that is nothing, raise NotLoaded unless it is young."""
        if target is None:
            self._searches[path].value.renew(RENEW_S)
        return target

    def _links(self, path: Path) -> Mapping[str, str]:
        """Return what a search finds: by the name of a link, the path below the top."""
        search = self._search(path)
        found = search.value.get()
        if found is not search.found:
            search.links = self._linked(search, found)
            search.found = found
            self._drop_old()
        return search.links

    def _search(self, path: Path) -> _Search:
        search = self._searches.get(path)
        if search is None:
            value = self._catalogue.search(self._uri, _conditions_of(*path))
            search = self._searches[path] = _Search(value)
            self._drop_old()
        self._searches.move_to_end(path)
        return search

    def _linked(self, search: _Search, found: tuple[FoundAt, ...]) -> dict[str, str]:
        if found is not search.making:
            search.making, search.lacking = found, {}
        paths = {base_uri: self._upper.path_of(base_uri) for base_uri, _ in found}
        listings = {base_uri: self._upper.listed(path) for base_uri, path in paths.items()}
        links = {}
        for one in found:
            base_uri, listing = one.base_uri, listings[one.base_uri]
            name = self._catalogue.names(base_uri).name_of(one.uuid)
            if name is None or name not in listing:
                if search.lacking.setdefault(base_uri, listing) is listing:
                    raise NotLoaded(partial(self._catalogue.fetch_listing, base_uri))
                continue  # a server's search may find what is not there any more
            links[self._names.name_of(one, name)] = "/".join((*paths[base_uri], name))
        return links

    def _drop_old(self) -> None:
        """Forget what the searches found that were used the longest ago."""
        kept = sum(len(search.links) for search in self._searches.values())
        while len(self._searches) > MAX_SEARCHES or (kept > MAX_LINKS and len(self._searches) > 1):
            _, dropped = self._searches.popitem(last=False)
            kept -= len(dropped.links)


class _LinkNames:
    """The names of links; a name that was shown for a dataset stays that dataset's."""

    def __init__(self) -> None:
        self._names: dict[FoundAt, str] = {}
        self._taken: set[str] = set()

    def name_of(self, dataset: FoundAt, shown: str) -> str:
        """Return the name for a dataset, if possible the one that it is shown under."""
        name = self._names.get(dataset)
        if name is None:
            name = self._names[dataset] = next(
                each
                for each in _candidates(shown, dataset.uuid)
                if each not in self._taken and component_is_usable(each)
            )
            self._taken.add(name)
        return name


def _candidates(shown: str, uuid: UUID) -> Iterable[str]:
    """Yield names for a dataset: base URIs may have datasets of one name, and of one uuid."""
    yield from (shown, f"{shown}~{uuid[:8]}", f"{shown}~{uuid}")
    yield from (f"{uuid}~{number}" for number in itertools.count(2))


def _conditions_of(kind: str, name: str) -> Conditions:
    """Return what a name in a directory stands for; raises NotFound if that is nothing."""
    if kind == UUIDS:
        return Conditions(uuids=(UUID(name),))
    try:
        text = urllib.parse.unquote(name, errors="strict")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise NotFound(f"{name!r} cannot be searched for")
    return _CONDITIONS[kind](text)


def _text(path: Path) -> str:
    return "/".join((FIND_DIRECTORY, *path))
