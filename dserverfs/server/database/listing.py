"""Pages of datasets in an order, and how many there are on all pages: one statement for both.

Used by `search`. The page is chosen by keys and terms of the order alone, of which indexes
have all that is usual; then its rows are read. There are three ways to choose it:

    a few base URIs, nothing else asked    PostgreSQL scans an index of each in order, as far as
                                           the end of the page, and sorts what it has then
    nothing else asked                     the database chooses: it scans all in order, and
                                           leaves out what the user may not see, or sorts
    anything else                          what matches is found once, then counted and ordered

A user who may see all is not asked for base URIs, and a word that so many datasets have is
counted apart from the page: the first datasets in the order have it as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from dservercore.sql_models import BaseURI
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    FromClause,
    RowMapping,
    Select,
    SelectBase,
    Subquery,
    distinct,
    func,
    literal,
    select,
    true,
)

from dserverfs.server.database import dialects, sql
from dserverfs.server.database.tables import POSTGRESQL, TEXT, search

COLUMNS = (
    *(search.c.uri, search.c.uuid, search.c.base_uri, search.c.name, search.c.creator_username),
    *(search.c.frozen_at, search.c.created_at, search.c.number_of_items),
    *(search.c.size_in_bytes, search.c.tags),
)
NAMES = tuple(column.name for column in COLUMNS)
_SORTABLE = ("base_uri", "created_at", "creator_username", "frozen_at", "name", "uri", "uuid")
MAX_MERGED = 64  # base URIs; of each, datasets of a page and of all before it are looked at


class Page(NamedTuple):
    """Datasets of a page, and how many all pages have."""

    rows: Sequence[RowMapping]
    total: int


class Asked(NamedTuple):
    """What is asked for: the datasets of these base URIs that keep all the conditions."""

    base_uris: Collection[str]
    may_see_all: bool  # no dataset is in another base URI
    conditions: Sequence[ColumnElement[bool]]
    selections: Sequence[SelectBase]  # of ids, each without another column

    def where(self) -> list[ColumnElement[bool]]:
        visible = [] if self.may_see_all else [in_any(self.base_uris)]
        return [*visible, *self.conditions, *(search.c.id.in_(each) for each in self.selections)]


class Term(NamedTuple):
    """A column to order by."""

    name: str
    is_descending: bool

    def of(self, source: FromClause) -> ColumnElement[Any]:
        column = source.c[self.name]
        return column.desc() if self.is_descending else column.asc()


def order_of(fields: Mapping[str, int], base_uris: Collection[str]) -> list[Term]:
    """Return the terms to order by; the URI decides last, so that pages do not overlap.

    `fields` has a negative number for what descends. Within one base URI the order of uuids is
    that of URIs, of which an index is made.
    """
    terms = [Term(name, number < 0) for name, number in fields.items() if name in _SORTABLE]
    if len(base_uris) == 1:
        terms = [
            Term("uri", term.is_descending) if term.name == "uuid" else term
            for term in terms
            if term.name != "base_uri"
        ]
    terms.append(Term("uri", False))
    decided = next(number for number, term in enumerate(terms) if term.name == "uri")
    return terms[: decided + 1]


def are_all(base_uris: Collection[str]) -> bool:
    """Return whether no dataset is in another base URI; not asked of a few."""
    if len(base_uris) <= MAX_MERGED:
        return False
    count: int = sql.value(select(func.count()).select_from(BaseURI))
    return len(base_uris) == count


def page_of(asked: Asked, order: Sequence[Term], limit: int, offset: int) -> Page:
    """Return a page of the datasets that are asked for."""
    source, total = _found(asked, order, offset + limit)
    chosen = select(source.c.uri).order_by(*(term.of(source) for term in order))
    page = chosen.limit(limit).offset(offset).subquery("page")
    statement = (
        select(*COLUMNS, total.scalar_subquery().label("total"))
        .join(page, page.c.uri == search.c.uri)
        .order_by(*(term.of(search) for term in order))
    )
    rows = sql.execute(statement).mappings().all()
    if not rows:
        return Page([], sql.value(select(total.scalar_subquery())) if offset else 0)
    # A base URI that is new since the rights were read is not among them.
    visible = [row for row in rows if row["base_uri"] in asked.base_uris]
    return Page(visible, rows[0]["total"])


def all_of(asked: Asked, order: Sequence[Term]) -> Sequence[RowMapping]:
    """Return all datasets that `page_of` has pages of."""
    found = select(*COLUMNS).where(*asked.where()).order_by(*(term.of(search) for term in order))
    rows: Sequence[RowMapping] = sql.execute(found).mappings().all()
    return [row for row in rows if row["base_uri"] in asked.base_uris]


def _found(asked: Asked, order: Sequence[Term], end: int) -> tuple[FromClause, SelectBase]:
    """Return the keys of what is asked for, and the statement that counts it."""
    where = asked.where()
    count = select(func.count())
    if asked.may_see_all and not asked.conditions and len(asked.selections) == 1:
        selected = asked.selections[0].subquery("selected")
        alone = select(func.count(distinct(selected.c[0])))
        return _keys(*where, order=order).subquery("found"), alone
    if asked.conditions or asked.selections:
        matching = _keys(*where, order=order).cte("matching")
        return matching, count.select_from(matching)
    count = count.select_from(search).where(*where)
    if 1 < len(asked.base_uris) <= MAX_MERGED and sql.dialect_name() == POSTGRESQL:
        return _first_of_each(asked.base_uris, order, end), count
    return _keys(*where, order=order).subquery("found"), count


def in_any(base_uris: Collection[str]) -> ColumnElement[bool]:
    """Return the condition that a dataset is in one of the base URIs."""
    if len(base_uris) == 1:  # whose index then has the order
        return search.c.base_uri == next(iter(base_uris))
    return dialects.is_any_of(sql.dialect_name(), search.c.base_uri, base_uris)


def _keys(*conditions: ColumnElement[bool], order: Sequence[Term]) -> Select[Any]:
    """Return a selection of URIs with what the order is made of."""
    names = dict.fromkeys(term.name for term in order)
    return select(*(search.c[name] for name in names)).where(*conditions)


def _first_of_each(base_uris: Collection[str], order: Sequence[Term], end: int) -> Subquery:
    """Return the keys that may be among the first `end` of all: so many of each base URI."""
    texts = literal(sorted(base_uris), ARRAY(TEXT))
    each = func.unnest(texts).table_valued("base_uri", name="each").render_derived()
    of_each = _keys(search.c.base_uri == each.c.base_uri, order=order)
    first = of_each.order_by(*(term.of(search) for term in order)).limit(end).lateral("first")
    return select(*first.c).select_from(each.join(first, true())).subquery("found")
