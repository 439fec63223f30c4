"""Changes of a dataset: ours, the development branch and the fakes of both do the same."""

from __future__ import annotations

import json
import os
import uuid as uuid_module
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dserverfs.base.errors import NotFound, PermissionDenied, ProtocolError, Unsupported, UsageError
from dserverfs.base.model import UUID, BackendURI, Dataset, Identifier, identifier_of
from dserverfs.catalogue.catalogue import Catalogue
from dserverfs.catalogue.offline import KeptAnswers
from dserverfs.catalogue.refreshed import NotLoaded
from dserverfs.remote.api import Resolver
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.metadata_api import MetadataWrites
from dserverfs.remote.objects import Storage
from dserverfs.remote.routes import Routes
from dserverfs.remote.tokens import TokenSource
from tests.support import servers
from tests.support.quirky_changes import become
from tests.support.quirky_server import BASE_URI, CONTENTS, OTHERS, TOKEN, QuirkyServer
from tests.support.servers import ServerHandle

pytest_plugins = ["tests.support.resolver_fixtures"]


class Side(NamedTuple):
    """A server with one dataset, real or not."""

    resolver: Resolver
    writes: MetadataWrites
    uuid: UUID
    base_uri: str

    @property
    def dataset(self) -> Dataset:
        return self.resolver.dataset_by_uuid(self.uuid, self.base_uri)

    def stored(self, kind: str) -> Any:
        found = getattr(self.resolver.metadata(self.dataset), kind)
        return {name: json.loads(text) for name, text in found.items()}


Connect = Callable[[str, str], tuple[Resolver, MetadataWrites]]


@pytest.fixture
def connected() -> Iterator[Connect]:
    transports, storage = [], Storage()

    def make(url: str, token: str) -> tuple[Resolver, MetadataWrites]:
        transports.append(ServerTransport(url, TokenSource(token, None)))
        routes = Routes(transports[-1])
        resolver = Resolver(transports[-1], storage, routes)
        return resolver, MetadataWrites(routes, resolver, pause=lambda pause_s: None)

    yield make
    for transport in transports:
        transport.close()
    storage.close()


def side_of(quirky: QuirkyServer, connected: Connect) -> Side:
    uuid = str(uuid_module.uuid4())
    quirky.add(uuid, CONTENTS, b"readme: 1\n", **json.loads(json.dumps(OTHERS)))
    return Side(*connected(quirky.url, TOKEN), UUID(uuid), BASE_URI)


@pytest.fixture(params=["real", "own", "master", "following"])
def side(request: pytest.FixtureRequest, connected: Connect) -> Side:
    """A server that can change README, tags and annotations."""
    return side_by_name(request, connected)


@pytest.fixture(params=["real", "own"])
def own_side(request: pytest.FixtureRequest, connected: Connect) -> Side:
    """One that can change overlays and names, too."""
    return side_by_name(request, connected)


def side_by_name(request: pytest.FixtureRequest, connected: Connect) -> Side:
    if request.param != "real":
        quirky: QuirkyServer = request.getfixturevalue("quirky")
        become(quirky, request.param)
        return side_of(quirky, connected)
    server: ServerHandle = request.getfixturevalue("server")
    uuid = str(uuid_module.uuid4())
    servers.upload(server, CONTENTS, readme=b"readme: 1\n", uuid=uuid, **OTHERS)
    return Side(*connected(server.url, server.token), UUID(uuid), server.backend_uri)


@pytest.fixture
def master(quirky: QuirkyServer, connected: Connect) -> Side:
    become(quirky, "master")
    return side_of(quirky, connected)


@pytest.fixture
def released(quirky: QuirkyServer, connected: Connect) -> Side:
    become(quirky, "none")
    return side_of(quirky, connected)


# The contract


def test_readme_is_changed(side: Side) -> None:
    side.writes.put_readme(side.dataset, "größer: 2\n".encode())

    assert side.resolver.readme(side.dataset) == "größer: 2\n".encode()
    assert side.resolver.stored_readme(side.dataset) == "größer: 2\n".encode()


def test_tags_are_put_and_taken(side: Side) -> None:
    side.writes.put_tag(side.dataset, "new.tag")
    side.writes.delete_tag(side.dataset, "a")
    side.writes.delete_tag(side.dataset, "never-there")

    assert side.resolver.metadata(side.dataset).tags == ("b", "new.tag")


@pytest.mark.parametrize("value", [1, "1", None, {"ü": [True, 2.5]}])
def test_annotation_is_put_with_its_type_and_taken(side: Side, value: Any) -> None:
    side.writes.put_annotation(side.dataset, "new", value)
    side.writes.delete_annotation(side.dataset, "n")
    side.writes.delete_annotation(side.dataset, "never-there")

    assert side.stored("annotations") == {"new": value}


def test_overlay_is_put_and_taken(own_side: Side) -> None:
    values = {identifier_of(relpath): len(relpath) for relpath in CONTENTS}

    own_side.writes.put_overlay(own_side.dataset, "length", values)
    own_side.writes.delete_overlay(own_side.dataset, "o")

    assert own_side.stored("overlays") == {"length": values}


def test_dataset_is_renamed(own_side: Side) -> None:
    own_side.writes.rename(own_side.dataset, "another-name-of-it")

    assert own_side.dataset.name == "another-name-of-it"


