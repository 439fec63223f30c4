"""Hashes out of the object of a dataset, which has to be that of its manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dserverfs.base.block_hashes import HASH_BYTES, HEAD_BYTES, digest_of
from dserverfs.base.errors import DserverfsError, IntegrityError
from dserverfs.base.items import BLOCK_SIZE, HashesPlace, ItemContent
from dserverfs.base.model import BackendURI, Dataset, Identifier
from dserverfs.reading import hash_objects
from dserverfs.reading.hash_objects import HashObjects
from dserverfs.remote.objects import Storage
from dserverfs.remote.signed_urls import SignedURL
from tests.support.faulty_store import Fault, FaultyStore, Handler, faulty_store, refuse
from tests.support.patience import LATE_S
from tests.support.reading_world import DATASET, OneUrl

BLOCKS = 40
ITEMS = [
    (Identifier(hashlib.sha1(bytes([n])).hexdigest()), f"{n:032x}", BLOCKS * BLOCK_SIZE)
    for n in range(5)
]
DIGEST = digest_of(ITEMS)
HASHES = random.Random(1).randbytes(DIGEST.number_of_hashes * HASH_BYTES)
OBJECT = DIGEST.head + HASHES


class Urls(OneUrl):
    """Signs the one object, or says that there is none."""

    is_there = True
    is_known = False

    def block_hashes_url(self, dataset: Dataset) -> SignedURL | None:
        return self.signed() if self.is_there else None

    def knows_block_hashes(self, dataset: Dataset) -> bool:
        return self.is_known


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    with faulty_store(OBJECT) as store:
        yield store


@pytest.fixture
def urls(store: FaultyStore) -> Urls:
    return Urls(store)


@pytest.fixture
def objects(urls: Urls) -> Iterator[HashObjects]:
    storage = Storage()
    yield HashObjects(urls, storage)
    storage.close()


def item(number: int, **other: Any) -> ItemContent:
    """Return the item with that number in the order of the object."""
    identifier, hash, size_in_bytes = sorted(ITEMS)[number]
    place = HashesPlace(DIGEST.head, DIGEST.size_in_bytes, number * BLOCKS)
    content = ItemContent(
        key="item",
        dataset=DATASET,
        identifier=identifier,
        size_in_bytes=size_in_bytes,
        hash_function="md5sum_hexdigest",
        hash=hash,
        neighbours=lambda limit: [],
        hashes_place=lambda: place,
    )
    return dataclasses.replace(content, **other)


def hashes_of(number: int, first: int, count: int) -> bytes:
    start = (number * BLOCKS + first) * HASH_BYTES
    return HASHES[start : start + count * HASH_BYTES]


def ranges(store: FaultyStore) -> list[str]:
    return [request["Range"].removeprefix("bytes=") for request in store.requests]


ALL = [(3, 0, BLOCKS), (0, 0, 1), (4, 7, 20), (1, 39, 1), (2, 0, BLOCKS)]


@pytest.mark.parametrize("chunk_bytes", [256 * 1024, 128, 1000, 2048])
def test_hashes_of_any_item_are_a_range(
    store: FaultyStore, objects: HashObjects, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(hash_objects, "CHUNK_BYTES", chunk_bytes)

    for number, first, count in ALL:
        assert objects.fetch(item(number), first, count) == hashes_of(number, first, count)

    asked = [int(range.partition("-")[0]) for range in ranges(store)]
    assert len(asked) <= len({*asked}) + 1, "a chunk is fetched once, beside the head"
    if chunk_bytes > len(OBJECT):
        assert len(asked) == 1, "a small object is fetched once, whole"


@pytest.mark.parametrize("is_known", [True, False])
def test_url_that_is_known_waits_for_no_other(
    objects: HashObjects, urls: Urls, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    asked = []
    monkeypatch.setattr(urls, "item_url", lambda *question: asked.append(question))
    urls.is_known = is_known

    assert objects.fetch(item(0), 0, 1) == hashes_of(0, 0, 1)

    assert len(asked) == (0 if is_known else 1)


def test_chunk_is_fetched_once_for_all_who_ask_at_once(
    store: FaultyStore, objects: HashObjects
) -> None:
    def late(handler: Handler) -> None:
        assert store.released.wait(LATE_S)
        handler.serve()

    store.faults.append(late)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(objects.fetch, item(number % 5), 0, 1) for number in range(8)]
        store.released.set()

        assert [each.result() for each in asked] == [hashes_of(n % 5, 0, 1) for n in range(8)]
    assert len(store.requests) == 1


def test_what_has_none_is_not_asked_for(
    store: FaultyStore, objects: HashObjects, urls: Urls
) -> None:
    assert objects.fetch(item(0, hashes_place=lambda: None), 0, 1) is None
    urls.is_there = False
    assert objects.fetch(item(0), 0, 1) is None
    assert store.requests == []


WRONG: dict[str, Callable[[FaultyStore], None]] = {
    "short": lambda store: setattr(store, "content", OBJECT[:-1]),
    "only a head": lambda store: setattr(store, "content", OBJECT[:HEAD_BYTES]),
    "empty": lambda store: setattr(store, "content", b""),
    "longer": lambda store: setattr(store, "content", OBJECT + bytes(32)),
    "of no kind": lambda store: setattr(store, "content", bytes(len(OBJECT))),
    "of another manifest": lambda store: setattr(
        store, "content", OBJECT[:32] + bytes(32) + OBJECT[HEAD_BYTES:]
    ),
    "of another block size": lambda store: setattr(
        store, "content", OBJECT[:20] + (4096).to_bytes(4, "big") + OBJECT[24:]
    ),
}


@pytest.mark.parametrize("make_wrong", WRONG.values(), ids=WRONG)
def test_object_that_is_not_the_manifests_gives_no_hashes(
    store: FaultyStore, objects: HashObjects, make_wrong: Callable[[FaultyStore], None]
) -> None:
    make_wrong(store)

    with pytest.raises(DserverfsError):
        objects.fetch(item(1), 0, 5)

    store.content, store.etag = OBJECT, '"another"'
    assert objects.fetch(item(1), 0, 5) == hashes_of(1, 0, 5), "nothing of it is remembered"


def test_object_that_is_replaced_is_looked_at_anew(
    store: FaultyStore, objects: HashObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_objects, "CHUNK_BYTES", 1024)
    assert objects.fetch(item(1), 0, 5) == hashes_of(1, 0, 5)
    store.content, store.etag = OBJECT[:32] + bytes(len(OBJECT) - 32), '"another"'

    for _ in range(2):
        with pytest.raises(IntegrityError):
            objects.fetch(item(4), 30, 5)


def test_dataset_that_is_made_again_with_its_uuid_has_other_hashes(
    store: FaultyStore, objects: HashObjects
) -> None:
    assert objects.fetch(item(1), 0, 5) == hashes_of(1, 0, 5)
    others = digest_of([(identifier, f"{size:032x}", size) for identifier, _, size in ITEMS])
    place = HashesPlace(others.head, others.size_in_bytes, BLOCKS)

    with pytest.raises(IntegrityError, match="another manifest"):
        objects.fetch(item(1, hashes_place=lambda: place), 0, 5)

    store.content, store.etag = others.head + bytes(len(HASHES)), '"another"'
    assert objects.fetch(item(1, hashes_place=lambda: place), 0, 5) == bytes(5 * HASH_BYTES)


def test_object_that_is_gone_gives_none(store: FaultyStore, objects: HashObjects) -> None:
    store.faults.append(refuse(404, "NoSuchKey"))

    assert objects.fetch(item(1), 0, 5) is None


def test_url_that_has_expired_is_asked_for_anew(
    store: FaultyStore, objects: HashObjects, urls: Urls
) -> None:
    store.faults.append(refuse(403, "AccessDenied"))

    assert objects.fetch(item(1), 0, 5) == hashes_of(1, 0, 5)

    assert urls.forgotten == 1


@pytest.mark.parametrize(
    ("content", "fault", "has"),
    [
        (OBJECT, None, True),
        (b"x", None, True),
        (b"", None, False),
        (OBJECT, refuse(404, "NoSuchKey"), False),
    ],
)
def test_dataset_has_hashes_if_there_is_an_object_with_some(
    store: FaultyStore, objects: HashObjects, content: bytes, fault: Fault | None, has: bool
) -> None:
    store.content = content
    store.faults.append(fault)

    assert objects.has(DATASET) is has


def test_dataset_has_no_hashes_if_no_url_leads_to_any(
    store: FaultyStore, objects: HashObjects, urls: Urls
) -> None:
    urls.is_there = False

    assert objects.has(DATASET) is False
    assert not store.requests


def test_chunks_in_memory_are_those_used_last(
    store: FaultyStore, objects: HashObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_objects, "CHUNK_BYTES", BLOCKS * HASH_BYTES)
    monkeypatch.setattr(hash_objects, "MAX_CHUNKS", 2)

    def asked(number: int) -> int:
        """Return how many chunks are fetched for the hashes at the end of an item."""
        before = len(store.requests)
        assert objects.fetch(item(number), BLOCKS - 3, 1) == hashes_of(number, BLOCKS - 3, 1)
        return len(store.requests) - before

    assert [asked(0), asked(1), asked(0), asked(2)] == [1, 1, 0, 1]
    assert [asked(0), asked(2), asked(1)] == [0, 0, 1]


def test_object_whose_head_was_compared_is_known_for_a_while(
    store: FaultyStore, objects: HashObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_objects, "CHUNK_BYTES", BLOCKS * HASH_BYTES)
    monkeypatch.setattr(hash_objects, "MAX_CHUNKS", 0)
    monkeypatch.setattr(hash_objects, "MAX_KNOWN", 2)
    datasets = [dataclasses.replace(DATASET, uri=BackendURI(f"s3://b/{n}")) for n in range(3)]

    def asked(number: int) -> int:
        """Return how many requests the hashes of an item cost that are not at the beginning."""
        before = len(store.requests)
        content = item(3, dataset=datasets[number])
        assert objects.fetch(content, BLOCKS - 3, 1) == hashes_of(3, BLOCKS - 3, 1)
        return len(store.requests) - before

    assert [asked(0), asked(1), asked(0), asked(2)] == [2, 2, 1, 2]
    assert [asked(1), asked(2), asked(0)] == [1, 1, 2]
    objects.forget(datasets[2])
    assert [asked(0), asked(2)] == [1, 2]


def test_no_chunk_is_fetched_behind_the_last_hash(
    store: FaultyStore, objects: HashObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_objects, "CHUNK_BYTES", 10 * HASH_BYTES)
    in_first_chunk = 10 - HEAD_BYTES // HASH_BYTES

    assert objects.fetch(item(0), 0, in_first_chunk) == hashes_of(0, 0, in_first_chunk)
    assert len(store.requests) == 1
    objects.fetch(item(0), 0, in_first_chunk + 1)
    assert len(store.requests) == 2


def test_object_that_is_replaced_by_the_same_one_is_read_on(
    store: FaultyStore, objects: HashObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_objects, "CHUNK_BYTES", 1024)
    objects.fetch(item(1), 0, 5)
    store.etag = '"another"'

    with pytest.raises(IntegrityError):
        objects.fetch(item(4), 30, 5)
    assert objects.fetch(item(4), 30, 5) == hashes_of(4, 30, 5)


def test_what_is_forgotten_of_a_dataset_is_kept_of_another(
    store: FaultyStore, objects: HashObjects
) -> None:
    other = dataclasses.replace(DATASET, uri=BackendURI("s3://b/other"))
    for dataset in (DATASET, other):
        objects.fetch(item(1, dataset=dataset), 0, 5)

    objects.forget(DATASET)

    objects.fetch(item(2, dataset=other), 0, 5)
    assert len(store.requests) == 2
    objects.fetch(item(2), 0, 5)
    assert len(store.requests) == 3


def test_failure_is_told_to_those_who_wait_and_the_next_asks_anew(
    store: FaultyStore, objects: HashObjects
) -> None:
    asked = threading.Event()

    def late(handler: Handler) -> None:
        asked.set()
        assert store.released.wait(LATE_S)
        refuse(412, "PreconditionFailed")(handler)

    store.faults.append(late)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(objects.fetch, item(1), 0, 1)
        assert asked.wait(LATE_S)
        key = next(iter(objects._coming))
        second = objects._coming[key]
        store.released.set()

        assert isinstance(first.exception(LATE_S), DserverfsError)
        assert second.exception(LATE_S) is first.exception()
    assert objects.fetch(item(1), 0, 5) == hashes_of(1, 0, 5)
