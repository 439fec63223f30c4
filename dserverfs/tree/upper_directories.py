"""The directories above the datasets of a mount: a backend, a bucket, prefixes, `.uuid`.

Used by the tree, in whose slot 0 they are. A directory is known by its path below the
mount; its number is its place among those that were asked for. No I/O: raises NotLoaded as
the catalogue does. For one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dserverfs.base.errors import PermissionDenied, StaleInode
from dserverfs.base.model import Dataset, DserverURI, split_base_uri
from dserverfs.catalogue.catalogue import UUID_DIRECTORY, Catalogue
from dserverfs.tree.attributes import MUTABLE_S, Attributes
from dserverfs.tree.number_journal import NOTHING, Known, NumberJournal, of_kind

TOP = 1  # the number of the root
UPPER = "upper"  # the kind of their numbers
SHOWN = "shown"  # of base URIs that were shown

Path = tuple[str, ...]


def parts_of(base_uris: Iterable[str]) -> list[Path]:
    """Return the names of the directories that lead to each base URI."""
    return [tuple(split_base_uri(base_uri)) for base_uri in base_uris]


def directories_below(path: Path, base_uris: list[Path]) -> list[str]:
    """Return the directories right below `path` that lead to base URIs."""
    depth = len(path)
    return sorted(
        {parts[depth] for parts in base_uris if len(parts) > depth and parts[:depth] == path}
    )


class UpperDirectories:
    """Those of a mount of `uri`."""

    def __init__(
        self,
        uri: DserverURI,
        catalogue: Catalogue,
        mounted_ns: int,
        journal: NumberJournal = NOTHING,
    ) -> None:
        """`mounted_ns` is the mtime of all; `journal` keeps their numbers for another daemon.

        And which base URIs were shown, of which that one may not know any more.
        """
        self._uri = uri
        self._note = journal.of(UPPER)
        self._note_shown = journal.of(SHOWN)
        self._catalogue = catalogue
        self._mounted_ns = mounted_ns
        self._paths: list[Path] = [()]  # place + TOP is the number
        self._places: dict[Path, int] = {(): 0}
        self._top: Path = ()
        if uri.base_uri is not None:
            self._top = tuple(split_base_uri(uri.base_uri))
        self._shown_base_uris: dict[Path, None] = {}

    def restore(self, known: Known) -> None:
        """Take the numbers that another daemon gave."""
        for _, path in sorted(of_kind(known, UPPER).items()):
            self.number(tuple(path))
        for _, parts in sorted(of_kind(known, SHOWN).items()):
            self._show(tuple(parts))

    def path(self, number: int) -> Path:
        """Return the path of a number; raises NotFound."""
        try:
            return self._paths[number - TOP]
        except IndexError as error:
            raise StaleInode(f"{self._uri}: no inode {number}") from error

    def number(self, path: Path) -> int:
        place = self._places.get(path)
        if place is None:
            place = self._places[path] = len(self._paths)
            self._paths.append(path)
            self._note(place, value=path)
        return place + TOP

    def path_of(self, base_uri: str) -> Path:
        """Return the path of a base URI's directory."""
        return tuple(split_base_uri(base_uri))[len(self._top) :]

    def base_uri(self, path: Path) -> str:
        """Return the base URI that a path leads to, if it is one."""
        backend, *rest = (*self._top, *path, "")
        return f"{backend}://{'/'.join(rest[:-1])}"

    def is_base_uri(self, path: Path) -> bool:
        return (*self._top, *path) in self._base_uris()

    def below(self, path: Path) -> list[str]:
        """Return the directories right below `path` that lead to base URIs."""
        if path and path[-1] == UUID_DIRECTORY:
            return []
        return directories_below((*self._top, *path), self._base_uris())

    def listed(self, path: Path) -> Mapping[str, Dataset]:
        """Return the datasets the server has in a base URI; raises PermissionDenied."""
        base_uri, user = self.base_uri(path), self._catalogue.user()
        if base_uri not in user.search_base_uris:
            raise PermissionDenied(f"{base_uri}: user {user.username} may not search it any more")
        return self._catalogue.datasets(base_uri, frozenset(self.below(path)))

    def attributes(self, path: Path) -> Attributes:
        writable = self.base_uri(path) in self._catalogue.user().register_base_uris
        permissions = 0o755 if writable else 0o555
        return Attributes(self.number(path), True, permissions, 0, self._mounted_ns, MUTABLE_S)

    def _base_uris(self) -> list[Path]:
        """Return each base URI that the user may search, or could since it was mounted.

        A base URI that was shown once stays there and refuses to be listed: if it were left
        out, or empty, a program that mirrors the mount would delete its copy.
        """
        for parts in parts_of(self._catalogue.user().search_base_uris):
            self._show(parts)
        return list(self._shown_base_uris)

    def _show(self, parts: Path) -> None:
        if parts not in self._shown_base_uris:
            self._note_shown(len(self._shown_base_uris), value=parts)
            self._shown_base_uris[parts] = None
