"""Search plugin of dservercore: finds datasets, in SQLite with FTS5.

Works in the session of dservercore's own database and never commits: dservercore
commits once at the end of a registration or deletion, so that its table, the
search and the descriptions change together or not at all.

Filters as the reference plugin has them: base_uris, creator_usernames and uuids
match any of theirs, tags must all be there; free text matches any of its words,
stemmed, unless it has phrases in double quotes, which must all be there.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

from dservercore import SearchABC, ValidationError

from dserverfs.base.errors import UsageError
from dserverfs.server.database import sql
from dserverfs.server.database.dataset_check import check_dataset
from dserverfs.server.database.dataset_info import dates_of, readme_text, sizes_of

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS dserverfs_search (
        id INTEGER PRIMARY KEY,
        uri TEXT NOT NULL UNIQUE,
        uuid TEXT NOT NULL,
        base_uri TEXT NOT NULL,
        name TEXT NOT NULL,
        creator_username TEXT NOT NULL,
        frozen_at REAL NOT NULL,
        created_at REAL NOT NULL,
        number_of_items INTEGER NOT NULL,
        size_in_bytes INTEGER NOT NULL,
        tags TEXT NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS dserverfs_search_uuid ON dserverfs_search (uuid)",
    """CREATE TABLE IF NOT EXISTS dserverfs_search_tag (
        tag TEXT NOT NULL,
        id INTEGER NOT NULL,
        PRIMARY KEY (tag, id)
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS dserverfs_search_tag_id ON dserverfs_search_tag (id)",
    # Apart, so that a new tag does not have the relpaths of a million items read again.
    """CREATE VIRTUAL TABLE IF NOT EXISTS dserverfs_search_text
        USING fts5(content, tokenize = 'porter unicode61')""",
    """CREATE VIRTUAL TABLE IF NOT EXISTS dserverfs_search_items
        USING fts5(content, tokenize = 'porter unicode61')""",
)

