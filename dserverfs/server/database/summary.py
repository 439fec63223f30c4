"""What a user's datasets are together: how many, and how large, of each creator, place and tag.

Counted by the database, in one statement: a row of each dataset would be in the memory of the
server else.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    SelectBase,
    func,
    literal,
    select,
    true,
    union_all,
)

from dserverfs.server.database import dialects, listing, sql
from dserverfs.server.database.tables import search

_CREATOR, _BASE_URI, _TAG = "creator", "base_uri", "tag"
_HALF = 1 << 32  # SQLite adds up to 64 bits: so the halves of sizes are added up apart


def summary_of(base_uris: Collection[str]) -> dict[str, Any]:
    """Return the answer of dservercore's route about the datasets of these base URIs."""
    counts: dict[str, dict[str, int]] = {_CREATOR: {}, _BASE_URI: {}, _TAG: {}}
    sizes: dict[str, dict[str, int]] = {_CREATOR: {}, _BASE_URI: {}, _TAG: {}}
    for kind, value, count, high, low in sql.execute(_counted(base_uris)) if base_uris else ():
        counts[kind][value] = int(count)
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
    """Return the statement: all that there is is read once, and most of it is alike."""
    alike = (search.c.base_uri, search.c.creator_username, search.c.tags)
    size = search.c.size_in_bytes
    groups = (
        select(
            *alike,
            func.count().label("count"),
            func.sum(size // _HALF).label("high"),
            func.sum(size % _HALF).label("low"),
        )
        .where(listing.in_any(base_uris))
        .group_by(*alike)
        .cte("groups")
    )
    tags = dialects.elements(sql.dialect_name(), groups.c.tags)
    return union_all(
        _per(_CREATOR, groups.c.creator_username, groups, groups),
        _per(_BASE_URI, groups.c.base_uri, groups, groups),
        _per(_TAG, tags.c.value, groups, groups.join(tags, true())),
    )


def _per(kind: str, column: ColumnElement[str], groups: CTE, source: FromClause) -> SelectBase:
    """Return a selection of the values of a column, each with its datasets and their size."""
    sums = (func.sum(groups.c[name]) for name in ("count", "high", "low"))
    return select(literal(kind), column, *sums).select_from(source).group_by(column)
