"""The items of a manifest are the same, whether they come from its index or from all of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.errors import DserverfsError, IntegrityError, NotFound, ProtocolError
from dserverfs.base.model import Dataset, DserverURI, Identifier, identifier_of
from dserverfs.catalogue.catalogue import Catalogue
from dserverfs.catalogue.items import ManifestItems, parse_manifest
from dserverfs.catalogue.offline import KeptAnswers
from dserverfs.remote.api import Resolver
from tests.support.quirky_server import CONTENTS

pytest_plugins = ["tests.support.resolver_fixtures"]


@pytest.fixture
def catalogue(resolver: Resolver, tmp_path: Path) -> Iterator[Catalogue]:
    made = Catalogue(KeptAnswers(resolver, tmp_path), "server", tmp_path)
    yield made
    made.close()


def entry(relpath: str, **others: Any) -> dict[str, Any]:
    return {"relpath": relpath, "size_in_bytes": 1, "hash": "00", "utc_timestamp": 0.0, **others}


def manifest_of(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"items": {identifier_of(str(each["relpath"])): each for each in entries}}


def test_index_and_whole_manifest_have_the_same_items(
    catalogue: Catalogue, dataset: Dataset
) -> None:
    indexed = dict(catalogue.contents(dataset))
    uri = catalogue.uri_of(dataset)
    whole = ManifestItems(dataset, uri, catalogue.parsed_manifest(dataset))

    assert set(indexed) == set(CONTENTS)
    for relpath, content in indexed.items():
        item = whole.item(identifier_of(relpath))
        other = whole.content(item)
        for name in ("key", "identifier", "size_in_bytes", "hash_function", "hash", "label"):
            assert getattr(content, name) == getattr(other, name)
        assert item.relpath == relpath
        assert (item.size_in_bytes, item.hash) == (content.size_in_bytes, content.hash)
        for each in (content, other):
            assert each.neighbours(1) == [content.identifier]
            assert set(each.neighbours(9)) == set(whole.identifiers)


def test_uri_names_a_dataset_among_those_of_all_servers(
    catalogue: Catalogue, dataset: Dataset
) -> None:
    assert catalogue.uri_of(dataset) == DserverURI("server", dataset.base_uri, dataset.uuid)


def test_neighbours_in_a_manifest_are_the_nearest_ones(dataset: Dataset) -> None:
    manifest = manifest_of(*(entry(str(number)) for number in range(9)))
    items = ManifestItems(dataset, DserverURI("server"), manifest)
    middle = items.content(items.item(items.identifiers[4]))

    assert list(middle.neighbours(3)) == [items.identifiers[place] for place in (4, 3, 5)]


def test_item_that_is_not_in_the_manifest_is_not_found(dataset: Dataset) -> None:
    items = ManifestItems(dataset, DserverURI("server"), manifest_of(entry("a")))

    with pytest.raises(NotFound, match="has no item nothing"):
        items.item(Identifier("nothing"))
    with pytest.raises(NotFound, match="has no item nothing"):
        items.size(Identifier("nothing"))


@pytest.mark.parametrize(("size", "counted"), [(5, 5), (-1, 0), ("5", 0), (None, 0)])
def test_size_that_no_item_can_have_counts_as_none(
    dataset: Dataset, size: object, counted: int
) -> None:
    manifest = manifest_of(entry("a", size_in_bytes=size))

    items = ManifestItems(dataset, DserverURI("server"), manifest)

    assert items.size(identifier_of("a")) == counted


@pytest.mark.parametrize(
    ("manifest", "error"),
    [
        ("{", ProtocolError),
        ("[]", ProtocolError),
        ('{"items": []}', ProtocolError),
        (json.dumps({"items": {"x": entry("a")}}), IntegrityError),
        (json.dumps(manifest_of(entry("../a"))), IntegrityError),
        (json.dumps({"items": {"x": None}}), IntegrityError),
    ],
)
def test_manifest_that_dtool_must_not_use_is_refused(
    dataset: Dataset, manifest: str, error: type[DserverfsError]
) -> None:
    with pytest.raises(error, match=dataset.uri):
        parse_manifest(dataset, manifest.encode())
