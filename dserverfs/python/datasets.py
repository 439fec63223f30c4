"""Datasets and items as Python objects: `dserverfs.open`, `create`.

Small handles on what this process' session knows of a server: they can be pickled, compared,
used by several threads and after a fork. What is asked of them is answered as in a mount; what
goes wrong is a DserverfsError, or an OSError where a file is read.
"""

from __future__ import annotations

import datetime
import io
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast, overload

from dserverfs.base import model
from dserverfs.base.errors import NotFound, UsageError
from dserverfs.base.items import ItemContent
from dserverfs.base.model import DserverURI, seconds_of
from dserverfs.base.printable import counted
from dserverfs.catalogue.manifest_index import Row
from dserverfs.catalogue.refreshed import loaded
from dserverfs.python import notebook
from dserverfs.python.item_file import ItemFile
from dserverfs.python.items import content_at, items_of, overlays_of, parsed, row_at, values_for
from dserverfs.python.places import moment
from dserverfs.python.sessions import Access, Session, session_of


class Dataset:
    """A frozen dataset of a dserver."""

    def __init__(self, access: Access, known: model.Dataset) -> None:
        """Made by `open` and `search`."""
        self._access = access
        self._known = known

    @property
    def uri(self) -> str:
        """The dserver URI, by which it is opened again."""
        return str(DserverURI(self._access.server, self._known.base_uri, self._known.uuid))

    @property
    def uuid(self) -> str:
        return self._known.uuid

    @property
    def name(self) -> str:
        return self._known.name

    @property
    def base_uri(self) -> str:
        """The base URI as the store names it, such as s3://bucket."""
        return self._known.base_uri

    @property
    def creator(self) -> str:
        """The user name of whoever made it."""
        return self._known.creator_username

    @property
    def created_at(self) -> datetime.datetime:
        return moment(self._known.created_at)

    @property
    def frozen_at(self) -> datetime.datetime:
        return moment(self._known.frozen_at)

    @property
    def number_of_items(self) -> int:
        return len(self.items)

    @property
    def size(self) -> int:
        """The size of all items together, in bytes."""
        return items_of(self._session, self._known).index.size_in_bytes

    @property
    def known_size(self) -> int | None:
        """The size as the server lists it; None if it does not. No request."""
        return self._known.size_in_bytes

    @property
    def items(self) -> Items:
        """The items by their relpaths."""
        return Items(self._access, self._known)

    def __getitem__(self, relpath: str) -> Item:
        return self.items[relpath]

    @property
    def readme(self) -> str:
        """The text of README.yml; as old as a minute."""
        catalogue = self._session.client.catalogue
        return loaded(lambda: catalogue.readme(self._known)).decode("utf-8", "replace")

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags, sorted; as old as a minute."""
        catalogue = self._session.client.catalogue
        return tuple(sorted(loaded(lambda: catalogue.metadata(self._known)).tags))

    @property
    def annotations(self) -> dict[str, Any]:
        """The annotations by name; as old as a minute."""
        catalogue = self._session.client.catalogue
        return parsed(loaded(lambda: catalogue.metadata(self._known)).annotations)

    @property
    def overlays(self) -> dict[str, dict[str, Any]]:
        """The overlays by name, each with values by items' identifiers."""
        return overlays_of(self._session, self._known)

    @property
    def _session(self) -> Session:
        return session_of(self._access)

    def __repr__(self) -> str:
        return f"<dserverfs.Dataset {self.name} {self.uri}>"

    def _repr_html_(self) -> str:
        return notebook.page(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dataset) and self.uri == other.uri

    def __hash__(self) -> int:
        return hash(self.uri)


class Items(Mapping[str, "Item"]):
    """The items of a dataset by their relpaths, in the order of directories; none is fetched."""

    def __init__(self, access: Access, dataset: model.Dataset) -> None:
        self._access = access
        self._dataset = dataset

    def __len__(self) -> int:
        return items_of(session_of(self._access), self._dataset).index.number_of_items

    def __iter__(self) -> Iterator[str]:
        for item in self.values():
            yield item.relpath

    def __getitem__(self, relpath: str) -> Item:
        """Return an item; raises KeyError."""
        items = items_of(session_of(self._access), self._dataset)
        try:
            row = row_at(items, relpath)
        except NotFound as error:
            raise KeyError(relpath) from error
        if row.identifier is None:
            raise KeyError(relpath)
        return self._item(relpath, row)

    def __contains__(self, relpath: object) -> bool:
        if not isinstance(relpath, str):
            return False
        try:
            self[relpath]
        except KeyError:
            return False
        return True

    def values(self) -> ValuesView[Item]:
        return _Values(self)

    def items(self) -> ItemsView[str, Item]:
        return _Pairs(self)

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'item')} of {self._dataset.name}>"

    def all(self) -> Iterator[Item]:
        """Yield all items, some thousand look-ups at a time."""
        items = items_of(session_of(self._access), self._dataset)
        for relpath, row in items.rows():
            yield self._item(relpath, row)

    def _item(self, relpath: str, row: Row) -> Item:
        return Item(self._access, self._dataset, relpath, row)


