"""Questions to a dserver: the real one and the fake answer alike, odd answers are understood."""

from __future__ import annotations

import json
import uuid as uuid_module
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from dserverfs.base import wire_names
from dserverfs.base.errors import (
    NotAuthenticated,
    NotFound,
    NotStored,
    PermissionDenied,
    ProtocolError,
    Unreachable,
    Unsupported,
)
from dserverfs.base.model import UUID, BackendURI, Dataset, Identifier, identifier_of
from dserverfs.base.retry import ATTEMPTS, Deadline
from dserverfs.remote.api import Resolver
from dserverfs.remote.objects import Storage
from tests.support import servers
from tests.support.patience import LATE_S
from tests.support.quirky_server import (
    BASE_URI,
    CONTENTS,
    HELLO,
    OTHERS,
    TOKEN,
    Fault,
    Handler,
    QuirkyServer,
    only_hello,
    says,
)
from tests.support.servers import ServerHandle

pytest_plugins = ["tests.support.resolver_fixtures"]


class Side(NamedTuple):
    """A server with one dataset, real or not."""

    resolver: Resolver
    connect: Callable[[str], Resolver]
    uuid: UUID
    base_uri: str

    @property
    def dataset(self) -> Dataset:
        return self.resolver.dataset_by_uuid(self.uuid, self.base_uri)


@pytest.fixture(params=["real", "quirky"])
def side(request: pytest.FixtureRequest, connect: Callable[[str, str], Resolver]) -> Side:
    uuid = str(uuid_module.uuid4())
    if request.param == "real":
        server: ServerHandle = request.getfixturevalue("server")
        servers.upload(server, CONTENTS, readme=b"readme: 1\n", uuid=uuid, **OTHERS)
        url, token, base_uri = server.url, server.token, server.backend_uri
    else:
        fake: QuirkyServer = request.getfixturevalue("quirky")
        fake.add(uuid, CONTENTS, b"readme: 1\n", **OTHERS)
        url, token, base_uri = fake.url, TOKEN, BASE_URI
    return Side(connect(url, token), lambda other: connect(url, other), UUID(uuid), base_uri)


# The contract


def test_server_tells_what_it_can_and_who_asks(side: Side) -> None:
    assert side.resolver.capabilities().signed_urls
    assert side.resolver.capabilities().extended
    assert side.base_uri in side.resolver.user().search_base_uris


def test_dataset_is_listed_and_found_by_uuid(side: Side) -> None:
    assert side.dataset in side.resolver.datasets(side.base_uri)
    assert side.resolver.datasets_by_uuid(side.uuid) == [side.dataset]
    assert (side.dataset.name, side.dataset.number_of_items) == ("a-dataset", 3)
    assert side.dataset.frozen_at == pytest.approx(1700000000.5)


def test_base_uri_nobody_knows_is_no_empty_one(side: Side) -> None:
    with pytest.raises(PermissionDenied, match="s3://nowhere"):
        side.resolver.datasets("s3://nowhere")
    assert side.resolver.datasets_by_uuid(UUID(str(uuid_module.uuid4()))) == []


def test_manifest_readme_and_metadata(side: Side) -> None:
    manifest = b"".join(side.resolver.manifest_pieces(side.dataset))
    metadata = side.resolver.metadata(side.dataset)

    assert json.loads(manifest)["items"][HELLO]["relpath"] == "hello.txt"
    assert side.resolver.readme(side.dataset) == b"readme: 1\n"
    assert metadata.tags == ("a", "b")
    assert json.loads(metadata.annotations["n"]) == 5
    assert json.loads(metadata.overlays["o"])[HELLO] == 1
    assert json.loads(metadata.admin_metadata)["name"] == "a-dataset"


def test_signed_url_leads_to_the_item(side: Side) -> None:
    url = side.resolver.item_url(side.dataset, HELLO, only_hello)
    storage = Storage()

    assert storage.read_object(url.url, Deadline(LATE_S)) == b"hello\n"
    storage.close()


