"""Every dataset is listed, whatever a server makes of pages, totals and dates."""

from __future__ import annotations

import uuid as uuid_module
from typing import Any

import pytest

from dserverfs.model import UUID
from dserverfs.resolver import Resolver
from tests.quirky_server import BASE_URI, CONTENTS, HELLO, QuirkyServer, only_hello

pytest_plugins = ["tests.resolving"]


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


def test_sorting_that_is_refused_is_not_asked_for_again(
    quirky: QuirkyServer, resolver: Resolver
) -> None:
    quirky.quirks.refuses_sort = True
    uuids = many(quirky, 3)

    for _ in range(2):
        assert {dataset.uuid for dataset in resolver.datasets(BASE_URI)} == uuids

    assert ["sort" in query for query in quirky.queries] == [True, False, False]


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
