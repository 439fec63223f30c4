"""Every dataset is listed, whatever a server makes of pages, totals and dates."""

from __future__ import annotations

import json
import math
import uuid as uuid_module
from typing import Any

import pytest

from dserverfs.base.errors import PermissionDenied, ProtocolError, Unreachable
from dserverfs.base.model import UUID
from dserverfs.remote import listings
from dserverfs.remote.api import Resolver
from dserverfs.remote.listings import SearchQuery
from tests.support.quirky_server import BASE_URI, CONTENTS, HELLO, QuirkyServer, only_hello, says

pytest_plugins = ["tests.support.resolver_fixtures"]


def many(quirky: QuirkyServer, count: int) -> set[str]:
    uuids = [f"{number:08d}-0000-4000-8000-000000000000" for number in range(count)]
    for number, uuid in enumerate(uuids):
        quirky.add(uuid, {}, frozen_at=1_700_000_000.0 + number)
    return set(uuids)


@pytest.mark.parametrize("count", [0, 1, 100, 101, 201])
@pytest.mark.parametrize("page_size", [None, 30, 1000])
@pytest.mark.parametrize("sends_pagination", [True, False])
@pytest.mark.parametrize("beyond", ["404", "empty", "last page"])
def test_every_dataset_is_listed_whatever_the_pages_are(
    quirky: QuirkyServer,
    resolver: Resolver,
    count: int,
    page_size: int | None,
    sends_pagination: bool,
    beyond: str,
) -> None:
    quirky.quirks.page_size = page_size
    quirky.quirks.sends_pagination = sends_pagination
    quirky.quirks.beyond_the_end = beyond
    uuids = many(quirky, count)

    listed = [dataset.uuid for dataset in resolver.datasets(BASE_URI)]

    assert set(listed) == uuids
    assert len(listed) == count


def test_dataset_that_moved_to_a_page_seen_before_is_found(
    quirky: QuirkyServer, resolver: Resolver
) -> None:
    uuids = many(quirky, 150)

    def delete_first(handler: Any) -> None:
        if quirky.entries[0]["uuid"] in uuids and len(quirky.entries) == 150:
            quirky.entries.pop(0)
        handler._listing()

    quirky.faults = [None, delete_first]

    assert {dataset.uuid for dataset in resolver.datasets(BASE_URI)} == uuids


@pytest.mark.parametrize(
    "pages",
    [
        [slice(0, 100), slice(100, 200)],
        [slice(0, 100), slice(100, 150), slice(200, 250)],
        [slice(0, 100), slice(0, 0), slice(200, 250)],
        [slice(0, 100), slice(0, 100), slice(0, 100), slice(0, 100)],
        [slice(0, 0)],
        [slice(0, 50)],
    ],
    ids=str,
)
def test_listing_that_contradicts_its_own_total_is_asked_for_again_and_then_none(
    quirky: QuirkyServer, resolver: Resolver, pages: list[slice]
) -> None:
    uuids = many(quirky, 250)

    def fall_short(handler: Any) -> None:
        page = int(handler.query["page"]) - 1
        rows = pages[page] if page < len(pages) else slice(0, 0)
        pagination = {"X-Pagination": json.dumps({"total": 250, "total_pages": 3})}
        handler.answer(200, quirky.entries[rows], pagination)

    quirky.faults = [fall_short] * 100

    with pytest.raises(Unreachable, match="it has 250 entries, and"):
        resolver.datasets(BASE_URI)

    assert quirky.asked("POST /uris") > len(pages)
    quirky.faults = []
    assert {dataset.uuid for dataset in resolver.datasets(BASE_URI)} == uuids


def test_listing_that_does_not_exist_is_no_empty_one(
    quirky: QuirkyServer, resolver: Resolver
) -> None:
    quirky.faults = [says(404)]

    with pytest.raises(ProtocolError, match="cannot list"):
        resolver.datasets(BASE_URI)


def test_right_that_is_lost_while_a_listing_comes_is_told_as_such(
    quirky: QuirkyServer, resolver: Resolver
) -> None:
    many(quirky, 150)

    def revoke(handler: Any) -> None:
        quirky.permissions = []
        handler._listing()

    quirky.faults = [None, revoke]

    with pytest.raises(PermissionDenied, match="grumpy"):
        resolver.datasets(BASE_URI)


def test_sorting_that_is_refused_is_not_asked_for_again(
    quirky: QuirkyServer, resolver: Resolver
) -> None:
    quirky.quirks.refuses_sort = True
    uuids = many(quirky, 3)

    for _ in range(2):
        assert {dataset.uuid for dataset in resolver.datasets(BASE_URI)} == uuids

    assert ["sort" in query for query in quirky.queries] == [True, False, False]


def test_search_that_is_refused_leaves_listings_sorted(
    quirky: QuirkyServer, resolver: Resolver
) -> None:
    quirky.faults = [says(422), says(422)]

    with pytest.raises(ProtocolError):
        resolver.index.search(SearchQuery(tags=("t",)))
    resolver.datasets(BASE_URI)

    assert ["sort" in query for query in quirky.queries[:3]] == [True, False, True]