class _Values(ValuesView["Item"]):
    def __init__(self, items: Items) -> None:
        super().__init__(items)
        self._items = items

    def __iter__(self) -> Iterator[Item]:
        return self._items.all()


class _Pairs(ItemsView[str, "Item"]):
    def __init__(self, items: Items) -> None:
        super().__init__(items)
        self._items = items

    def __iter__(self) -> Iterator[tuple[str, Item]]:
        for item in self._items.all():
            yield item.relpath, item


class Item:
    """One file of a frozen dataset."""

    def __init__(self, access: Access, dataset: model.Dataset, relpath: str, row: Row) -> None:
        """Made by a dataset."""
        assert row.identifier is not None
        self._access = access
        self._dataset = dataset
        self._row = row
        self.relpath = relpath

    @property
    def identifier(self) -> str:
        """dtool's identifier: the SHA-1 of the relpath."""
        assert self._row.identifier is not None
        return self._row.identifier

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self._row.size_in_bytes

    @property
    def hash(self) -> str:
        """The hash of the manifest, in hex digits; MD5 as a rule."""
        return self._row.hash

    @property
    def modified_at(self) -> datetime.datetime:
        return moment(seconds_of(self._row.mtime_ns))

    @property
    def overlays(self) -> dict[str, Any]:
        """The values that overlays have for it, by their names."""
        return values_for(session_of(self._access), self._dataset, self.identifier)

    @overload
    def open(self, mode: Literal["rb", "br"] = "rb") -> ItemFile: ...

    @overload
    def open(
        self,
        mode: Literal["r", "rt", "tr"],
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.TextIOWrapper: ...

    def open(
        self,
        mode: str = "rb",
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> ItemFile | io.TextIOWrapper:
        """Return it as an open file, binary or as text ("r"); only what is read is fetched."""
        if mode not in ("r", "rt", "rb", "br", "tr"):
            raise UsageError(f"{self.relpath}: mode {mode!r}: an item of a frozen dataset is read")
        uri = DserverURI(self._access.server, self._dataset.base_uri, self._dataset.uuid)
        file = ItemFile(self._access, self._dataset, self.relpath, f"{uri}: {self.relpath}")
        if "b" in mode:
            return file
        # Every method that it calls is there, also read1, which a raw file need not have.
        buffered = cast(BinaryIO, file)
        return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)

    def read_bytes(self) -> bytes:
        """Return all of it."""
        with self.open() as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return all of it as text."""
        return self.read_bytes().decode(encoding)

    @property
    def path(self) -> Path:
        """The path of a local file with it: fetched, verified, read-only, shared with dtool."""
        session = session_of(self._access)
        items = items_of(session, self._dataset)
        item = items.item(self.relpath, self._row)
        return session.files(self._dataset).fetch(self._content(session), item)

    def _content(self, session: Session) -> ItemContent:
        return content_at(session, self._dataset, self.relpath)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return (
            f"<dserverfs.Item {self.relpath} of {self._dataset.name}, {counted(self.size, 'byte')}>"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Item) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[str, str, str]:
        return self._access.server, self._dataset.uri, self.relpath


def open_dataset(
    uri: str,
    *,
    verify: str = "complete",
    cache_dir: str | None = None,
    cache_size: int | None = None,
) -> Dataset:
    """Return the dataset of a URI: dserver://HOST/s3/BUCKET/UUID, .../NAME or dserver://HOST/UUID.

    Asks the server for it. `verify`, `cache_dir` and `cache_size` (bytes) are those of `dserverfs
    mount`; the cache keeps its size if none is given. Raises NotFound, PermissionDenied,
    NotAuthenticated, Unreachable, UsageError.
    """
    parsed = DserverURI.parse(str(uri))
    access = Access(parsed.server, verify, cache_dir, cache_size)
    return Dataset(access, session_of(access).dataset(parsed))
