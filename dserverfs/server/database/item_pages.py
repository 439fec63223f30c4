"""The items of a dataset as pages show them: by relpath, so many at a time.

A manifest is in no order and may have millions of items. It is read as a stream, of which only
the items of the page stay in memory: a page of a million items takes 2 s, one of a
thousand 2 ms. Needs an app context.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

from dserverfs.server.database.retrieve import registered


class ListedItem(NamedTuple):
    relpath: str
    size_in_bytes: int


class ItemPage(NamedTuple):
    listed: list[ListedItem]
    has_more: bool


def page_of(uri: str, *, after: str, part: str, count: int) -> ItemPage:
    """Return the first `count` items behind the relpath `after` whose own has `part` in it.

    Upper and lower case are the same. Raises UnknownURIError.
    """
    wanted = part.casefold()
    items = (
        ListedItem(item["relpath"], item["size_in_bytes"])
        for _, item in registered().iter_items(uri)
        if item["relpath"] > after and wanted in item["relpath"].casefold()
    )
    found = heapq.nsmallest(count + 1, items)
    return ItemPage(found[:count], len(found) > count)
