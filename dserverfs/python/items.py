"""The places below `data` of a dataset: items and directories, by their paths."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from typing import Any

from dserverfs.base.errors import IntegrityError, NotFound
from dserverfs.base.items import ItemContent
from dserverfs.base.model import Dataset
from dserverfs.catalogue.items import IndexedItems
from dserverfs.catalogue.manifest_index import Row
from dserverfs.catalogue.refreshed import loaded
from dserverfs.python.sessions import Session


def items_of(session: Session, dataset: Dataset) -> IndexedItems:
    """Return the items of a dataset, whose manifest is loaded if need be; blocks."""
    return loaded(lambda: session.client.catalogue.items(dataset))


def row_at(items: IndexedItems, path: str) -> Row:
    """Return the item or directory at a path below `data`, whose top is ""; raises NotFound."""
    row = items.index.row(0)
    for name in path.split("/") if path else ():
        try:
            row = items.index.child(row.row, name)
        except NotFound:
            raise NotFound(f"{items.uri}: has no item {path!r}", uri=items.dataset.uri) from None
    return row


def overlays_of(session: Session, dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Return the overlays by name, each with values by items' identifiers; as old as a minute."""
    catalogue = session.client.catalogue
    return parsed(loaded(lambda: catalogue.metadata(dataset)).overlays)


def values_for(session: Session, dataset: Dataset, identifier: str) -> dict[str, Any]:
    """Return the values that the overlays have for an item, by their names."""
    overlays = overlays_of(session, dataset)
    return {name: each[identifier] for name, each in overlays.items() if identifier in each}


def parsed(texts: Mapping[str, bytes]) -> dict[str, Any]:
    """Return values that the server keeps as JSON, by their names."""
    return {name: json.loads(text) for name, text in texts.items()}


def content_at(session: Session, dataset: Dataset, path: str) -> ItemContent:
    """Return the content of the item at a path; raises NotFound, IsADirectoryError.

    Raises IntegrityError for an item whose entry in the manifest is not one that may be used.
    """
    items = items_of(session, dataset)
    row = row_at(items, path)
    if row.identifier is None:
        raise IsADirectoryError(errno.EISDIR, f"{items.uri}: {path!r} is a directory")
    content = items.content(row)
    if content.is_refused:
        raise IntegrityError(f"{content.label}: its entry in the manifest cannot be used")
    return content
