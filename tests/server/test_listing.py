"""Pages of listings: both databases have what Python sorts, whatever is asked and by whom."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from dservercore.extensions import sql_db
from dservercore.sort import SortParameters
from dservercore.sql_models import BaseURI
from flask_smorest.pagination import PaginationParameters
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from dserverfs.server import app
from dserverfs.server.database import full_text, listing
from dserverfs.server.database.full_text import ITEMS_KIND, TEXT_KIND
from dserverfs.server.database.listing import MAX_MERGED
from dserverfs.server.database.search import Search
from dserverfs.server.database.summary import summary_of
from dserverfs.server.database.tables import search, search_tag
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.store.settings import DATABASE, ServerSettings
from dserverfs.server.store.stores import Stores
from tests.support import postgresql
from tests.support.servers import new_uuid

# Of these "s3://b/..." comes between the datasets of "s3://b".
BASE_URIS = ["s3://b", "s3://b/5", *(f"s3://b{number}" for number in range(MAX_MERGED + 6))]
WORDS = ("apple", "pear", "plum")
FIELDS = ("base_uri", "created_at", "creator_username", "frozen_at", "name", "uri", "uuid")


class Entry(NamedTuple):
    """A dataset as it is registered, and the words and the tag that it has."""

    row: dict[str, Any]
    words: tuple[str, ...]
    tag: str


def make_entries() -> list[Entry]:
    chance = random.Random(5)
    made = []
    for number in range(150):
        base_uri, uuid = chance.choice([*BASE_URIS[:3] * 20, *BASE_URIS]), new_uuid()
        words = tuple(word for word in WORDS if chance.random() < 0.4)
        tag = chance.choice("xé")
        row = {
            "id": number,
            "uri": f"{base_uri}/{uuid}",
            "uuid": uuid,
            "base_uri": base_uri,
            "name": chance.choice(["B", "a", "é"]),
            "creator_username": chance.choice(["ann", "Bob"]),
            "frozen_at": float(chance.randrange(20)),
            "created_at": float(chance.randrange(20)),
            "number_of_items": number,
            "size_in_bytes": 1 << chance.randrange(62),
            "tags": json.dumps([tag]),
        }
        made.append(Entry(row, words, tag))
    return made


class Listed:
    """The search of a server with these entries."""

    def __init__(self, directory: Path, address: str | None, entries: Sequence[Entry]) -> None:
        get = {DATABASE: address}.get
        self._app = app.create(
            DataDirectory(directory), Stores(None, lambda bucket: None), ServerSettings(get)
        )
        with self._app.app_context():
            sql_db.session.execute(insert(BaseURI), [{"base_uri": each} for each in BASE_URIS])
            sql_db.session.execute(insert(search), [entry.row for entry in entries])
            for row, words, tag in entries:
                sql_db.session.execute(insert(search_tag).values(id=row["id"], tag=tag))
                full_text.add(row["id"], TEXT_KIND, row["base_uri"], words)
                full_text.add(row["id"], ITEMS_KIND, row["base_uri"], words[:1])
            sql_db.session.commit()

    def page(self, query: dict[str, Any], sort: list[str], page: int, size: int) -> Any:
        pages = PaginationParameters(page, size)
        with self._app.app_context():
            found = Search().search(dict(query), pages, SortParameters(sort))
        return [dataset["uri"] for dataset in found], pages.item_count

    def all(self, query: dict[str, Any], sort: list[str]) -> list[str]:
        with self._app.app_context():
            found = Search().search(dict(query), None, SortParameters(sort))
        return [dataset["uri"] for dataset in found]

    def summary(self, base_uris: list[str]) -> dict[str, Any]:
        with self._app.app_context():
            return summary_of(base_uris)

    def close(self) -> None:
        app.close(self._app)


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return make_entries()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, entries: list[Entry]) -> Iterator[list[Listed]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                contextlib.closing(Listed(tmp_path_factory.mktemp("l"), address, entries))
            )
            for address in (None, postgresql.shared.get().new_database())
        ]


def expected(entries: Sequence[Entry], query: dict[str, Any], sort: Sequence[str]) -> list[str]:
    found = [
        entry
        for entry in entries
        if entry.row["base_uri"] in query["base_uris"]
        and set(query.get("tags", ())) <= {entry.tag}
        and entry.row["creator_username"] in query.get("creator_usernames", ["ann", "Bob"])
        and ("free_text" not in query or {*query["free_text"].split()} & {*entry.words})
    ]
    found.sort(key=lambda entry: entry.row["uri"].encode())
    for term in reversed(sort):
        name = term.lstrip("-")
        found.sort(key=lambda entry: _comparable(entry.row[name]), reverse=term.startswith("-"))
    return [entry.row["uri"] for entry in found]


def _comparable(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


ASKED = st.fixed_dictionaries(
    {
        "base_uris": st.sampled_from(
            [BASE_URIS, BASE_URIS[:-1], BASE_URIS[:3], BASE_URIS[:1], BASE_URIS[1:9]]
        )
    },
    optional={
        "free_text": st.lists(st.sampled_from(WORDS), min_size=1, max_size=2).map(" ".join),
        "tags": st.just(["x"]),
        "creator_usernames": st.sampled_from([["ann"], ["ann", "Bob"]]),
    },
)
SORTS = st.lists(
    st.tuples(st.sampled_from(["", "-"]), st.sampled_from(FIELDS)).map("".join),
    max_size=3,
    unique_by=lambda term: term.lstrip("-"),
)


@given(query=ASKED, sort=SORTS, size=st.sampled_from([1, 7, 100]), page=st.integers(1, 4))
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_page_has_what_python_sorts(
    both: list[Listed],
    entries: list[Entry],
    query: dict[str, Any],
    sort: list[str],
    size: int,
    page: int,
) -> None:
    all_there_is = expected(entries, query, sort)
    wanted = all_there_is[(page - 1) * size : page * size], len(all_there_is)

    assert [each.page(query, sort, page, size) for each in both] == [wanted, wanted]
    assert [each.all(query, sort) for each in both] == [all_there_is, all_there_is]


@pytest.mark.parametrize("base_uris", [[], BASE_URIS[:1], BASE_URIS[1:], BASE_URIS])
def test_summary_has_what_python_counts(
    both: list[Listed], entries: list[Entry], base_uris: list[str]
) -> None:
    visible = [entry for entry in entries if entry.row["base_uri"] in base_uris]

    summaries = [each.summary(base_uris) for each in both]

    assert summaries[0] == summaries[1]
    assert summaries[0]["number_of_datasets"] == len(visible)
    assert summaries[0]["total_size_in_bytes"] == sum(e.row["size_in_bytes"] for e in visible)
    for name in ("creator", "base_uri", "tag"):
        sizes: dict[str, int] = {}
        for entry in visible:
            facts = {**entry.row, "creator": entry.row["creator_username"], "tag": entry.tag}
            sizes[facts[name]] = sizes.get(facts[name], 0) + entry.row["size_in_bytes"]
        assert summaries[0][f"size_in_bytes_per_{name}"] == sizes
        assert summaries[0][f"datasets_per_{name}"].keys() == sizes.keys()


def test_dataset_of_a_base_uri_that_is_new_is_not_shown_to_who_may_see_all_others(
    both: list[Listed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "are_all", lambda base_uris: True)

    for each in both:
        uris, _ = each.page({"base_uris": BASE_URIS[1:]}, ["base_uri"], 1, 100)
        assert uris
        assert all(not uri.startswith("s3://b/") or uri.startswith("s3://b/5/") for uri in uris)
