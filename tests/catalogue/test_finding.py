"""Datasets are found that fit all conditions: by a server's search, and by what it lists."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dserverfs.base.conditions import Conditions, Findings
from dserverfs.base.errors import (
    DserverfsError,
    NotAuthenticated,
    NotFound,
    PermissionDenied,
    ProtocolError,
    Unreachable,
)
from dserverfs.base.model import UUID, DserverURI, identifier_of
from dserverfs.catalogue.finding import MAX_RELPATHS
from dserverfs.catalogue.refreshed import loaded
from dserverfs.client import Client
from dserverfs.remote.server_index import ServerIndex
from tests.support.findable import ALPHA, BETA, DATASETS, EXAMPLES, GAMMA, md5, put_on
from tests.support.kernel_questions import client_for
from tests.support.quirky_server import BASE_URI, TOKEN, QuirkyServer, quirky_server, says
from tests.support.servers import ServerHandle, new_uuid

pytest_plugins = ["tests.support.resolver_fixtures"]


class Seeker:
    """A client of one server, and the base URI that has the datasets."""

    def __init__(self, client: Client, uri: DserverURI) -> None:
        self.client = client
        self.uri = uri

    def find(self, conditions: Conditions, uri: DserverURI | None = None) -> Findings:
        return self.client.catalogue.finder.find(uri or self.uri, conditions)

    def names(self, conditions: Conditions, uri: DserverURI | None = None) -> list[str]:
        found, failed = self.find(conditions, uri)
        assert failed == []
        return [one.dataset.name for one in found]


@pytest.fixture(scope="module", params=["real", "quirky"])
def seeker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Seeker]:
    directory = tmp_path_factory.mktemp("seeker")
    if request.param == "real":
        server: ServerHandle = request.getfixturevalue("server")
        uri = DserverURI(DserverURI.parse(server.base_uri).server, put_on(server))
        with client_for(uri, server.token, directory) as client:
            yield Seeker(client, uri)
        return
    with quirky_server() as quirky:
        uri = DserverURI(quirky.url.removeprefix("http://"), put_on(quirky))
        with client_for(uri, TOKEN, directory) as client:
            yield Seeker(client, uri)


@pytest.fixture(params=["by search", "by what is listed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    is_searched = request.param == "by search"
    monkeypatch.setattr(ServerIndex, "is_searched", lambda self: is_searched)


@pytest.fixture
def alone(quirky: QuirkyServer, tmp_path: Path) -> Iterator[Seeker]:
    """A client of a server that a test changes."""
    uri = DserverURI(quirky.url.removeprefix("http://"), put_on(quirky))
    with client_for(uri, TOKEN, tmp_path) as client:
        yield Seeker(client, uri)


@pytest.mark.parametrize("what", EXAMPLES)
def test_same_is_found_by_search_and_by_what_is_listed(
    seeker: Seeker, way: None, what: str
) -> None:
    conditions, names = EXAMPLES[what]

    assert seeker.names(conditions) == names


ONE_OF_EACH_KIND = (
    *("a tag", "a creator", "a word", "any of two words"),
    *("an annotation", "a pattern", "a later date", "a hash"),
)


def test_all_conditions_have_to_hold(alone: Seeker, way: None) -> None:
    kinds = [EXAMPLES[what] for what in ONE_OF_EACH_KIND]
    for (some, names), (others, other_names) in itertools.combinations(kinds, 2):
        both = {
            field.name: getattr(some, field.name) + getattr(others, field.name)
            for field in dataclasses.fields(Conditions)
            if not field.name.startswith("frozen")
        }
        conditions = Conditions(
            frozen_from=max(some.frozen_from, others.frozen_from),
            frozen_before=min(some.frozen_before, others.frozen_before),
            **both,
        )

        assert alone.names(conditions) == [name for name in names if name in other_names]


def test_uuid_names_one_dataset(seeker: Seeker, way: None) -> None:
    beta = seeker.find(EXAMPLES["two hashes"][0]).found[0].dataset
    named = dataclasses.replace(seeker.uri, uuid=beta.uuid)

    assert seeker.names(Conditions(uuids=(beta.uuid,))) == [BETA]
    assert seeker.names(Conditions(uuids=(beta.uuid,), tags=("x",))) == [BETA]
    assert seeker.names(Conditions(uuids=(beta.uuid,), tags=("y",))) == []
    assert seeker.names(Conditions(tags=("x",)), named) == [BETA]
    assert seeker.names(Conditions(uuids=(UUID(new_uuid()),))) == []


def test_items_of_a_hash_are_named(seeker: Seeker) -> None:
    conditions = Conditions(hashes=(md5(b"x"), md5(b"beta")))

    (beta,) = seeker.find(conditions).found

    assert beta.relpaths == ("copy/of/same", "image.tif")


def test_whole_server_is_looked_at(alone: Seeker, way: None) -> None:
    assert alone.names(Conditions(tags=("y",)), DserverURI(alone.uri.server)) == [ALPHA]


def test_base_uri_without_permission_is_told(seeker: Seeker, way: None) -> None:
    with pytest.raises(PermissionDenied, match="s3://nowhere"):
        seeker.find(
            Conditions(tags=("x",)), dataclasses.replace(seeker.uri, base_uri="s3://nowhere")
        )


@pytest.mark.parametrize("seeker", ["real"], indirect=True)
def test_search_knows_stems_and_paths(seeker: Seeker) -> None:
    """What it finds and the fake, and what is listed, do not: see the page about commands."""
    assert seeker.names(Conditions(texts=("plate",))) == [ALPHA]  # of "plates"
    assert seeker.names(Conditions(texts=("annotating",))) == [BETA]
    assert seeker.names(Conditions(texts=("run",))) == [ALPHA]


# Trouble


def test_every_page_of_a_search_is_looked_at(
    alone: Seeker, quirky: QuirkyServer, way: None
) -> None:
    for number in range(201):
        quirky.add(new_uuid(), {}, name=f"many-{number}", tags=["many"], frozen_at=float(number))

    names = alone.names(Conditions(tags=("many",)))

    assert names == [f"many-{number}" for number in reversed(range(201))]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (says(503), Unreachable),
        (says(404), ProtocolError),
        (says(200, {}), ProtocolError),
        (says(401, {"msg": "Token has expired"}), NotAuthenticated),
    ],
)
@pytest.mark.parametrize("route", ["POST /uris", "GET /me"])
def test_trouble_is_no_answer_though_one_is_kept(
    no_waits: None,
    alone: Seeker,
    quirky: QuirkyServer,
    way: None,
    route: str,
    fault: Callable[..., None],
    error: type[DserverfsError],
) -> None:
    alone.client.catalogue.listed(BASE_URI)  # is kept for when the server is away
    quirky.broken[route] = fault

    for conditions in (Conditions(tags=("x",)), Conditions(names=("*",))):
        with pytest.raises(error):
            alone.find(conditions)


def test_dataset_that_cannot_be_looked_into_is_told_beside_the_others(
    alone: Seeker, quirky: QuirkyServer
) -> None:
    broken = quirky.entries[0]["uri"]
    quirky.broken["/manifests/.*" + broken[-36:]] = says(200, {"items": []})

    found, failed = alone.find(Conditions(hashes=(md5(b"x"),)))

    assert [one.dataset.name for one in found] == [BETA]
    assert [dataset.uri for dataset, _ in failed] == [broken]


@pytest.mark.parametrize("what", ["an annotation", "a hash"])
def test_dataset_that_is_listed_and_gone_is_left_out(
    alone: Seeker, quirky: QuirkyServer, what: str
) -> None:
    conditions, names = EXAMPLES[what]
    del quirky.described[quirky.entries[0]["uri"]]

    assert alone.names(conditions) == names[1:]


def test_dataset_that_is_there_and_not_found_is_told(alone: Seeker, quirky: QuirkyServer) -> None:
    quirky.broken["GET /annotations/"] = says(404)

    found, failed = alone.find(EXAMPLES["an annotation"][0])

    assert found == []
    assert len(failed) == len(DATASETS)
    assert all(isinstance(error, NotFound) for _, error in failed)


def test_server_that_goes_away_is_not_asked_about_each_dataset(
    no_waits: None, alone: Seeker, quirky: QuirkyServer
) -> None:
    for number in range(100):
        quirky.add(new_uuid(), {}, name=f"more-{number}")
    quirky.broken["GET /annotations/"] = says(503)

    with pytest.raises(Unreachable):
        alone.find(EXAMPLES["an annotation"][0])

    assert quirky.asked("GET /annotations/") < 100


def test_token_that_ends_meanwhile_is_told(alone: Seeker, quirky: QuirkyServer) -> None:
    quirky.broken["GET /annotations/"] = says(401, {"msg": "Token has expired"})

    with pytest.raises(NotAuthenticated):
        alone.find(EXAMPLES["an annotation"][0])


def test_manifests_that_are_kept_are_not_fetched_and_others_are_not_kept(
    alone: Seeker, quirky: QuirkyServer
) -> None:
    catalogue = alone.client.catalogue
    (gamma,) = alone.find(Conditions(names=(GAMMA,))).found
    loaded(lambda: catalogue.items(gamma.dataset))

    for number in (1, 2):
        assert alone.names(Conditions(hashes=(md5(b"gamma"),))) == [GAMMA]
        assert quirky.asked("GET /manifests/") == 1 + number * (len(DATASETS) - 1)


@pytest.mark.parametrize("is_kept", [True, False])
def test_items_of_a_strange_manifest_are_those_that_a_listing_has(
    alone: Seeker, quirky: QuirkyServer, is_kept: bool
) -> None:
    digest = md5(b"strange")
    uri = quirky.add(new_uuid(), {"b": b"strange", "a": b"strange"}, name="strange")
    items = quirky.described[uri]["manifest"]["items"]
    items[identifier_of("a")]["hash"] = digest.upper()
    right = items[identifier_of("b")]
    for relpath, other in {"../out": {}, "sized": {"size_in_bytes": -1}, "dated": {}}.items():
        items[identifier_of(relpath)] = {**right, "relpath": relpath, **other}
    items[identifier_of("dated")]["utc_timestamp"] = "never"
    items[identifier_of("none")] = None
    items[identifier_of("hashless")] = {"relpath": "hashless", "hash": 5}
    items[identifier_of("another")] = {**right, "relpath": "not-that"}
    if is_kept:
        (strange,) = alone.find(Conditions(names=("strange",))).found
        loaded(lambda: alone.client.catalogue.items(strange.dataset))

    (found,) = alone.find(Conditions(hashes=(digest,))).found

    assert sorted(found.relpaths) == ["a", "b"]


@pytest.mark.parametrize("is_kept", [True, False])
def test_of_many_items_with_a_hash_the_first_ones_are_named(
    alone: Seeker, quirky: QuirkyServer, is_kept: bool
) -> None:
    contents = {f"same/{number}": b"same" for number in range(MAX_RELPATHS + 1)}
    quirky.add(new_uuid(), contents, name="many")
    if is_kept:
        (many,) = alone.find(Conditions(names=("many",))).found
        loaded(lambda: alone.client.catalogue.items(many.dataset))

    (found,) = alone.find(Conditions(hashes=(md5(b"same"),))).found

    assert len(found.relpaths) == MAX_RELPATHS


def test_progress_counts_what_was_looked_into(alone: Seeker) -> None:
    told: list[tuple[int, int]] = []

    alone.client.catalogue.finder.find(
        alone.uri, Conditions(hashes=("0" * 32,)), lambda done, total: told.append((done, total))
    )

    assert told == [(1, 3), (2, 3), (3, 3)]
