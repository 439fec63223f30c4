"""Manifests that are another one's, or lack items of the listing: a mirror would delete these."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.errors import ProtocolError
from dserverfs.base.model import Dataset
from dserverfs.catalogue.manifests import Manifests
from dserverfs.catalogue.offline import KeptAnswers
from dserverfs.catalogue.refreshed import loaded
from dserverfs.remote.api import Resolver
from tests.support.quirky_server import CONTENTS, QuirkyServer, says

pytest_plugins = ["tests.support.resolver_fixtures"]

NUMBER = len(CONTENTS)


@pytest.fixture
def manifests(resolver: Resolver, tmp_path: Path) -> Iterator[Manifests]:
    answers = KeptAnswers(resolver, tmp_path / "kept")
    made = Manifests(answers, "server", tmp_path / "kept", explain=lambda dataset, error: error)
    yield made
    made.close()


def sent(manifests: Manifests, dataset: Dataset) -> dict[str, Any]:
    """Return the manifest that the server has."""
    file = loaded(lambda: manifests.file(dataset))
    manifest: dict[str, Any] = json.loads(file if isinstance(file, bytes) else file.read_bytes())
    manifests.drop_file(dataset)
    return manifest


def without(manifest: dict[str, Any], number: int) -> dict[str, Any]:
    items = [*manifest["items"].items()][number:]
    return {**manifest, "items": dict(items)}


def number_in(manifests: Manifests, ask: str, dataset: Dataset) -> int:
    if ask == "index":
        return loaded(lambda: manifests.index(dataset)).number_of_items
    return len(sent(manifests, dataset)["items"])


asks = pytest.mark.parametrize("ask", ["index", "file"])


@asks
@pytest.mark.parametrize("lacking", [1, NUMBER])
def test_manifest_that_lacks_items_is_refused_and_asked_for_anew(
    quirky: QuirkyServer,
    manifests: Manifests,
    dataset: Dataset,
    ask: str,
    lacking: int,
) -> None:
    short = without(sent(manifests, dataset), lacking)
    quirky.faults = [says(200, short)] * 2

    with pytest.raises(ProtocolError, match=f"{NUMBER} items.*manifest of {NUMBER - lacking}"):
        number_in(manifests, ask, dataset)

    assert number_in(manifests, ask, dataset) == NUMBER, "it is not believed from now on"
    quirky.faults = [says(200, short)]
    manifests.drop_file(dataset)
    assert number_in(manifests, ask, dataset) == NUMBER, "one wrong answer is not seen"


@pytest.mark.expects_log("made anew.*server lists it with")
def test_index_of_a_short_manifest_that_was_kept_is_made_anew(
    manifests: Manifests, dataset: Dataset, quirky: QuirkyServer
) -> None:
    short = without(sent(manifests, dataset), 1)
    unknown = replace(dataset, number_of_items=None)
    quirky.faults = [says(200, short)]
    assert number_in(manifests, "index", unknown) == NUMBER - 1
    manifests.drop_file(dataset)
    manifests._indexes.clear()  # as the next process

    assert number_in(manifests, "index", dataset) == NUMBER


@asks
@pytest.mark.parametrize("listed", [None, 0, NUMBER - 1])
def test_listing_that_has_fewer_or_no_number_hides_nothing(
    manifests: Manifests, dataset: Dataset, ask: str, listed: int | None
) -> None:
    assert number_in(manifests, ask, replace(dataset, number_of_items=listed)) == NUMBER


def test_dataset_that_is_made_again_with_its_uuid_has_its_new_manifest(
    quirky: QuirkyServer, manifests: Manifests, dataset: Dataset
) -> None:
    """Somebody deletes it, corrects it on his disk and freezes it anew."""

    def relpaths(one: Dataset) -> set[str]:
        file = loaded(lambda: manifests.file(one))
        content = file if isinstance(file, bytes) else file.read_bytes()
        assert loaded(lambda: manifests.index(one)) is not None
        return {item["relpath"] for item in json.loads(content)["items"].values()}

    assert relpaths(dataset) == set(CONTENTS)
    items = quirky.described[dataset.uri]["manifest"]["items"]
    quirky.described[dataset.uri]["manifest"]["items"] = dict([*items.items()][:1])

    # As another route of the server tells the date.
    assert relpaths(replace(dataset, frozen_at=dataset.frozen_at + 0.2)) == set(CONTENTS)
    anew = replace(dataset, frozen_at=dataset.frozen_at + 60, number_of_items=1)
    assert relpaths(anew) < set(CONTENTS)
