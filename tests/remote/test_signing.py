"""Signed URLs: asked for in the cheapest way a server has, once, and again when refused."""

from __future__ import annotations

import json
import uuid as uuid_module
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from dserverfs.base import hash_overlay
from dserverfs.base.errors import NotFound
from dserverfs.base.model import UUID, BackendURI, Dataset, identifier_of
from dserverfs.remote import signing
from dserverfs.remote.api import Resolver
from tests.support.quirky_server import (
    BASE_URI,
    CONTENTS,
    HELLO,
    OTHERS,
    QuirkyServer,
    alone,
    only_hello,
    says,
)

pytest_plugins = ["tests.support.resolver_fixtures"]


def test_upstream_dataset_is_asked_whole_once_however_many_want_items(
    upstream: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    resolver.capabilities()

    with ThreadPoolExecutor(8) as pool:
        wanted = [identifier_of(relpath) for relpath in CONTENTS] * 5
        urls = list(pool.map(lambda item: resolver.item_url(dataset, item, alone), wanted))

    assert all(item in url.url for item, url in zip(wanted, urls, strict=True))
    assert upstream.asked("/signed-urls/dataset/") == 1


def test_metadata_of_upstream_brings_the_items_too(
    upstream: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    resolver.metadata(dataset)
    resolver.item_url(dataset, HELLO, alone)

    assert upstream.asked("/signed-urls/") == 1


@pytest.mark.expects_log("its overlays are not shown")
def test_large_upstream_dataset_is_never_asked_whole(
    upstream: QuirkyServer,
    resolver: Resolver,
    dataset: Dataset,
    caplog: pytest.LogCaptureFixture,
) -> None:
    large = replace(dataset, number_of_items=signing.MAX_ITEMS_ASKED_WHOLE + 1)

    for _ in range(2):
        metadata = resolver.metadata(large)
    assert HELLO in resolver.item_url(large, HELLO, alone).url

    assert upstream.asked("/signed-urls/dataset/") == 0
    assert metadata.tags == ("a", "b")
    assert {name: json.loads(text) for name, text in metadata.annotations.items()} == {"n": 5}
    assert metadata.overlays == {}
    admin = json.loads(metadata.admin_metadata)
    assert (admin["type"], admin["dtoolcore_version"]) == ("dataset", "3.19.0")
    assert caplog.text.count("overlays are not shown") == 1


def test_batch_too_large_for_the_server_is_made_smaller_for_good(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    quirky.quirks.max_batch = 2
    everything = [identifier_of(relpath) for relpath in CONTENTS]

    assert resolver.item_url(dataset, HELLO, lambda n: everything * 100)
    before = quirky.asked("/signed-urls/items/")
    url = resolver.item_url(dataset, HELLO, lambda n: everything)
    resolver.forget_url(dataset, HELLO, url)
    resolver.item_url(dataset, HELLO, lambda n: everything)

    assert quirky.asked("/signed-urls/items/") == before + 1


def test_refused_url_is_asked_for_anew(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    url = resolver.item_url(dataset, HELLO, only_hello)

    assert resolver.item_url(dataset, HELLO, only_hello) is url
    resolver.forget_url(dataset, HELLO, url)
    assert resolver.item_url(dataset, HELLO, only_hello) is not url

    assert quirky.asked("/signed-urls/items/") == 2


@pytest.mark.parametrize(
    "odd",
    [
        {"expiry_seconds": None, "expiry_timestamp": "2020-01-01T00:00:00Z"},
        {"expiry_seconds": None, "expiry_timestamp": "tomorrow"},
        {"expiry_seconds": -5},
        {"expiry_seconds": "3600", "expiry_timestamp": 5},
    ],
)
def test_odd_expiry_still_gives_urls_to_use(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset, odd: dict[str, Any]
) -> None:
    quirky.quirks.amz_dates = False
    quirky.quirks.odd_answer = odd

    for _ in range(5):
        resolver.item_url(dataset, HELLO, only_hello)

    assert quirky.asked("/signed-urls/items/") == 1


def test_server_that_loses_our_extension_is_asked_as_others_are(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    resolver.capabilities()
    quirky.versions = {"dservercore": "0.22.0", "dserver_signed_url_plugin": None}

    assert HELLO in resolver.item_url(dataset, HELLO, only_hello).url


# Block hashes

URL = "http://127.0.0.1:9/block-hashes?X-Amz-Date=x"


@pytest.fixture
def hashing(quirky: QuirkyServer) -> QuirkyServer:
    """The fake as a server that has the block hashes of every dataset."""
    quirky.versions["dserverfs_block_hashes"] = "1"
    quirky.quirks.odd_answer = {"block_hashes_url": URL}
    return quirky


def test_url_of_block_hashes_is_asked_for_once_until_it_is_refused(
    hashing: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    resolver.capabilities()

    with ThreadPoolExecutor(8) as pool:
        urls = list(pool.map(lambda _: resolver.block_hashes_url(dataset), range(20)))
    before = hashing.asked("/signed-urls/")
    first = urls[0]
    assert first is not None
    resolver.forget_url(dataset, signing.BLOCK_HASHES, first)
    again = resolver.block_hashes_url(dataset)

    assert {url and url.url for url in (*urls, again)} == {URL}
    assert (before, hashing.asked("/signed-urls/")) == (1, 2)


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("ask", ["metadata_urls", "item_url"])
def test_other_answers_bring_the_url_of_block_hashes_or_say_that_there_are_none(
    hashing: QuirkyServer, resolver: Resolver, dataset: Dataset, ask: str, is_there: bool
) -> None:
    if not is_there:
        hashing.quirks.odd_answer = {}
    assert not resolver.knows_block_hashes(dataset)
    getattr(resolver, ask)(dataset, *([HELLO, alone] if ask == "item_url" else []))

    assert resolver.knows_block_hashes(dataset)
    assert (resolver.block_hashes_url(dataset) is not None) == is_there
    assert hashing.asked("/signed-urls/") == 1


def test_dataset_without_block_hashes_is_asked_about_once_an_hour(
    hashing: QuirkyServer, resolver: Resolver, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(signing, "boottime_s", lambda: now_s)
    hashing.quirks.odd_answer = {}

    assert [resolver.block_hashes_url(dataset) for _ in range(3)] == [None] * 3
    asked = hashing.asked("/signed-urls/")
    now_s += signing.WITHOUT_S + 1
    assert resolver.block_hashes_url(dataset) is None

    assert (asked, hashing.asked("/signed-urls/")) == (1, 2)


def test_overlay_with_hashes_costs_upstream_no_request_of_its_own(
    upstream: QuirkyServer, resolver: Resolver
) -> None:
    overlays = {hash_overlay.NAME: {HELLO: "md5:hashes"}}
    with_it, without = (str(uuid_module.uuid4()) for _ in range(2))
    upstream.add(with_it, CONTENTS, **{**OTHERS, "overlays": overlays})
    upstream.add(without, CONTENTS, **OTHERS)
    found = []
    for uuid in (with_it, without):
        dataset = resolver.dataset_by_uuid(UUID(uuid), BASE_URI)
        resolver.item_url(dataset, HELLO, alone)
        found += [resolver.hash_overlay(dataset) for _ in range(2)]

    assert found[0] is not None
    assert json.loads(found[0]) == overlays[hash_overlay.NAME]
    assert found[1:] == [found[0], None, None]
    assert upstream.asked("/signed-urls/") == 2


def test_url_of_the_overlay_that_the_store_refused_is_asked_for_anew(
    upstream: QuirkyServer, resolver: Resolver, no_waits: None
) -> None:
    uuid = str(uuid_module.uuid4())
    upstream.add(uuid, CONTENTS, **{**OTHERS, "overlays": {hash_overlay.NAME: {}}})
    dataset = resolver.dataset_by_uuid(UUID(uuid), BASE_URI)
    resolver.item_url(dataset, HELLO, alone)
    upstream.store_faults = [says(403, b"<Error><Code>AccessDenied</Code></Error>")]

    assert resolver.hash_overlay(dataset) == b"{}"
    assert upstream.asked("/signed-urls/") == 2


def test_server_that_has_hashes_as_an_object_is_not_asked_for_an_overlay(
    hashing: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    assert resolver.hash_overlay(dataset) is None
    assert hashing.asked("/signed-urls/") == 0


def test_what_is_known_of_datasets_without_block_hashes_is_bounded(
    hashing: QuirkyServer, resolver: Resolver, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "MAX_WITHOUT", 0)
    hashing.quirks.odd_answer = {"block_hashes_url": None}

    assert [resolver.block_hashes_url(dataset) for _ in range(2)] == [None] * 2
    assert hashing.asked("/signed-urls/") == 2


def test_server_without_the_ability_is_not_asked_for_block_hashes(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    assert resolver.block_hashes_url(dataset) is None
    assert quirky.asked("/signed-urls/") == 0


def test_block_hashes_of_a_dataset_that_is_not_there_are_an_error(
    hashing: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    unknown = replace(dataset, uri=BackendURI(f"{dataset.uri[:-1]}x"))

    with pytest.raises(NotFound):
        resolver.block_hashes_url(unknown)
