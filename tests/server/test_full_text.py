"""Full text in both databases: PostgreSQL finds what FTS5 finds, whatever is written and asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from dservercore.extensions import sql_db
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import and_, insert, select

from dserverfs.server import app
from dserverfs.server.database import full_text
from dserverfs.server.database.full_text import ITEMS_KIND, TEXT_KIND
from dserverfs.server.database.tables import search
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.store.settings import DATABASE, ServerSettings
from dserverfs.server.store.stores import Stores
from tests.support import postgresql

BASE_URI = "s3://x"


class Catalogue:
    """The search tables of a server, with rows of a test, which are rolled back."""

    def __init__(self, directory: Path, address: str | None) -> None:
        get = {DATABASE: address}.get
        self._app = app.create(
            DataDirectory(directory), Stores(None, lambda bucket: None), ServerSettings(get)
        )
        self._directory = directory

    def found(
        self, datasets: Sequence[tuple[Sequence[str], Sequence[str]]], asked: Sequence[str]
    ) -> list[list[int]]:
        """Return the numbers of the datasets, with text and paths, that each question finds."""
        with self._app.app_context():
            try:
                for number, (lines, relpaths) in enumerate(datasets):
                    sql_db.session.execute(insert(search).values(_row(number)))
                    full_text.add(number, TEXT_KIND, BASE_URI, lines)
                    full_text.add(number, ITEMS_KIND, BASE_URI, relpaths)
                return [self._find(text) for text in asked]
            finally:
                sql_db.session.rollback()

    def _find(self, text: str) -> list[int]:
        found_by = full_text.selections(full_text.question_of(text), [BASE_URI, "s3://y"])
        matches = and_(*(search.c.id.in_(each) for each in found_by))
        found = sql_db.session.execute(select(search.c.id).where(matches).order_by(search.c.id))
        return list(found.scalars())

    def close(self) -> None:
        app.close(self._app)


def _row(number: int) -> dict[str, Any]:
    texts = dict.fromkeys(("uuid", "base_uri", "name", "creator_username", "tags"), "")
    numbers = ("frozen_at", "created_at", "number_of_items", "size_in_bytes")
    return {"id": number, "uri": str(number), **texts, **dict.fromkeys(numbers, 0)}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Catalogue, Catalogue]]:
    address = postgresql.shared.get().new_database()
    with contextlib.ExitStack() as stack:
        made = [
            stack.enter_context(contextlib.closing(Catalogue(tmp_path_factory.mktemp("t"), each)))
            for each in (None, address)
        ]
        yield made[0], made[1]


# Words that stem, and marks on which tokenizers differ.
WORDS = st.sampled_from(
    [
        *("running", "runs", "Runner", "crystals", "crystal", "flies", "fly", "happily", "generic"),
        *("e-coli", "a_b", "a.b.tif", "dir/a.tif", "s3://bucket/x", "x@example.org", "2024-01-02"),
        *("Ångström", "ångstrom", "grüße", "GRÜSSE", "İstanbul", "µm", "½", "②", "中文", "été"),
        *("1.5e-3", "0x1F", "don't", "C++", "&amp;", "<b>x</b>", "10%", "x", "a" * 70, "ing" * 30),
    ]
)
TEXTS = st.lists(WORDS | st.text(max_size=6), max_size=6).map(" ".join)
LINES = st.lists(TEXTS.filter(lambda text: "\0" not in text), max_size=3)
PHRASES = st.lists(WORDS, min_size=1, max_size=3).map(lambda words: f'"{" ".join(words)}"')
QUESTIONS = st.lists(TEXTS | PHRASES | st.text(max_size=8), min_size=1, max_size=3).map(" ".join)


@given(datasets=st.lists(st.tuples(LINES, LINES), min_size=1, max_size=4), asked=QUESTIONS)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_both_databases_find_the_same(
    both: tuple[Catalogue, Catalogue],
    datasets: list[tuple[list[str], list[str]]],
    asked: str,
) -> None:
    # Beside a question of any kind, one that something answers: what is written is asked for.
    written = [line for lines in datasets for text in lines for line in text]
    questions = [asked, *written, *(f'"{line.replace(chr(34), " ")}"' for line in written)]

    in_sqlite, in_postgresql = (each.found(datasets, questions) for each in both)

    assert in_postgresql == in_sqlite


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("crystal", [0]),
        ("CRYSTALLING yeast", [0]),
        ('"yeast crystals"', []),
        ('"of yeast"', [0]),
        ("angstrom", [1]),
        ("plate_7.csv", [1]),
        ('"run/plate" "light sheet"', [1]),
        ('"sheet run"', []),  # of text and path together
        ("bucket", [0, 1]),
        ("11111111-2222", [1]),
        ("w" * 5000, [2]),
        ("w" * 5001, []),
        ("first-999999 last", [2]),
    ],
)
def test_both_databases_find_what_is_there(
    both: tuple[Catalogue, Catalogue], asked: str, found: list[int]
) -> None:
    datasets = [
        (["crystals of yeast", "s3://bucket/0"], []),
        (["s3://bucket/11111111-2222", "light sheet, 5 Ångström"], ["run/plate_7.csv"]),
        (["w" * 5000], ["first-999999", *(f"images/{number:05}.tif" for number in range(20_000))]),
    ]

    assert [each.found(datasets, [asked]) for each in both] == [[found], [found]]


def test_questions_of_more_words_than_are_looked_for_are_refused(
    both: tuple[Catalogue, Catalogue],
) -> None:
    most = " ".join(f"word-{number}" for number in range(full_text.MAX_WORDS))

    assert [each.found([(["word 999"], [])], [most]) for each in both] == [[[0]], [[0]]]
    with pytest.raises(Exception, match="more than 1000 words"):
        full_text.question_of(f"{most} x")
