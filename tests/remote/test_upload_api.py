"""What a client asks about uploads that are pending."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dserverfs.base.errors import Conflict, ProtocolError, Unsupported
from dserverfs.remote.api import Resolver
from tests.support.quirky_server import QuirkyServer, says
from tests.support.servers import (
    ServerHandle,
    begin,
    encoded,
    new_uuid,
    put_items,
    upload,
    upload_body,
)

pytest_plugins = ["tests.support.resolver_fixtures"]

CONTENTS = {"a.txt": b"alpha", "b/é.txt": b"beta"}


@pytest.fixture
def real(server: ServerHandle, connect: Callable[[str, str], Resolver]) -> Resolver:
    return connect(server.url, server.token)


def test_pending_upload_is_listed_until_it_is_discarded(
    server: ServerHandle, real: Resolver
) -> None:
    begun = begin(server, upload_body(CONTENTS, name="begun"))
    put_items(begun, CONTENTS)

    (found,) = [each for each in real.uploads.pending() if each.uri == begun["uri"]]
    real.uploads.discard(begun["uri"])
    real.uploads.discard(begun["uri"])

    assert (found.name, found.number_of_items, found.size_in_bytes) == ("begun", 2, 9)
    assert begun["uri"] not in [each.uri for each in real.uploads.pending()]


def test_upload_of_another_user_is_not_discarded(
    server: ServerHandle, real: Resolver, connect: Callable[[str, str], Resolver]
) -> None:
    other = f"user-{new_uuid()[:8]}"
    base_uri = server.add_base_uri(register=[server.username, other])
    uri = begin(server, upload_body(CONTENTS), base_uri)["uri"]

    with pytest.raises(Conflict, match=server.username):
        connect(server.url, server.token_for(other)).uploads.discard(uri)

    assert uri in [each.uri for each in real.uploads.pending()]


def test_registered_dataset_is_left_alone(server: ServerHandle, real: Resolver) -> None:
    uri = upload(server, CONTENTS)

    real.uploads.discard(uri)

    assert server.get(f"/uris/{encoded(uri)}").status_code == 200


def test_other_servers_are_not_asked(upstream: QuirkyServer, resolver: Resolver) -> None:
    with pytest.raises(Unsupported, match="pending"):
        resolver.uploads.pending()
    with pytest.raises(Unsupported, match="pending"):
        resolver.uploads.discard("s3://bucket/x")
    assert upstream.asked("/signed-urls/") == 0


@pytest.mark.parametrize("answer", [[], {}, {"uploads": [{}]}, {"uploads": 5}])
def test_list_that_is_none_is_an_error(
    quirky: QuirkyServer, resolver: Resolver, answer: object
) -> None:
    resolver.capabilities()
    quirky.faults = [says(200, answer)]

    with pytest.raises(ProtocolError, match="list of uploads"):
        resolver.uploads.pending()
