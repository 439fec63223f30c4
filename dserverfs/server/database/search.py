"""Search plugin of dservercore: finds datasets, in SQLite and in PostgreSQL.

Works in the session of dservercore's own database and never commits: dservercore
commits once at the end of a registration or deletion, so that its table, the
search and the descriptions change together or not at all.

Filters as the reference plugin has them: base_uris, creator_usernames and uuids
match any of theirs, tags must all be there; free text matches any of its words,
stemmed, unless it has phrases in double quotes, which must all be there; see `full_text`.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from dservercore import SearchABC, ValidationError
from sqlalchemy import SelectBase, func, select, update

from dserverfs.base.errors import UsageError
from dserverfs.server.database import dialects, full_text, listing, locks, sql
from dserverfs.server.database.dataset_check import check_dataset
from dserverfs.server.database.dataset_info import dates_of, readme_text, sizes_of
from dserverfs.server.database.full_text import ITEMS_KIND, TEXT_KIND
from dserverfs.server.database.listing import Asked
from dserverfs.server.database.tables import search, search_tag

_MAX_TAGS_APART = 20
_COLUMN_OF = {
    "creator_usernames": search.c.creator_username,
    "uuids": search.c.uuid,
}


class Search(SearchABC):  # type: ignore[misc]
    """dservercore makes one per app; its state is all in the database."""

    def init_app(self, app: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def register_dataset(self, dataset_info: Mapping[str, Any]) -> None:
        """Index a dataset; replaces an earlier entry of its URI.

        Raises ValidationError, before anything is registered, for one that no upload
        would let in.
        """
        try:
            check_dataset(dataset_info)
        except UsageError as error:
            raise ValidationError(str(error)) from error
        self.delete_dataset(dataset_info["uri"])  # which holds its lock until the commit
        frozen_at, created_at = dates_of(dataset_info)
        number_of_items, size_in_bytes = sizes_of(dataset_info)
        tags = sorted(set(dataset_info["tags"]))
        identity = sql.insert_row(
            search,
            uri=dataset_info["uri"],
            uuid=str(dataset_info["uuid"]),
            base_uri=dataset_info["base_uri"],
            name=dataset_info["name"],
            creator_username=dataset_info["creator_username"],
            frozen_at=frozen_at,
            created_at=created_at,
            number_of_items=number_of_items,
            size_in_bytes=size_in_bytes,
            tags=json.dumps(tags),
        )
        _insert_tags(identity, tags)
        base_uri = dataset_info["base_uri"]
        full_text.add(identity, TEXT_KIND, base_uri, _searchable_text(dataset_info))
        items = dataset_info["manifest"]["items"].values()
        relpaths = (str(item.get("relpath", "")) for item in items)
        full_text.add(identity, ITEMS_KIND, base_uri, relpaths)

    def update_dataset(
        self, uri: str, *, name: str, readme: str, annotations: Mapping[str, Any], tags: list[str]
    ) -> None:
        """Index a dataset's changed description; does nothing if it was not indexed."""
        locks.hold_until_commit(locks.DATASET, uri)
        known = select(search.c.id, search.c.uuid, search.c.base_uri, search.c.creator_username)
        row = sql.execute(known.where(search.c.uri == uri)).mappings().first()
        if row is None:
            return
        identity = row["id"]
        values = {"name": name, "tags": json.dumps(tags)}
        sql.execute(update(search).where(search.c.id == identity).values(values))
        sql.delete_rows(search_tag, search_tag.c.id == identity)
        _insert_tags(identity, tags)
        changed = {"uri": uri, "name": name, "readme": readme, "annotations": annotations}
        full_text.remove(identity, TEXT_KIND)
        lines = _searchable_text({**row, **changed, "tags": tags})
        full_text.add(identity, TEXT_KIND, row["base_uri"], lines)

    def delete_dataset(self, dataset_uri: str) -> None:
        """Forget a dataset; does nothing if it was not indexed."""
        locks.hold_until_commit(locks.DATASET, dataset_uri)
        identity = sql.value(select(search.c.id).where(search.c.uri == dataset_uri))
        if identity is None:
            return
        full_text.remove(identity, TEXT_KIND, ITEMS_KIND)
        sql.delete_rows(search_tag, search_tag.c.id == identity)
        sql.delete_rows(search, search.c.id == identity)

    def search(
        self,
        query: Mapping[str, Any],
        pagination_parameters: Any = None,
        sort_parameters: Any = None,
    ) -> list[dict[str, Any]]:
        """Return the datasets that match; `query` has the permitted base URIs, by dservercore."""
        asked = _asked(query)
        fields = {} if sort_parameters is None else sort_parameters.order
        order = listing.order_of(fields, asked.base_uris)
        if pagination_parameters is None:
            return [_as_answer(row) for row in listing.all_of(asked, order)]
        limit = pagination_parameters.page_size
        offset = (pagination_parameters.page - 1) * limit
        page = listing.page_of(asked, order, limit, offset)
        pagination_parameters.item_count = page.total
        return [_as_answer(row) for row in page.rows]


def _asked(query: Mapping[str, Any]) -> Asked:
    base_uris = {str(each) for each in query["base_uris"]}
    dialect_name = sql.dialect_name()
    conditions = [
        dialects.is_any_of(dialect_name, column, {str(value) for value in query[name]})
        for name, column in _COLUMN_OF.items()
        if name in query
    ]
    selections = []
    if "tags" in query:
        selections += _with_tags({str(value) for value in query["tags"]}, dialect_name)
    if "free_text" in query:
        selections += full_text.selections(full_text.question_of(query["free_text"]), base_uris)
    return Asked(base_uris, listing.are_all(base_uris), conditions, selections)


def _with_tags(tags: set[str], dialect_name: str) -> list[SelectBase]:
    """Return selections of ids of datasets: those that have all these tags are in all of them.

    One for each of a few: so the database may begin with the rarest, or with what the user may see.
    """
    if len(tags) <= _MAX_TAGS_APART:
        tagged = [dialects.is_any_of(dialect_name, search_tag.c.tag, {tag}) for tag in sorted(tags)]
        return [select(search_tag.c.id).where(each) for each in tagged]
    has_any = dialects.is_any_of(dialect_name, search_tag.c.tag, tags)
    has_all = select(search_tag.c.id).where(has_any).group_by(search_tag.c.id)
    return [has_all.having(func.count() == len(tags))]


def _as_answer(row: Any) -> dict[str, Any]:
    """Return a row as dservercore wants it: naive datetimes in UTC, tags as a list."""
    dataset = {name: row[name] for name in listing.NAMES}
    for name in ("frozen_at", "created_at"):
        moment = datetime.datetime.fromtimestamp(dataset[name], datetime.timezone.utc)
        dataset[name] = moment.replace(tzinfo=None)
    dataset["tags"] = json.loads(dataset["tags"])
    return dataset


def _insert_tags(identity: int, tags: list[str]) -> None:
    for tag in tags:
        sql.insert_row(search_tag, tag=tag, id=identity)


def _searchable_text(dataset_info: Mapping[str, Any]) -> list[str]:
    """Return the texts that free text finds beside relpaths: all that people gave the dataset."""
    return [
        dataset_info["name"],
        dataset_info["uri"],
        str(dataset_info["uuid"]),
        dataset_info["creator_username"],
        readme_text(dataset_info),
        json.dumps(dataset_info["annotations"], ensure_ascii=False),
        *dataset_info["tags"],
    ]
