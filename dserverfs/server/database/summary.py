"""What a user's datasets are together: how many, and how large, of each creator, place and tag.

Counted by the database, in one statement: a row of each dataset would be in the memory of the
server else.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, FromClause, SelectBase, func, literal, select, true, union_all

from dserverfs.server.database import dialects, listing, sql
from dserverfs.server.database.tables import search

_CREATOR, _BASE_URI, _TAG = "creator", "base_uri", "tag"
_HALF = 1 << 32  # SQLite adds up to 64 bits: so the halves of sizes are added up apart


def summary_of(base_uris: Collection[str]) -> dict[str, Any]:
    """Return the answer of dservercore's route about the datasets of these base URIs."""
    counts: dict[str, dict[str, int]] = {_CREATOR: {}, _BASE_URI: {}, _TAG: {}}
    sizes: dict[str, dict[str, int]] = {_CREATOR: {}, _BASE_URI: {}, _TAG: {}}
    for kind, value, count, high, low in sql.execute(_counted(base_uris)) if base_uris else ():
        counts[kind][value] = count
        sizes[kind][value] = int(high) * _HALF + int(low)
    return {
        "number_of_datasets": sum(counts[_BASE_URI].values()),
        "total_size_in_bytes": sum(sizes[_BASE_URI].values()),
        "creator_usernames": sorted(counts[_CREATOR]),
        "base_uris": sorted(counts[_BASE_URI]),
        "datasets_per_creator": counts[_CREATOR],
        "size_in_bytes_per_creator": sizes[_CREATOR],
        "datasets_per_base_uri": counts[_BASE_URI],
        "size_in_bytes_per_base_uri": sizes[_BASE_URI],
        "tags": sorted(counts[_TAG]),
        "datasets_per_tag": counts[_TAG],
        "size_in_bytes_per_tag": sizes[_TAG],
    }


def _counted(base_uris: Collection[str]) -> Any:
    columns = (search.c.base_uri, search.c.creator_username, search.c.size_in_bytes, search.c.tags)
    visible = select(*columns).where(listing.in_any(base_uris)).subquery("visible")
    # A third of the time of a join with the table of tags.
    tags = dialects.elements(sql.dialect_name(), visible.c.tags)
    tagged = visible.join(tags, true())
    return union_all(
        _per(_CREATOR, visible.c.creator_username, visible.c.size_in_bytes, visible),
        _per(_BASE_URI, visible.c.base_uri, visible.c.size_in_bytes, visible),
        _per(_TAG, tags.c.value, visible.c.size_in_bytes, tagged),
    )


def _per(
    kind: str, column: ColumnElement[str], size: ColumnElement[int], source: FromClause
) -> SelectBase:
    """Return a selection of the values of a column, each with its datasets and their size."""
    halves = (func.sum(size // _HALF), func.sum(size % _HALF))
    return select(literal(kind), column, func.count(), *halves).select_from(source).group_by(column)