def test_neighbour_the_server_does_not_know_hurts_nobody(side: Side) -> None:
    unknown = Identifier("f" * 40)

    for identifier in map(identifier_of, CONTENTS):
        url = side.resolver.item_url(side.dataset, identifier, lambda n: [unknown, HELLO])
        assert identifier in url.url
    with pytest.raises(NotFound, match="item"):
        side.resolver.item_url(side.dataset, unknown, lambda n: [unknown])


@pytest.mark.parametrize("ask", ["readme", "metadata"])
def test_dataset_that_is_gone_is_not_found(side: Side, ask: str) -> None:
    uri = BackendURI(f"{side.base_uri}/{uuid_module.uuid4()}")
    gone = replace(side.dataset, uri=uri)

    with pytest.raises(NotFound, match=uri):
        getattr(side.resolver, ask)(gone)


@pytest.mark.parametrize("ask", ["readme", "metadata"])
def test_base_uri_without_permission_is_named_with_the_user(side: Side, ask: str) -> None:
    foreign = replace(side.dataset, uri=BackendURI(f"s3://foreign/{side.uuid}"))

    with pytest.raises(PermissionDenied, match=r"user .* may not search s3://foreign,") as refusal:
        getattr(side.resolver, ask)(foreign)
    assert not isinstance(refusal.value, NotAuthenticated)


@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c"])
def test_bad_token_is_not_authenticated(side: Side, token: str) -> None:
    resolver = side.connect(token)

    assert resolver.capabilities().signed_urls
    for ask in (resolver.user, lambda: resolver.datasets(side.base_uri)):
        with pytest.raises(NotAuthenticated):
            ask()


# Proxies


