"""The places of the file system that programs see, by their paths, and what they are.

    HOST[:PORT]                        a server
    HOST/s3/BUCKET[/...]               a base URI, with the datasets by name
    HOST/s3/BUCKET/DATASET             a dataset, by name or uuid
    HOST/s3/BUCKET/DATASET/README.yml
    HOST/s3/BUCKET/DATASET/data/...    items

Used by the file system for fsspec. Raises DserverfsError.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dserverfs.base.dtool_layout import DATA, METADATA, README
from dserverfs.base.errors import NotFound, UsageError
from dserverfs.base.limits import relpath_is_usable
from dserverfs.base.model import Dataset, DserverURI, seconds_of, split_base_uri
from dserverfs.broker.proto import ProtoDataset
from dserverfs.catalogue.manifest_index import Row
from dserverfs.catalogue.refreshed import loaded
from dserverfs.python.items import items_of, row_at
from dserverfs.python.sessions import Access, Session, session_of

Info = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A path, taken apart. At most one of `dataset` and `new` is there."""

    path: str
    access: Access
    base_uri: str | None = None  # None: of a server, or between one and its base URIs
    dataset: Dataset | None = None
    new: ProtoDataset | None = None  # that this process makes
    inside: str = ""  # the path in the dataset

    @property
    def session(self) -> Session:
        return session_of(self.access)

    @property
    def item(self) -> str | None:
        """The path below data/ of a frozen dataset, "" for that itself; None of other places."""
        if self.dataset is None or not (self.inside + "/").startswith(f"{DATA}/"):
            return None
        return self.inside[len(DATA) + 1 :]

    @property
    def local(self) -> Path:
        """The file or directory of a new dataset; raises UsageError for one that cannot be."""
        assert self.new is not None
        if self.inside and not relpath_is_usable(self.inside):
            raise UsageError(f"{self.path}: cannot be the path of a file in a dataset")
        return self.new.staged.tree / self.inside


def locate(path: str, access_of: Callable[[str], Access]) -> Place:
    """Return the place of a path; asks the server for what is not known.

    Raises NotFound if there is no such server's base URI or dataset; not for what would be in a
    dataset.
    """
    host, *parts = path.split("/")
    if not host:
        raise UsageError(f"{path!r}: names no server; expected dserver://HOST[:PORT]/s3/BUCKET/...")
    if any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{path}: has an empty or relative component")
    access = access_of(DserverURI.parse(f"dserver://{host}").server)
    base = base_uri_of(session_of(access), parts)
    if base is None:
        return Place(path, access)
    rest = parts[len(split_base_uri(base)) :]
    if not rest:
        return Place(path, access, base)
    name, inside = rest[0], "/".join(rest[1:])
    session = session_of(access)
    new = session.new_named(base, name)
    if new is not None:
        return Place(path, access, base, new=new, inside=inside)
    return Place(path, access, base, session.named(base, name), inside=inside)


def base_uri_of(session: Session, parts: list[str]) -> str | None:
    """Return the base URI that a path is in; None for one above; raises NotFound for another."""
    known = {base: split_base_uri(base) for base in session.base_uris()}
    inside = [base for base, its in known.items() if its == parts[: len(its)]]
    if inside:
        return max(inside, key=len)
    if any(parts == its[: len(parts)] for its in known.values()):
        return None
    raise NotFound(f"{session.server}/{'/'.join(parts)}: is in no base URI that you may search")


def info_of(place: Place) -> Info:
    """Return what fsspec calls the info of a place; raises NotFound."""
    if place.new is not None:
        return _info_of_local(place.path, place.local)
    if place.dataset is None:
        return _directory(place.path)
    if place.item is not None:
        items = items_of(place.session, place.dataset)
        return _info_of_row(place.path, row_at(items, place.item), items.index.hash_function)
    if place.inside == "":
        return {**_directory(place.path), **_facts(place)}
    if place.inside == README:
        return _info_of_readme(place, place.path)
    raise NotFound(f"{place.path}: is not there")


def entries_of(place: Place) -> Iterator[Info]:
    """Yield the infos of what is in a directory; raises NotFound, and UsageError for a file."""
    if place.new is not None:
        with os.scandir(place.local) as entries:
            for name in sorted(entry.name for entry in entries):
                if f"{place.inside}/{name}" == f"/{METADATA}":
                    continue  # dtool's own
                yield _info_of_local(f"{place.path}/{name}", place.local / name)
    elif place.base_uri is None:
        yield from _upper(place)
    elif place.dataset is None:
        yield from _datasets(place)
    elif place.item is not None:
        yield from _rows(place, place.item)
    elif place.inside == "":
        yield _info_of_readme(place, f"{place.path}/{README}")
        yield _directory(f"{place.path}/{DATA}")
    else:
        info_of(place)
        raise UsageError(f"{place.path}: is not a directory")


def readme_of(place: Place) -> bytes:
    """Return the content of README.yml of a frozen dataset."""
    dataset, catalogue = place.dataset, place.session.client.catalogue
    assert dataset is not None
    return loaded(lambda: catalogue.readme(dataset))


def moment(seconds: float) -> datetime.datetime:
    """Return a time of a server as Python has it; dates before 1970 too."""
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return epoch + datetime.timedelta(seconds=seconds)


def _upper(place: Place) -> Iterator[Info]:
    parts = place.path.split("/")[1:]
    names = set()
    for base_uri in place.session.base_uris():
        its = split_base_uri(base_uri)
        if its[: len(parts)] == parts:
            names.add(its[len(parts)])
    yield from (_directory(f"{place.path}/{name}") for name in sorted(names))


def _datasets(place: Place) -> Iterator[Info]:
    assert place.base_uri is not None
    for name, dataset in sorted(place.session.datasets(place.base_uri).items()):
        path = f"{place.path}/{name}"
        yield {**_directory(path), **_facts(Place(path, place.access, place.base_uri, dataset))}
    for each in place.session.new():
        if each.staged.record.base_uri == place.base_uri:
            yield _directory(f"{place.path}/{each.staged.record.name}")


def _rows(place: Place, path: str) -> Iterator[Info]:
    assert place.dataset is not None
    items = items_of(place.session, place.dataset)
    row = row_at(items, path)
    if row.identifier is not None:
        raise UsageError(f"{place.path}: is not a directory")
    for child in items.index.children(row, 0, row.children):
        yield _info_of_row(f"{place.path}/{child.name}", child, items.index.hash_function)


def _info_of_row(path: str, row: Row, hash_function: str) -> Info:
    if row.identifier is None:
        return _directory(path)
    return {
        "name": path,
        "type": "file",
        "size": row.size_in_bytes,
        "identifier": row.identifier,
        "hash": row.hash,
        "hash_function": hash_function,
        "mtime": seconds_of(row.mtime_ns),
    }


def _info_of_readme(place: Place, path: str) -> Info:
    return {"name": path, "type": "file", "size": len(readme_of(place))}


def _info_of_local(path: str, local: Path) -> Info:
    try:
        status = local.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{path}: is not there") from None
    if local.is_dir():
        return _directory(path)
    return {"name": path, "type": "file", "size": status.st_size, "mtime": status.st_mtime}


def _facts(place: Place) -> Info:
    dataset = place.dataset
    assert dataset is not None
    return {
        "uuid": dataset.uuid,
        "uri": str(DserverURI(place.access.server, dataset.base_uri, dataset.uuid)),
        "creator": dataset.creator_username,
        "created": moment(dataset.frozen_at),
    }


def _directory(path: str) -> Info:
    return {"name": path, "type": "directory", "size": 0}