def test_dataset_that_is_gone_is_not_found(side: Side) -> None:
    gone = replace(side.dataset, uri=BackendURI(f"{side.base_uri}/{uuid_module.uuid4()}"))

    with pytest.raises(NotFound, match=gone.uri):
        side.writes.put_tag(gone, "x")


def test_name_that_dtool_does_not_accept_is_refused_here(side: Side) -> None:
    for name in ("", "a b", "a/b", "..", "ü", "x" * 81):
        with pytest.raises(UsageError, match="tag"):
            side.writes.put_tag(side.dataset, name)
    with pytest.raises(UsageError, match="dot"):
        side.writes.put_annotation(side.dataset, "a.b", 1)
    with pytest.raises(UsageError, match="JSON"):
        side.writes.put_annotation(side.dataset, "a", float("nan"))
    with pytest.raises(UsageError, match="UTF-8"):
        side.writes.put_readme(side.dataset, b"\xff")


def test_overlay_of_other_items_is_refused(server: ServerHandle, connected: Connect) -> None:
    uuid = str(uuid_module.uuid4())
    servers.upload(server, CONTENTS, uuid=uuid)
    side = Side(*connected(server.url, server.token), UUID(uuid), server.backend_uri)

    with pytest.raises(UsageError, match="no identifier of an item"):
        side.writes.put_overlay(side.dataset, "o", {Identifier("f" * 40): 1})


# Servers that cannot, may not, or do not


def test_user_without_the_right_is_told_which(master: Side, quirky: QuirkyServer) -> None:
    quirky.register = []

    with pytest.raises(PermissionDenied, match=f"right to register in {BASE_URI}"):
        master.writes.put_tag(master.dataset, "x")


def test_released_server_is_not_even_asked(released: Side, quirky: QuirkyServer) -> None:
    dataset = released.dataset
    assert not released.writes.supported()

    changes: list[Callable[[], None]] = [
        lambda: released.writes.put_readme(dataset, b""),
        lambda: released.writes.delete_tag(dataset, "x"),
        lambda: released.writes.put_annotation(dataset, "x", 1),
        lambda: released.writes.put_overlay(dataset, "x", {}),
        lambda: released.writes.rename(dataset, "x"),
    ]
    for change in changes:
        with pytest.raises(Unsupported, match=r"dservercore 0\.22\.0.* no route"):
            change()
    assert quirky.asked("^(PUT|POST|DELETE) /(readmes|tags|annotations|overlays|names)") == 0


def test_server_of_unknown_version_without_routes_is_asked_once(
    released: Side, quirky: QuirkyServer
) -> None:
    quirky.versions["dservercore"] = "0.23.0"
    assert released.writes.supported()

    for _ in range(3):
        with pytest.raises(Unsupported, match=r"0\.23\.0"):
            released.writes.put_tag(released.dataset, "x")

    assert not released.writes.supported()
    assert quirky.asked("^PUT /tags/") == 1


def test_overlays_and_names_need_our_server(master: Side) -> None:
    with pytest.raises(Unsupported, match="overlays"):
        master.writes.put_overlay(master.dataset, "x", {})
    with pytest.raises(Unsupported, match="the name"):
        master.writes.rename(master.dataset, "x")


def test_publishing_needs_our_server(master: Side) -> None:
    with pytest.raises(Unsupported, match="publish"):
        master.writes.publish(master.dataset)


def test_change_that_reached_the_index_only_is_an_error(master: Side, quirky: QuirkyServer) -> None:
    quirky.quirks.loses_changes = True

    changes: list[Callable[[], None]] = [
        lambda: master.writes.put_readme(master.dataset, b"lost"),
        lambda: master.writes.put_tag(master.dataset, "lost"),
        lambda: master.writes.delete_tag(master.dataset, "a"),
        lambda: master.writes.put_annotation(master.dataset, "n", "lost"),
    ]
    for change in changes:
        with pytest.raises(ProtocolError, match="did not make it"):
            change()


@pytest.mark.expects_log("changes encoded slashes")
def test_behind_a_proxy_that_decodes_slashes_the_other_form_is_taken(
    quirky: QuirkyServer, connected: Connect
) -> None:
    become(quirky, "own")
    side = side_of(quirky, connected)
    dataset = side.dataset
    quirky.quirks.encoded_slashes = False

    side.writes.put_readme(dataset, b"new")

    assert side.resolver.readme(dataset) == b"new"


# What is shown


def test_own_change_is_shown_at_once(side: Side, tmp_path: Path) -> None:
    catalogue = Catalogue(KeptAnswers(side.resolver, tmp_path), "server", tmp_path)
    dataset = side.dataset
    assert loaded(lambda: catalogue.readme(dataset)) == b"readme: 1\n"
    assert loaded(lambda: catalogue.metadata(dataset)).tags == ("a", "b")
    kept = len(os.listdir(tmp_path))

    side.writes.put_readme(dataset, b"new: 1\n")
    side.writes.put_tag(dataset, "c")
    assert catalogue.readme(dataset) == b"readme: 1\n"
    catalogue.forget(dataset)

    assert len(os.listdir(tmp_path)) == kept - 2  # a server that goes away now leaves nothing old
    assert loaded(lambda: catalogue.readme(dataset)) == b"new: 1\n"
    assert loaded(lambda: catalogue.metadata(dataset)).tags == ("a", "b", "c")
    catalogue.close()


def loaded(get: Callable[[], Any]) -> Any:
    """Return what the catalogue has, loading it if it has to be."""
    while True:
        try:
            return get()
        except NotLoaded as missing:
            missing.load()
