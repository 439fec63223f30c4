"""Hashes of blocks from an overlay: fetched once, for the right item, and from the right source."""

from __future__ import annotations

import base64
import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dserverfs.base.block_hashes import HASH_BYTES
from dserverfs.base.errors import DserverfsError, IntegrityError, NotFound, NotStored, Unreachable
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.base.model import BackendURI, Dataset, Identifier
from dserverfs.reading import hash_overlays
from dserverfs.reading.hash_overlays import FirstOf, HashOverlays
from dserverfs.remote.signed_urls import SignedURL
from tests.support.reading_world import DATASET

BLOCKS = 5
MD5 = "0123456789abcdef" * 2
HASHES = random.Random(3).randbytes(BLOCKS * HASH_BYTES)
RIGHT = f"{MD5}:{base64.b64encode(HASHES).decode()}"
OTHER = Identifier("b" * 40)


class Overlays:
    """Gives each dataset the same overlay, and counts."""

    def __init__(self, **texts: Any) -> None:
        self.content: bytes | None = json.dumps(texts).encode()
        self.failure: DserverfsError | None = None
        self.asked = 0
        self.urls_asked = 0

    def item_url(self, *question: object) -> SignedURL:
        self.urls_asked += 1
        return SignedURL("", 0.0)

    def forget_url(self, dataset: Dataset, identifier: Identifier, url: SignedURL) -> None:
        raise AssertionError

    def forget_host(self, url: SignedURL) -> None:
        raise AssertionError

    def hash_overlay(self, dataset: Dataset) -> bytes | None:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return self.content


def item(identifier: str = "a", dataset: Dataset = DATASET, md5: str = MD5) -> ItemContent:
    return ItemContent(
        key="item",
        dataset=dataset,
        identifier=Identifier(identifier),
        size_in_bytes=BLOCKS * BLOCK_SIZE,
        hash_function="md5sum_hexdigest",
        hash=md5,
        neighbours=lambda limit: [],
        hashes_place=lambda: None,
    )


def test_hashes_of_all_items_come_with_one_overlay() -> None:
    source = Overlays(a=RIGHT, b=RIGHT)
    overlays = HashOverlays(source)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: overlays.fetch(item("ab"[n % 2]), n, 2), range(4)))

    assert found == [HASHES[n * HASH_BYTES : (n + 2) * HASH_BYTES] for n in range(4)]
    assert (source.asked, source.urls_asked) == (1, 4)
    assert overlays.has(DATASET)
    assert source.asked == 1


def test_overlay_is_read_anew_when_it_is_forgotten() -> None:
    source = Overlays(a=RIGHT)
    overlays = HashOverlays(source)

    for _ in range(2):
        overlays.fetch(item(), 0, 1)
        overlays.forget(DATASET)

    assert source.asked == 2


@pytest.mark.parametrize("content", [None, b"{}", b'{"a": null}', b'{"a": 5}', b'{"b": "c:d"}'])
def test_item_that_is_not_in_it_has_none(content: bytes | None) -> None:
    source = Overlays()
    source.content = content

    others_have_some = content == b'{"b": "c:d"}'

    assert HashOverlays(source).fetch(item(), 0, 1) == (b"" if others_have_some else None)


@pytest.mark.parametrize("error", [NotFound("gone"), NotStored("gone")])
def test_overlay_that_is_gone_has_none(error: DserverfsError) -> None:
    source = Overlays()
    source.failure = error

    assert HashOverlays(source).fetch(item(), 0, 1) is None
    assert not HashOverlays(source).has(DATASET)


def test_overlay_that_cannot_be_read_now_is_an_error() -> None:
    source = Overlays()
    source.failure = Unreachable("away")

    with pytest.raises(Unreachable):
        HashOverlays(source).fetch(item(), 0, 1)
    with pytest.raises(Unreachable):
        HashOverlays(source).has(DATASET)


@pytest.mark.parametrize("content", [b"[]", b"<html>", b'{"a": "x"}'])
def test_overlay_of_another_form_is_told(content: bytes) -> None:
    source = Overlays()
    source.content = content

    with pytest.raises(IntegrityError, match="overlay"):
        HashOverlays(source).fetch(item(), 0, 1)


def test_hashes_of_another_content_are_told() -> None:
    with pytest.raises(IntegrityError, match="of another item"):
        HashOverlays(Overlays(a=RIGHT)).fetch(item(md5="f" * 32), 0, 1)


def test_memory_is_bounded_and_the_last_used_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Overlays(a=RIGHT)
    overlays = HashOverlays(source)
    datasets = [
        Dataset(DATASET.uuid, BackendURI(f"s3://b/{n}"), "s3://b", "n", "c", 0.0, 0.0, 1, 1)
        for n in range(3)
    ]
    monkeypatch.setattr(hash_overlays, "MAX_KEPT_BYTES", 2 * (len(RIGHT) + 250))

    for dataset in (*datasets[:2], datasets[0], datasets[2]):
        overlays.fetch(item(dataset=dataset), 0, 1)
    asked = source.asked
    overlays.fetch(item(dataset=datasets[0]), 0, 1)
    assert (asked, source.asked) == (3, 3)
    overlays.fetch(item(dataset=datasets[1]), 0, 1)
    assert source.asked == 4


def test_first_source_that_has_hashes_is_taken() -> None:
    none, first, second = Overlays(b=RIGHT), Overlays(a=RIGHT), Overlays(a=RIGHT)
    sources = FirstOf([HashOverlays(each) for each in (none, first, second)])

    assert sources.fetch(item(), 1, 1) == HASHES[HASH_BYTES : 2 * HASH_BYTES]
    assert (none.asked, first.asked, second.asked) == (1, 1, 0)
    sources.forget(DATASET)
    sources.fetch(item(), 0, 1)
    assert first.asked == 2
    assert FirstOf([HashOverlays(none)]).fetch(item(), 0, 1) == b""
    assert FirstOf([HashOverlays(Overlays())]).fetch(item(), 0, 1) is None


def test_any_source_that_has_hashes_counts() -> None:
    none, some = HashOverlays(Overlays()), HashOverlays(Overlays(a=RIGHT))

    assert FirstOf([none, some]).has(DATASET)
    assert not FirstOf([none, none]).has(DATASET)