@pytest.mark.expects_log("changes encoded slashes")
def test_proxy_that_decodes_slashes_gets_the_other_form(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    quirky.quirks.encoded_slashes = False

    for _ in range(3):
        assert resolver.readme(dataset) == b"readme: 1\n"

    assert quirky.asked("/readmes/s3%3A") == 1
    with pytest.raises(PermissionDenied, match="pass %2F"):
        resolver.metadata(dataset)
    assert quirky.asked("/signed-urls/dataset/s3/") == 0


def test_other_form_is_not_tried_where_the_first_has_worked(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    resolver.readme(dataset)

    with pytest.raises(NotFound):
        resolver.readme(replace(dataset, uri=BackendURI(f"{BASE_URI}/{uuid_module.uuid4()}")))

    assert quirky.asked("/readmes/") == 2


# What a server can


@pytest.mark.parametrize("names", [wire_names.NAMES, wire_names.OF_0_1_0])
def test_own_servers_of_now_and_of_yesterday_are_known_for_what_they_can(
    quirky: QuirkyServer, resolver: Resolver, names: Iterable[str]
) -> None:
    quirky.versions = {"dservercore": "0.22.0", **dict.fromkeys(names, "1")}

    can = resolver.capabilities()

    assert (can.signed_urls, can.extended, can.parts) == (True, True, True)
    assert (can.changes_metadata, can.publishes) == (True, True)


@pytest.mark.parametrize(
    ("versions", "signs"),
    [
        ({"dservercore": "0.22.0", "dserver_signed_url_plugin": None}, True),
        ({"dservercore": "0.22.0", "dserver-signed-url-plugin": "1"}, True),
        ({"dtool_lookup_server": "0.17", "lab_signing_plugin": "1"}, True),  # found by asking
        ({"dserver": "0.20"}, False),
    ],
)
def test_capabilities_of_servers_by_other_names(
    quirky: QuirkyServer, resolver: Resolver, versions: dict[str, Any], signs: bool
) -> None:
    quirky.versions = versions

    assert resolver.capabilities().signed_urls is signs
    assert not resolver.capabilities().extended
    assert quirky.asked("/config/versions") == 1
    if not signs:
        with pytest.raises(Unsupported, match="dserver_signed_url_plugin"):
            resolver.require_signed_urls()


@pytest.mark.parametrize(
    "fault",
    [
        says(200, {"versions": {"nginx": "1"}}),
        says(200, {"versions": []}),
        says(200, []),
        says(200, b"<html>welcome", Content_Type="text/html"),
        says(404, b"<html><title>Not here</title>", Content_Type="text/html"),
    ],
)
@pytest.mark.usefixtures("no_waits")
def test_what_is_no_dserver_is_told(quirky: QuirkyServer, resolver: Resolver, fault: Any) -> None:
    quirky.faults = [fault] * 10

    with pytest.raises((ProtocolError, Unreachable), match="a dserver"):
        resolver.capabilities()


def test_store_that_cannot_sign_is_unsupported(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    resolver.capabilities()
    quirky.faults = [says(501)]

    with pytest.raises(Unsupported):
        resolver.metadata(dataset)


# Metadata out of the store


def test_metadata_url_refused_is_signed_once_more(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    expired = says(403, b"<Error><Code>AccessDenied</Code></Error>")
    quirky.store_faults = [expired]
    assert resolver.metadata(dataset).tags == ("a", "b")

    quirky.store_faults = [expired] * 9
    with pytest.raises(ProtocolError, match="signed just now") as refusal:
        resolver.metadata(dataset)
    assert "secret" not in str(refusal.value)


@pytest.mark.usefixtures("no_waits")
def test_metadata_survives_a_store_that_stumbles(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    quirky.store_faults = [says(500), says(502)]
    assert resolver.metadata(dataset).tags == ("a", "b")

    quirky.store_faults = [says(500)] * 20
    with pytest.raises(Unreachable):
        resolver.metadata(dataset)


def test_overlay_deleted_meanwhile_is_left_out(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    def delete(handler: Any) -> None:
        del quirky.objects[f"{dataset.uuid}/overlays/o.json"]
        quirky.described[dataset.uri]["overlays"] = {}
        handler.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    quirky.store_faults = [delete]

    assert resolver.metadata(dataset).overlays == {}


@pytest.mark.parametrize("key", ["dtool", "overlays/o.json", "annotations/n.json"])
def test_object_that_the_server_names_and_the_store_lacks_is_an_error(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset, key: str
) -> None:
    del quirky.objects[f"{dataset.uuid}/{key}"]

    with pytest.raises(NotStored, match=key):
        resolver.metadata(dataset)


@pytest.mark.parametrize("missing", ["tags", "overlay_urls", "annotation_urls"])
def test_what_an_answer_leaves_out_is_not_taken_for_none(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset, missing: str
) -> None:
    quirky.quirks.odd_answer = {missing: None}

    with pytest.raises(ProtocolError):
        resolver.metadata(dataset)


def cut_manifest(beginning: bytes) -> Fault:
    def cut(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        handler.wfile.write(beginning)
        handler.close_connection = True

    return cut


@pytest.mark.usefixtures("no_waits")
def test_manifest_that_breaks_off_goes_on_where_it_broke_off(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    whole = b"".join(resolver.manifest_pieces(dataset))
    quirky.faults = [cut_manifest(whole[:50]), cut_manifest(whole[:20]), cut_manifest(whole[:70])]

    pieces = list(resolver.manifest_pieces(dataset))

    assert b"".join(pieces) == whole
    assert len(pieces) > 1


@pytest.mark.usefixtures("no_waits")
def test_manifest_that_always_breaks_off_is_an_error(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset
) -> None:
    quirky.faults = [cut_manifest(b'{"items"')] * 10

    with pytest.raises(Unreachable, match="cut off"):
        list(resolver.manifest_pieces(dataset))
    assert len(quirky.faults) == 10 - ATTEMPTS


@pytest.mark.parametrize("beginning", [b'{"other": 1, ', b"{" + b" " * 100_000])
def test_manifest_that_is_another_when_it_goes_on_is_an_error(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset, beginning: bytes
) -> None:
    quirky.faults = [cut_manifest(beginning)]

    with pytest.raises(ProtocolError, match="changed while it was fetched"):
        list(resolver.manifest_pieces(dataset))
