"""What the freezer asks of a registered dataset, and where it becomes known; without a server."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dserverfs.base.errors import (
    Cancelled,
    Conflict,
    DserverfsError,
    IntegrityError,
    ProtocolError,
    Unreachable,
)
from dserverfs.base.items import ItemContent, content_key
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import UUID, BackendURI, Dataset, Identifier, identifier_of
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.writing import registry
from dserverfs.writing.registry import Registration
from tests.support.local_uploads import local_dataset
from tests.support.patience import LATE_S

BASE = "s3://bucket"
STAGED = UUID("0" * 8 + "-0000-0000-0000-" + "0" * 12)
RELPATHS = ("a", "b", "sub/c")


class Bench:
    """A registration, and all it asks: a server, its store, and what is listed."""

    def __init__(self, directory: Path, cache: BlockCache | None = None) -> None:
        self.local = local_dataset(
            directory / "items", {relpath: relpath.encode() for relpath in RELPATHS}
        )
        uuid = UUID(self.local.admin_metadata["uuid"])
        uri = BackendURI(f"{BASE}/{uuid}")
        self.dataset = Dataset(uuid, uri, BASE, "uploaded", "c", 0.0, 0.0, len(RELPATHS), 7)
        self.is_registered = True
        self.readme = self.local.readme
        self.tags = tuple(self.local.tags)
        self.annotations: Mapping[str, str] = {
            name: json.dumps(value) for name, value in self.local.annotations.items()
        }
        self.overlays: Mapping[str, str] = {}
        self.listed: list[Dataset] = [self.dataset]
        self.known: list[Dataset] = []
        self.away: DserverfsError | None = None
        self.learned: list[tuple[Dataset, UUID]] = []
        self.looked_for: list[ItemContent] = []
        self.wrong: dict[Identifier, DserverfsError] = {}
        self.stop = threading.Event()
        parts: Any = SimpleNamespace(
            resolver=SimpleNamespace(
                dataset_by_uuid=self._by_uuid,
                metadata=lambda dataset: self,
                readme=lambda dataset: self.readme,
                datasets=self._datasets,
            ),
            uploader=SimpleNamespace(is_registered=lambda local, uri: self.is_registered),
            catalogue=SimpleNamespace(
                known_datasets=lambda: self.known,
                learn=lambda dataset, as_staged: self.learned.append((dataset, as_staged)),
            ),
            stored=SimpleNamespace(require=self._require),
        )
        self.registration = Registration(
            "server", parts.resolver, parts.uploader, parts.catalogue, cache, parts.stored
        )

    def registered(self, taken: Container[object] = ()) -> Dataset:
        return self.registration.registered(self.local, BASE, taken, self.stop)

    def _by_uuid(self, uuid: UUID, base_uri: str) -> Dataset:
        assert (uuid, base_uri) == (self.dataset.uuid, BASE)
        return self.dataset

    def _datasets(self, base_uri: str) -> list[Dataset]:
        assert base_uri == BASE
        if self.away is not None:
            raise self.away
        return self.listed

    def _require(self, content: ItemContent) -> None:
        self.looked_for.append(content)
        if content.identifier in self.wrong:
            raise self.wrong[content.identifier]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# Registered


@pytest.mark.parametrize("taken", [(), ("a",), ("a", "sub/c"), RELPATHS])
@pytest.mark.parametrize("together", [1, 2, 1000])
def test_store_is_asked_for_each_item_that_it_did_not_take(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, taken: tuple[str, ...], together: int
) -> None:
    monkeypatch.setattr(registry, "_TOGETHER", together)

    assert bench.registered({identifier_of(relpath) for relpath in taken}) is bench.dataset

    asked = {content.identifier: content for content in bench.looked_for}
    assert len(bench.looked_for) == len(asked)
    assert asked.keys() == {identifier_of(each) for each in RELPATHS if each not in taken}
    for identifier, content in asked.items():
        item = bench.local.items[identifier]
        assert (content.size_in_bytes, content.hash) == (item.size_in_bytes, item.hash)
        assert content.hash_function == bench.local.hash_function
        assert content.dataset is bench.dataset


def test_item_is_looked_for_together_with_those_after_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_NEIGHBOURS", 2)

    bench.registered()

    order = list(bench.local.items)
    for content in bench.looked_for:
        place = order.index(content.identifier)
        assert list(content.neighbours(10)) == order[place : place + 2]
        assert list(content.neighbours(1)) == [content.identifier]


@pytest.mark.parametrize("relpath", RELPATHS)
def test_item_that_the_store_does_not_have_is_named(bench: Bench, relpath: str) -> None:
    bench.wrong[identifier_of(relpath)] = IntegrityError("the store has nothing")

    with pytest.raises(IntegrityError, match=rf"^{relpath}: .*the store has nothing.*kept"):
        bench.registered()


def test_store_that_cannot_be_asked_is_told_of(bench: Bench) -> None:
    bench.wrong[identifier_of("b")] = Unreachable("away")

    with pytest.raises(Unreachable, match="away"):
        bench.registered()


def test_no_more_is_looked_for_after_a_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()
    first, second, _ = bench.local.items
    bench.wrong[first] = Unreachable("away")

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            may_go_on.set()
            super().shutdown(wait=wait)

    def require(content: ItemContent) -> None:
        assert content.identifier == first or may_go_on.wait(LATE_S)
        bench._require(content)

    monkeypatch.setattr(registry, "LOOKING_THREADS", 1)
    monkeypatch.setattr(registry, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(bench.registration._stored, "require", require)

    with pytest.raises(Unreachable):
        bench.registered()

    assert {content.identifier for content in bench.looked_for} <= {first, second}


def test_dataset_without_its_manifest_is_not_registered(bench: Bench) -> None:
    bench.is_registered = False

    with pytest.raises(IntegrityError, match="without a manifest"):
        bench.registered()
    assert not bench.looked_for


def test_end_of_the_mount_ends_the_looking(bench: Bench) -> None:
    bench.stop.set()

    with pytest.raises(Cancelled):
        bench.registered()
    assert not bench.looked_for


# The same metadata


def test_same_metadata_are_no_conflict(bench: Bench) -> None:
    bench.registration.require_same(bench.local, BASE)


def give(**other: Any) -> Callable[[Bench], None]:
    """Have the server, or the dataset here, have something else."""

    def change(bench: Bench) -> None:
        for name, value in other.items():
            if name.startswith("our_"):
                ours = {name.removeprefix("our_"): value}
                bench.local = bench.local._replace(**ours)
            else:
                setattr(bench, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (give(readme=b"another"), "README.yml"),
        (give(tags=()), "tags"),
        (give(tags=("a-tag", "more")), "tags"),
        (give(annotations={"n": "6"}), "annotation n"),
        (give(annotations={}), "annotation n"),
        (give(annotations={"n": "5", "m": "1"}), "annotation m"),
        (give(overlays={"o": "{}"}), "overlay o"),
        (give(our_overlays={"o": {"x": 1}}), "overlay o"),
        (give(our_overlays={"o": {"x": 1}}, overlays={"o": '{"x": 2}'}), "overlay o"),
        (give(readme=b"another", tags=(), annotations={"z": "1"}), "n, annotation z"),
    ],
)
def test_what_differs_from_the_registered_one_is_named(
    bench: Bench, change: Callable[[Bench], None], said: str
) -> None:
    change(bench)

    with pytest.raises(Conflict, match=rf"not the same .*{said}: change") as failure:
        bench.registration.require_same(bench.local, BASE)
    assert failure.value.uri == bench.dataset.uri


def test_order_of_tags_and_spaces_of_json_are_no_difference(bench: Bench) -> None:
    give(our_tags=["x", "a-tag"], our_overlays={"o": {"x": [1, 2]}})(bench)
    give(tags=("a-tag", "x"), overlays={"o": ' {"x":[1,2] }'})(bench)

    bench.registration.require_same(bench.local, BASE)


def test_annotation_that_is_no_json_is_told_of(bench: Bench) -> None:
    bench.annotations = {"n": "{"}

    with pytest.raises(ProtocolError, match="annotation n of"):
        bench.registration.require_same(bench.local, BASE)


# Known from then on


@pytest.mark.parametrize("is_away", [False, True])
def test_namesake_in_the_same_base_uri_is_said(bench: Bench, is_away: bool) -> None:
    other = replace(bench.dataset, uuid=UUID("f" * 36))
    elsewhere = replace(other, base_uri="s3://elsewhere")
    named_otherwise = replace(other, name="another")
    if is_away:
        bench.away = Unreachable("away")
        bench.listed, bench.known = [], [bench.dataset, elsewhere, named_otherwise]
    else:
        bench.listed, bench.known = [bench.dataset, named_otherwise], [other]

    alone = bench.registration.learn(bench.dataset, STAGED)
    (bench.known if is_away else bench.listed).append(other)
    beside = bench.registration.learn(bench.dataset, STAGED)

    assert alone is None
    assert beside is not None
    assert f"uploaded~{bench.dataset.uuid[:8]}" in beside
    assert bench.learned == [(bench.dataset, STAGED)] * 2


def test_bytes_are_taken_over_into_the_cache_if_there_is_one(tmp_path: Path) -> None:
    Bench(tmp_path / "none").registration.adopt(*adopted(Bench(tmp_path / "none")))
    cache = BlockCache(tmp_path / "blocks")
    cache.open()
    bench = Bench(tmp_path / "one", cache)

    bench.registration.adopt(*adopted(bench))

    for item in bench.local.items.values():
        key = content_key(bench.local.hash_function, item.hash, item.size_in_bytes)
        assert cache.load(BlockKey(key, 0), item.size_in_bytes) is not None
    cache.close()


def adopted(bench: Bench) -> tuple[Dataset, LocalDataset, threading.Event]:
    for item in bench.local.items.values():
        os.utime(bench.local.path_of(item), ns=(item.mtime_ns, item.mtime_ns))
    return bench.dataset, bench.local, bench.stop
