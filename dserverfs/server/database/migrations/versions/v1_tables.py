"""The tables of version 0.1, and those that came before there were steps.

A data directory of these versions has some or all of them. In PostgreSQL text is ordered by its
bytes, as in SQLite, in dservercore's tables as well: they are empty here.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from dservercore import sql_models  # noqa: F401 - whose tables these are
from dservercore.extensions import sql_db
from sqlalchemy.dialects.postgresql import ARRAY

revision = "1"
down_revision = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_MOMENT: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")
_TOKENIZER = "tokenize = 'porter unicode61'"


def upgrade() -> None:
    connection = op.get_bind()
    sql_db.metadata.create_all(connection)
    for name, *columns in _TABLES:
        options = _OPTIONS.get(name, {})
        op.create_table(name, *(each() for each in columns), if_not_exists=True, **options)
    for name, table, columns in (
        ("dserverfs_search_uuid", "dserverfs_search", ["uuid"]),
        ("dserverfs_search_tag_id", "dserverfs_search_tag", ["id"]),
        ("dserverfs_publication_uri", "dserverfs_publication", ["uri"]),
        ("dserverfs_session_username", "dserverfs_session", ["username"]),
    ):
        op.create_index(name, table, columns, if_not_exists=True)
    if connection.dialect.name == "sqlite":
        for name in ("dserverfs_search_text", "dserverfs_search_items"):
            op.execute(
                f"CREATE VIRTUAL TABLE IF NOT EXISTS {name} USING fts5(content, {_TOKENIZER})"
            )
    else:
        _make_for_postgresql()


def _make_for_postgresql() -> None:
    op.create_table(
        "dserverfs_search_words",
        _number("id", primary_key=True, autoincrement=False)(),
        sa.Column("kind", sa.SmallInteger(), primary_key=True, autoincrement=False),
        sa.Column("words", ARRAY(_TEXT), nullable=False),
        sa.Column("in_order", sa.Text(), nullable=False),
    )
    op.create_index(
        "dserverfs_search_words_words", "dserverfs_search_words", ["words"], postgresql_using="gin"
    )
    for table, column, length in (
        ("user", "username", 64),
        ("base_uri", "base_uri", 255),
        ("dataset", "uri", 255),
        ("dataset", "uuid", 36),
        ("dataset", "name", 80),
        ("dataset", "creator_username", 255),
    ):
        op.alter_column(table, column, type_=sa.String(length, collation="C"))


def _text(name: str, **options: Any) -> Any:
    return lambda: sa.Column(name, _TEXT, nullable=False, **options)


def _number(name: str, **options: Any) -> Any:
    return lambda: sa.Column(name, _NUMBER, nullable=False, **options)


def _moment(name: str) -> Any:
    return lambda: sa.Column(name, _MOMENT, nullable=False)


_OPTIONS: dict[str, dict[str, Any]] = {
    "dserverfs_search_tag": {"sqlite_with_rowid": False},
    "dserverfs_description": {"sqlite_autoincrement": True},
}
_TABLES = (
    (
        "dserverfs_search",
        _number("id", primary_key=True),
        _text("uri", unique=True),
        *(_text("uuid"), _text("base_uri"), _text("name"), _text("creator_username")),
        *(_moment("frozen_at"), _moment("created_at")),
        *(_number("number_of_items"), _number("size_in_bytes")),
        _text("tags"),
    ),
    (
        "dserverfs_search_tag",
        _text("tag", primary_key=True),
        _number("id", primary_key=True, autoincrement=False),
    ),
    (
        "dserverfs_description",
        _number("id", primary_key=True),
        _text("uri", unique=True),
        lambda: sa.Column("readme", sa.Text(), nullable=False),
        *(_text("annotations"), _text("tags")),
        lambda: sa.Column("manifest", sa.LargeBinary(), nullable=False),
    ),
    (
        "dserverfs_upload",
        _text("uri", primary_key=True),
        _text("uuid", unique=True),
        *(_text("base_uri"), _text("username"), _moment("started_at"), _text("request")),
    ),
    ("dserverfs_deleted_upload", _text("uri", primary_key=True), _moment("urls_end_at")),
    (
        "dserverfs_multipart",
        *(_text("uri", primary_key=True), _text("identifier", primary_key=True), _text("md5")),
        *(_number("size_in_bytes"), _number("part_bytes"), _text("upload_id")),
    ),
    ("dserverfs_change", _text("uri", primary_key=True), _number("number"), _number("unsure")),
    ("dserverfs_block_hashes", _text("uri", primary_key=True)),
    ("dserverfs_password", _text("username", primary_key=True), _text("hash")),
    ("dserverfs_token_generation", _text("username", primary_key=True), _number("generation")),
    (
        "dserverfs_publication",
        *(_text("token_hash", primary_key=True), _text("uri")),
        *(_text("username"), _moment("expires_at")),
    ),
    (
        "dserverfs_session",
        *(_text("secret_hash", primary_key=True), _text("username")),
        *(_number("generation"), _moment("expires_at")),
    ),
)