def test_uuid_in_upper_case_is_the_same_dataset(quirky: QuirkyServer, resolver: Resolver) -> None:
    uuid = UUID(str(uuid_module.uuid4()))
    uri = quirky.add(uuid.upper(), CONTENTS)

    (listed,) = resolver.datasets(BASE_URI)

    assert (listed.uuid, listed.uri) == (uuid, uri)
    assert resolver.dataset_by_uuid(uuid, BASE_URI) == listed
    assert resolver.readme(listed) == b""


@pytest.mark.parametrize(
    "date", [1_700_000_000, "1700000000.0", "Tue, 14 Nov 2023 22:13:20 GMT", "2023-11-14T22:13:20Z"]
)
def test_dates_of_all_forms_are_read(quirky: QuirkyServer, resolver: Resolver, date: Any) -> None:
    quirky.add(str(uuid_module.uuid4()), {}, frozen_at=date)

    (listed,) = resolver.datasets(BASE_URI)

    assert listed.frozen_at == 1_700_000_000


@pytest.mark.expects_log("is left out")
def test_entry_that_cannot_be_read_is_left_out(quirky: QuirkyServer, resolver: Resolver) -> None:
    quirky.add(str(uuid_module.uuid4()), {})
    quirky.add("no-uuid", {})

    assert len(resolver.datasets(BASE_URI)) == 1


# Of a listing.
WRONG: dict[str, list[Any]] = {
    "uuid": ["", None, 5, "x" * 36],
    "uri": [None, "\ud800", "x" * 100_000, {}],
    "name": [None, "\ud800"],
    "frozen_at": [None, math.nan, math.inf, 1e300, 10**400, "soon", True, []],
    "created_at": [math.nan, -1e300],
    "number_of_items": [-1, 1.0, True, 10**30, "1"],
    "size_in_bytes": [-1, 0.5, False, 10**30],
}


@pytest.mark.expects_log(r"is left out: .*, and \d+ more")
def test_entries_that_cannot_be_are_left_out_alone_in_one_line(
    quirky: QuirkyServer, resolver: Resolver, caplog: pytest.LogCaptureFixture
) -> None:
    (good,) = many(quirky, 1)
    entry = quirky.entries[0]
    for key, values in WRONG.items():
        for value in values:
            uuid = str(uuid_module.uuid4())
            wrong = {**entry, "uuid": uuid, "uri": f"{BASE_URI}/{uuid}", key: value}
            quirky.entries.append(wrong)

    assert [dataset.uuid for dataset in resolver.datasets(BASE_URI)] == [good]

    assert caplog.text.count("WARNING") == 1


def test_listing_of_more_than_a_base_uri_may_have_is_an_error(
    quirky: QuirkyServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "MAX_LISTED_DATASETS", 250)
    many(quirky, 250)
    assert len(resolver.datasets(BASE_URI)) == 250

    many(quirky, 351)

    with pytest.raises(ProtocolError, match="is not shown"):
        resolver.datasets(BASE_URI)


@pytest.mark.parametrize("total", [10**30, -1, 1e300, "many", None, [[]]])
def test_total_that_is_none_is_not_looked_at(
    quirky: QuirkyServer, resolver: Resolver, total: object
) -> None:
    quirky.quirks.total = total
    uuids = many(quirky, 150)

    assert {dataset.uuid for dataset in resolver.datasets(BASE_URI)} == uuids


@pytest.mark.parametrize("beyond", ["404", "empty", "last page"])
def test_total_that_is_not_true_costs_few_questions(
    quirky: QuirkyServer, resolver: Resolver, beyond: str
) -> None:
    quirky.quirks.total = 10**8
    quirky.quirks.beyond_the_end = beyond
    many(quirky, 150)

    with pytest.raises(Unreachable, match="incomplete"):
        resolver.datasets(BASE_URI)

    assert len(quirky.requests) <= 2 * (1 + 2 * listings.PAGES_AHEAD)


@pytest.mark.expects_log(r"'file:///home/me' is left out")
def test_base_uris_that_are_no_path_are_left_out_once(
    quirky: QuirkyServer, resolver: Resolver, caplog: pytest.LogCaptureFixture
) -> None:
    quirky.permissions = [BASE_URI, "s3://b/with/prefix", "smb://share", "file:///home/me"]

    for _ in range(2):
        user = resolver.user()

    assert user.search_base_uris == (BASE_URI, "s3://b/with/prefix", "smb://share")
    assert caplog.text.count("WARNING") == 1


def test_dataset_below_a_prefix(quirky: QuirkyServer, resolver: Resolver) -> None:
    quirky.permissions = ["s3://bucket/u/me"]
    uuid = str(uuid_module.uuid4())
    old = quirky.add(uuid, CONTENTS, b"hello")
    uri = f"s3://bucket/u/me/{uuid}"
    quirky.entries[0].update(uri=uri, base_uri="s3://bucket/u/me")
    quirky.described[uri] = quirky.described.pop(old)

    (listed,) = resolver.datasets("s3://bucket/u/me")

    assert resolver.readme(listed) == b"hello"
    assert resolver.item_url(listed, HELLO, only_hello).url
