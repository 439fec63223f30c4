"""Full text of datasets: words by SQLite's tokenizer, in FTS5 or in an index of PostgreSQL.

What counts as a word, and its stem, says FTS5's `porter unicode61`, for both databases: for
PostgreSQL an SQLite in memory takes a text apart. So both answer the same, whatever is asked.
PostgreSQL's own parser would take paths, addresses and hyphens apart by other rules.

    SQLite       dserverfs_search_text, dserverfs_search_items: tables of FTS5
    PostgreSQL   dserverfs_search_words: a row of a dataset for each of the two, with its words
                 as an array, which a GIN index finds, and all in their order, for phrases

Among the words is one that stands for the base URI: so a word that most datasets have costs who
may see few of them no more than these.

An array, and not a `tsvector`: that has room for 1 MB and for 255 places of a word, and a
dataset may have the paths of a million items. Text and paths are apart, so that a new tag does not
have these read again.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Index,
    MetaData,
    SelectBase,
    SmallInteger,
    Table,
    TableClause,
    Text,
    and_,
    column,
    false,
    func,
    insert,
    literal_column,
    or_,
    select,
    table,
    union,
)
from sqlalchemy.dialects.postgresql import ARRAY

from dserverfs.base.errors import UsageError
from dserverfs.server.database import sql
from dserverfs.server.database.tables import NUMBER, POSTGRESQL, TEXT, search

TOKENIZER = "tokenize = 'porter unicode61'"
MAX_PHRASES = 100  # in double quotes; each is a condition, of which SQLite takes 1,000 deep
MAX_WORDS = 1000  # of a question
TEXT_KIND, ITEMS_KIND = 0, 1
_FTS5_TABLES = {TEXT_KIND: "dserverfs_search_text", ITEMS_KIND: "dserverfs_search_items"}
_PIECE_CHARACTERS = 64 * 1024
_MAX_BASE_URIS = 100  # guess: who may see more sees most
_MAX_INDEXED_BYTES = 1024  # a GIN index has no room for a word of 2,700

# Not in the metadata of `tables`: SQLite has no arrays.
words = Table(
    "dserverfs_search_words",
    MetaData(),
    Column("id", NUMBER, primary_key=True, autoincrement=False),
    Column("kind", SmallInteger, primary_key=True, autoincrement=False),
    Column("words", ARRAY(TEXT), nullable=False),
    Column("in_order", Text, nullable=False),  # with a space before and behind each
    Index("dserverfs_search_words_words", "words", postgresql_using="gin"),
)


class Question(NamedTuple):
    """What must be found: of each of `all_of` any phrase, in one text of the dataset."""

    all_of: list[list[str]]


def question_of(free_text: str) -> Question:
    """Return the question of a free text; its phrases are texts, not taken apart yet.

    Raises UsageError for one of more words than are looked for.
    """
    phrases = [phrase for phrase in re.findall(r'"([^"]*)"', free_text) if _has_word(phrase)]
    if phrases:
        return Question([[phrase] for phrase in phrases[:MAX_PHRASES]])
    found = [word for word in free_text.replace('"', " ").split() if _has_word(word)]
    if len(found) > MAX_WORDS:
        raise UsageError(f"free_text has more than {MAX_WORDS} words", status=422)
    return Question([found] if found else [])


def _has_word(part: str) -> bool:
    """Return whether the tokenizer may find anything in `part`; a NUL would end the query."""
    return "\0" not in part and any(character.isalnum() for character in part)


def selections(question: Question, base_uris: Collection[str]) -> list[SelectBase]:
    """Return selections of ids of datasets: what is asked for is in all of them.

    Datasets of other base URIs need not be left out: another condition does so.
    """
    if not question.all_of:
        return [select(search.c.id).where(false())]
    return [_selection(phrases, base_uris) for phrases in question.all_of]


def _selection(phrases: Sequence[str], base_uris: Collection[str]) -> SelectBase:
    """Return a selection of the ids of datasets that have any of the phrases."""
    if sql.dialect_name() == POSTGRESQL:
        return _found_by_words(phrases, base_uris)
    return _found_by_fts5(phrases)


def add(identity: int, kind: int, base_uri: str, lines: Iterable[str]) -> None:
    """Index a text of a dataset, which is in lines."""
    if sql.dialect_name() == POSTGRESQL:
        _add_words(identity, kind, base_uri, lines)
        return
    fts5 = _fts5(kind)
    sql.execute(insert(fts5).values(rowid=identity, content="\n".join(lines)))


def remove(identity: int, *kinds: int) -> None:
    """Forget texts of a dataset."""
    for kind in kinds:
        if sql.dialect_name() == POSTGRESQL:
            sql.delete_rows(words, words.c.id == identity, words.c.kind == kind)
        else:
            fts5 = _fts5(kind)
            sql.execute(fts5.delete().where(fts5.c.rowid == identity))


# SQLite


def _fts5(kind: int) -> TableClause:
    return table(_FTS5_TABLES[kind], column("rowid"), column("content"))


def _found_by_fts5(phrases: Sequence[str]) -> SelectBase:
    """Return a selection of the ids; double quotes are in no phrase."""
    match = " OR ".join(f'"{phrase}"' for phrase in phrases)
    return union(
        *(
            select(_fts5(kind).c.rowid).where(literal_column(name).op("MATCH")(match))
            for kind, name in _FTS5_TABLES.items()
        )
    )


# PostgreSQL


def _add_words(identity: int, kind: int, base_uri: str, lines: Iterable[str]) -> None:
    """Index lines, a piece of them at a time: no word goes over the end of a line."""
    all_words = {word_of_base_uri(base_uri)}
    in_order = [""]
    for piece in _pieces(lines):
        found = words_in(piece)
        all_words.update(found)
        in_order.extend(found)
    in_order.append("")
    sql.insert_row(
        words, id=identity, kind=kind, words=sorted(all_words), in_order=" ".join(in_order)
    )


def _found_by_words(phrases: Sequence[str], base_uris: Collection[str]) -> SelectBase:
    """Return a selection of the ids; the index finds the words, of which phrases are made."""
    taken_apart = [found for phrase in phrases if (found := words_in(phrase))]
    single = sorted({found[0] for found in taken_apart if len(found) == 1})
    ways: list[ColumnElement[bool]] = [words.c.words.overlap(single)] if single else []
    for phrase in {tuple(found) for found in taken_apart if len(found) > 1}:
        has_all = words.c.words.contains(sorted(set(phrase)))
        ways.append(and_(has_all, func.strpos(words.c.in_order, f" {' '.join(phrase)} ") > 0))
    selection = select(words.c.id).where(or_(false(), *ways))
    if not 0 < len(base_uris) <= _MAX_BASE_URIS:
        return selection
    return selection.where(words.c.words.overlap(sorted(map(word_of_base_uri, base_uris))))


def word_of_base_uri(base_uri: str) -> str:
    """Return what stands for a base URI among words: no word, for a slash is in none."""
    return _indexed(f"/{base_uri}")


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines joined to pieces of some size; none is empty."""
    piece: list[str] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size > _PIECE_CHARACTERS:
            yield "\n".join(piece)
            piece, size = [], 0
    if piece:
        yield "\n".join(piece)


