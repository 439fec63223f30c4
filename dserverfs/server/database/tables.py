"""The tables of this project beside dservercore's, in SQLite and in PostgreSQL.

Described once, for statements; `migrations` make them, and a test compares the two. Texts are
ordered by their bytes in both databases. Full text has tables that only one of the two
databases has: see `full_text`.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    Column,
    Dialect,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.sql.type_api import TypeEngine

POSTGRESQL = "postgresql"
SQLITE = "sqlite"

metadata = MetaData()

# PostgreSQL orders by the rules of a language unless it is told otherwise.
TEXT = Text().with_variant(Text(collation="C"), POSTGRESQL)
NUMBER = BigInteger().with_variant(Integer(), SQLITE)
MOMENT: TypeEngine[float] = Double().with_variant(REAL(), SQLITE)  # epoch seconds


class KeptReadme(TypeDecorator[Any]):
    """A README as it was registered: `str` for a text, `bytes` for the JSON of a mapping.

    SQLite keeps the two apart by itself. PostgreSQL, whose texts can hold no NUL, has JSON:
    that of a string for a text.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if dialect.name == SQLITE or value is None:
            return value
        return json.dumps(value) if isinstance(value, str) else value.decode()

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if dialect.name == SQLITE or value is None:
            return value
        return json.loads(value) if value.startswith('"') else value.encode()


def _text(name: str, **options: Any) -> Column[str]:
    return Column(name, TEXT, nullable=False, **options)


def _number(name: str, **options: Any) -> Column[int]:
    return Column(name, NUMBER, nullable=False, **options)


def _moment(name: str) -> Column[float]:
    return Column(name, MOMENT, nullable=False)


search = Table(
    "dserverfs_search",
    metadata,
    _number("id", primary_key=True),
    _text("uri", unique=True),
    _text("uuid"),
    _text("base_uri"),
    _text("name"),
    _text("creator_username"),
    _moment("frozen_at"),
    _moment("created_at"),
    _number("number_of_items"),
    _number("size_in_bytes"),
    _text("tags"),
    Index("dserverfs_search_uuid", "uuid"),
    Index("dserverfs_search_base_uri", "base_uri", "uri"),
    # With the id, by which words and tags know a dataset; SQLite's indexes all have it.
    Index("dserverfs_search_newest", "base_uri", "frozen_at", "uri", postgresql_include=["id"]),
    Index("dserverfs_search_frozen_at", "frozen_at", "uri"),
    Index("dserverfs_search_creator", "creator_username", "uri"),
)
search_tag = Table(
    "dserverfs_search_tag",
    metadata,
    _text("tag", primary_key=True),
    _number("id", primary_key=True, autoincrement=False),
    Index("dserverfs_search_tag_id", "id"),
    sqlite_with_rowid=False,
)
description = Table(
    "dserverfs_description",
    metadata,
    # An id is never used again, so it names one version of a manifest.
    _number("id", primary_key=True),
    _text("uri", unique=True),
    Column("readme", KeptReadme, nullable=False),
    _text("annotations"),
    _text("tags"),
    Column("manifest", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
upload = Table(
    "dserverfs_upload",
    metadata,
    _text("uri", primary_key=True),
    _text("uuid"),
    _text("base_uri"),
    _text("username"),
    _moment("started_at"),
    _text("request"),
    UniqueConstraint("uuid"),
    Index("dserverfs_upload_username", "username"),
    Index("dserverfs_upload_base_uri", "base_uri"),
)
deleted_upload = Table(
    "dserverfs_deleted_upload", metadata, _text("uri", primary_key=True), _moment("urls_end_at")
)
multipart = Table(
    "dserverfs_multipart",
    metadata,
    _text("uri", primary_key=True),
    _text("identifier", primary_key=True),
    _text("md5"),
    _number("size_in_bytes"),
    _number("part_bytes"),
    _text("upload_id"),
)
change = Table(
    "dserverfs_change",
    metadata,
    _text("uri", primary_key=True),
    _number("number"),
    _number("unsure"),
)
block_hashes = Table("dserverfs_block_hashes", metadata, _text("uri", primary_key=True))
password = Table("dserverfs_password", metadata, _text("username", primary_key=True), _text("hash"))
token_generation = Table(
    "dserverfs_token_generation",
    metadata,
    _text("username", primary_key=True),
    _number("generation"),
)
publication = Table(
    "dserverfs_publication",
    metadata,
    _text("token_hash", primary_key=True),
    _text("uri"),
    _text("username"),
    _moment("expires_at"),
    Index("dserverfs_publication_uri", "uri"),
)
guess = Table(
    "dserverfs_guess",
    metadata,
    _text("id", primary_key=True),
    _text("user_hash"),
    _text("address"),
    _moment("made_at"),
    Index("dserverfs_guess_user", "user_hash", "made_at"),
    Index("dserverfs_guess_address", "address", "made_at"),
    Index("dserverfs_guess_made_at", "made_at"),
)
session = Table(
    "dserverfs_session",
    metadata,
    _text("secret_hash", primary_key=True),
    _text("username"),
    _number("generation"),
    _moment("expires_at"),
    Index("dserverfs_session_username", "username"),
)
