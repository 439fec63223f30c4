"""A copy of all that a server has in SQLite, in a PostgreSQL: users, rights, datasets, all tables.

Used by `dserverfs serve copy-database`, while no server of the data directory runs. The copy is
made a few rows at a time: one that was broken off is carried on with, and what has changed since
is changed. Until it is whole a comment on the table of versions names the data directory that it is
of; servers refuse it as long. A PostgreSQL that holds anything else is left alone. Needs the
app context of the PostgreSQL. The source is only read.

Words for full text are made of the texts that FTS5 has, of datasets that lack them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from dservercore.extensions import sql_db
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Table,
    delete,
    func,
    inspect,
    literal_column,
    select,
    text,
    tuple_,
)

from dserverfs.base.errors import DserverfsError, UsageError
from dserverfs.server.database import full_text, sql, tables
from dserverfs.server.database.full_text import ITEMS_KIND, TEXT_KIND, words
from dserverfs.server.database.upgrading import VERSION_TABLE

_ROWS = 50  # read at once: a manifest may have megabytes
_FTS5 = {TEXT_KIND: "dserverfs_search_text", ITEMS_KIND: "dserverfs_search_items"}
_KEYS_AT_ONCE = 500

OnTable = Callable[[str, int, int], None]  # name, rows done, rows of all


class Copied(NamedTuple):
    users: int
    base_uris: int
    datasets: int


def begin(source: str, shown: str) -> None:
    """Note whose copy the PostgreSQL is from now on; raises UsageError if it has anything else."""
    known = _mark()
    if known is None:
        for table in _tables():
            if sql.value(select(func.count()).select_from(table)):
                raise UsageError(
                    f"database {shown} has {table.name} entries of a server; make an empty one"
                )
        _set_mark(source)
    elif known != source:
        raise UsageError(
            f"database {shown} is an unfinished copy of another data directory; make an empty one"
        )


def finish() -> None:
    """Note that the copy is whole."""
    _set_mark(None)


def require_whole(shown: str) -> None:
    """Raise UsageError for a copy that is not finished."""
    if sql.dialect_name() == tables.POSTGRESQL and _mark() is not None:
        raise UsageError(
            f"database {shown} is a copy that is not finished:"
            " run dserverfs serve copy-database again"
        )


def copy(source: Connection, on_table: OnTable) -> Copied:
    """Have the PostgreSQL hold what the source holds; raises DserverfsError if it then does not."""
    everything = _tables()
    for table in reversed(everything):
        _delete_what_is_gone(source, table)
    for table in everything:
        _copy_rows(source, table, on_table)
    _make_words(source, on_table)
    for table in everything:
        _require_equal_counts(source, table)
        _set_sequence(source, table)
    sql_db.session.commit()
    names = ("user", "base_uri", "dataset")
    return Copied(*(_count(source, sql_db.metadata.tables[name]) for name in names))


def _tables() -> list[Table]:
    """Return all tables, those first that others refer to."""
    return [*sql_db.metadata.sorted_tables, *tables.metadata.sorted_tables]


def _delete_what_is_gone(source: Connection, table: Table) -> None:
    key = list(table.primary_key)
    kept = {tuple(row) for row in source.execute(select(*key))}
    gone = [found for row in sql.execute(select(*key)) if (found := tuple(row)) not in kept]
    for some in _in_pieces(gone):
        if table is tables.search:
            sql.delete_rows(words, words.c.id.in_([identity for (identity,) in some]))
        sql.execute(delete(table).where(tuple_(*key).in_(some)))
    sql_db.session.commit()


def _copy_rows(source: Connection, table: Table, on_table: OnTable) -> None:
    key = list(table.primary_key)
    total, done = _count(source, table), 0
    rows = source.execution_options(stream_results=True).execute(select(table))
    for some in rows.partitions(_ROWS):
        keys = [_key(row, table) for row in some]
        found = sql.execute(select(table).where(tuple_(*key).in_(keys)))
        there = {_key(row, table): row for row in found}
        changed = [row for row in some if there.get(_key(row, table)) != row]
        for row in changed:
            sql.replace_row(table, **row._mapping)
        _forget_words(table, changed)
        sql_db.session.commit()
        done += len(some)
        on_table(table.name, done, total)


def _forget_words(table: Table, changed: Sequence[Row[Any]]) -> None:
    """Have words made anew of datasets that have changed since an earlier run."""
    if table not in (tables.search, tables.description) or not changed:
        return
    uris = [row._mapping["uri"] for row in changed]
    ids = select(tables.search.c.id).where(tables.search.c.uri.in_(uris))
    sql.delete_rows(words, words.c.id.in_(ids))


def _make_words(source: Connection, on_table: OnTable) -> None:
    base_uris = {
        identity: base_uri
        for identity, base_uri in source.execute(
            select(tables.search.c.id, tables.search.c.base_uri)
        )
    }
    for kind, name in _FTS5.items():
        has_words = set(sql.execute(select(words.c.id).where(words.c.kind == kind)).scalars())
        missing = sorted(base_uris.keys() - has_words)
        for number, identity in enumerate(missing, 1):
            statement = text(f"SELECT content FROM {name} WHERE rowid = :id")
            content = source.execute(statement, {"id": identity}).scalar()
            if content is not None:
                full_text.add(identity, kind, base_uris[identity], content.split("\n"))
            if number % _ROWS == 0:
                sql_db.session.commit()
                on_table("words", number, len(missing))
        sql_db.session.commit()


def _require_equal_counts(source: Connection, table: Table) -> None:
    here, there = _count(source, table), sql.value(select(func.count()).select_from(table))
    if here != there:
        raise DserverfsError(
            f"{table.name} has {here} rows in SQLite and {there} in PostgreSQL;"
            " does a server use one of them? Stop it, and run this again"
        )


def _set_sequence(source: Connection, table: Table) -> None:
    """Have PostgreSQL number new rows behind those that SQLite ever had."""
    column = table.autoincrement_column
    if column is None:
        return
    last = source.execute(select(func.max(column))).scalar() or 0
    if inspect(source).has_table("sqlite_sequence"):
        statement = text("SELECT seq FROM sqlite_sequence WHERE name = :name")
        last = max(last, source.execute(statement, {"name": table.name}).scalar() or 0)
    if last:
        quoted = f'"{table.name}"'
        sql.execute(select(func.setval(func.pg_get_serial_sequence(quoted, column.name), last)))


def _count(connection: Connection, table: Table) -> int:
    number: int = connection.execute(select(func.count()).select_from(table)).scalar_one()
    return number


def _key(row: Row[Any], table: Table) -> tuple[Any, ...]:
    return tuple(row._mapping[column.name] for column in table.primary_key)


def _in_pieces(keys: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    for begin_at in range(0, len(keys), _KEYS_AT_ONCE):
        yield keys[begin_at : begin_at + _KEYS_AT_ONCE]


_MARKED: ColumnElement[Any] = literal_column(f"'{VERSION_TABLE}'::regclass")


def _mark() -> str | None:
    found: str | None = sql.value(select(func.obj_description(_MARKED, "pg_class")))
    return found


def _set_mark(source: str | None) -> None:
    """`source` is of letters and digits: a comment takes no parameter."""
    said = "NULL" if source is None else f"'{source}'"
    sql.execute(text(f"COMMENT ON TABLE {VERSION_TABLE} IS {said}"))
    sql_db.session.commit()