def words_in(content: str) -> list[str]:
    """Return the words of a text, each as its stem, in their order."""
    return [_indexed(word) for word in _tokenizer.words_in(content)]


def _indexed(word: str) -> str:
    """Return what stands for a word in the index: itself, or the hash of a very long one."""
    if len(word) <= _MAX_INDEXED_BYTES // 4:
        return word
    encoded = word.encode()
    return word if len(encoded) <= _MAX_INDEXED_BYTES else sha256(encoded).hexdigest()


class _Tokenizer:
    """FTS5's own, in the memory of this process. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def words_in(self, content: str) -> list[str]:
        with self._lock:
            connection = self._connection = self._connection or _in_memory()
            connection.execute("BEGIN")
            try:
                connection.execute("INSERT INTO piece (rowid, content) VALUES (1, ?)", [content])
                found = connection.execute("SELECT term FROM word ORDER BY offset")
                return [term for (term,) in found]
            finally:
                connection.execute("ROLLBACK")


def _in_memory() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.text_factory = lambda term: term.decode(errors="replace")  # FTS5 cuts long ones
    connection.execute(f"CREATE VIRTUAL TABLE piece USING fts5(content, {TOKENIZER})")
    connection.execute("CREATE VIRTUAL TABLE word USING fts5vocab(piece, instance)")
    return connection


_tokenizer = _Tokenizer()