_COLUMNS = (
    "uri, uuid, base_uri, name, creator_username, frozen_at, created_at,"
    " number_of_items, size_in_bytes, tags"
)
_MAX_PHRASES = 100  # each is a condition, of which SQLite takes 1,000 deep
_SORTABLE = ("base_uri", "created_at", "creator_username", "frozen_at", "name", "uri", "uuid")
_CONDITIONS = {
    "base_uris": "base_uri IN (SELECT value FROM json_each(:base_uris))",
    "creator_usernames": "creator_username IN (SELECT value FROM json_each(:creator_usernames))",
    "uuids": "uuid IN (SELECT value FROM json_each(:uuids))",
    "tags": "(SELECT count(*) FROM dserverfs_search_tag AS t WHERE t.id = dserverfs_search.id"
    " AND t.tag IN (SELECT value FROM json_each(:tags))) = json_array_length(:tags)",
}
_MATCHES = (
    "id IN (SELECT rowid FROM dserverfs_search_text WHERE dserverfs_search_text MATCH :{0}"
    " UNION SELECT rowid FROM dserverfs_search_items WHERE dserverfs_search_items MATCH :{0})"
)


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
        self.delete_dataset(dataset_info["uri"])
        frozen_at, created_at = dates_of(dataset_info)
        number_of_items, size_in_bytes = sizes_of(dataset_info)
        tags = sorted(set(dataset_info["tags"]))
        identity = sql.insert(
            "dserverfs_search",
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
        content = _searchable_text(dataset_info)
        sql.insert("dserverfs_search_text", rowid=identity, content=content)
        items = dataset_info["manifest"]["items"].values()
        relpaths = "\n".join(str(item.get("relpath", "")) for item in items)
        sql.insert("dserverfs_search_items", rowid=identity, content=relpaths)

    def update_dataset(
        self, uri: str, *, name: str, readme: str, annotations: Mapping[str, Any], tags: list[str]
    ) -> None:
        """Index a dataset's changed description; does nothing if it was not indexed."""
        statement = "SELECT id, uuid, creator_username FROM dserverfs_search WHERE uri = :uri"
        row = sql.execute(statement, uri=uri).mappings().first()
        if row is None:
            return
        changed = {"uri": uri, "name": name, "readme": readme, "annotations": annotations}
        content = _searchable_text({**row, **changed, "tags": tags})
        for statement in (
            "UPDATE dserverfs_search SET name = :name, tags = :tags WHERE id = :id",
            "UPDATE dserverfs_search_text SET content = :content WHERE rowid = :id",
            "DELETE FROM dserverfs_search_tag WHERE id = :id",
        ):
            sql.execute(statement, id=row["id"], name=name, tags=json.dumps(tags), content=content)
        _insert_tags(row["id"], tags)

    def delete_dataset(self, dataset_uri: str) -> None:
        """Forget a dataset; does nothing if it was not indexed."""
        statement = "SELECT id FROM dserverfs_search WHERE uri = :uri"
        identity = sql.value(statement, uri=dataset_uri)
        if identity is None:
            return
        for statement in (
            "DELETE FROM dserverfs_search_text WHERE rowid = :id",
            "DELETE FROM dserverfs_search_items WHERE rowid = :id",
            "DELETE FROM dserverfs_search_tag WHERE id = :id",
            "DELETE FROM dserverfs_search WHERE id = :id",
        ):
            sql.execute(statement, id=identity)

    def search(
        self,
        query: Mapping[str, Any],
        pagination_parameters: Any = None,
        sort_parameters: Any = None,
    ) -> list[dict[str, Any]]:
        """Return the datasets that match; `query` has the permitted base URIs, by dservercore."""
        conditions, values = _conditions(query)
        where = " AND ".join(conditions) or "1"
        statement = (
            f"SELECT {_COLUMNS} FROM dserverfs_search WHERE {where}"
            f" ORDER BY {_order(sort_parameters)}"
        )
        if pagination_parameters is not None:
            count = f"SELECT count(*) FROM dserverfs_search WHERE {where}"
            pagination_parameters.item_count = sql.value(count, **values)
            statement += " LIMIT :limit OFFSET :offset"
            values["limit"] = pagination_parameters.page_size
            values["offset"] = (pagination_parameters.page - 1) * pagination_parameters.page_size
        rows = sql.execute(statement, **values).mappings()
        return [_as_answer(row) for row in rows]


def _conditions(query: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    conditions = []
    values: dict[str, Any] = {}
    for name in ("base_uris", "creator_usernames", "uuids", "tags"):
        if name in query:
            values[name] = json.dumps(sorted({str(value) for value in query[name]}))
            conditions.append(_CONDITIONS[name])
    if "free_text" in query:
        for number, match in enumerate(fts_queries(query["free_text"])):
            values[f"match{number}"] = match
            conditions.append(_MATCHES.format(f"match{number}"))
        if "match0" not in values:
            conditions.append("0")
    return conditions, values


def fts_queries(free_text: str) -> list[str]:
    """Return the FTS5 queries that must all match; none if there is no word in `free_text`."""
    phrases = [phrase for phrase in re.findall(r'"([^"]*)"', free_text) if _has_word(phrase)]
    if phrases:
        return [f'"{phrase}"' for phrase in phrases[:_MAX_PHRASES]]
    words = [word for word in free_text.replace('"', " ").split() if _has_word(word)]
    return [" OR ".join(f'"{word}"' for word in words)] if words else []


def _has_word(part: str) -> bool:
    """Return whether the tokenizer finds anything in `part`; a NUL would end the query."""
    return "\0" not in part and any(character.isalnum() for character in part)


def _order(sort_parameters: Any) -> str:
    """Return the ORDER BY terms; the URI decides last, so that pages do not overlap."""
    order = {} if sort_parameters is None else sort_parameters.order
    terms = [
        f"{field} {'DESC' if direction < 0 else 'ASC'}"
        for field, direction in order.items()
        if field in _SORTABLE
    ]
    return ", ".join([*terms, "uri ASC"])


def _as_answer(row: Any) -> dict[str, Any]:
    """Return a row as dservercore wants it: naive datetimes in UTC, tags as a list."""
    dataset = dict(row)
    for name in ("frozen_at", "created_at"):
        moment = datetime.datetime.fromtimestamp(dataset[name], datetime.timezone.utc)
        dataset[name] = moment.replace(tzinfo=None)
    dataset["tags"] = json.loads(dataset["tags"])
    return dataset


def _insert_tags(identity: int, tags: list[str]) -> None:
    for tag in tags:
        sql.insert("dserverfs_search_tag", tag=tag, id=identity)


def _searchable_text(dataset_info: Mapping[str, Any]) -> str:
    """Return the text that free text finds beside relpaths: all that people gave the dataset."""
    parts = [
        dataset_info["name"],
        dataset_info["uri"],
        str(dataset_info["uuid"]),
        dataset_info["creator_username"],
        readme_text(dataset_info),
        json.dumps(dataset_info["annotations"], ensure_ascii=False),
        *dataset_info["tags"],
    ]
    return "\n".join(parts)
