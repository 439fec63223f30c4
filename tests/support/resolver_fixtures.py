"""Fixtures for tests of the resolver: the fake server, and a dataset on it."""

from __future__ import annotations

import uuid as uuid_module
from collections.abc import Callable, Iterator

import pytest

from dserverfs.base.model import UUID, Dataset
from dserverfs.remote.api import Resolver
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.objects import Storage
from dserverfs.remote.tokens import TokenSource
from tests.support.quirky_server import (
    BASE_URI,
    CONTENTS,
    OTHERS,
    TOKEN,
    QuirkyServer,
    quirky_server,
)


@pytest.fixture
def connect() -> Iterator[Callable[[str, str], Resolver]]:
    """Makes resolvers of (base URL, token)."""
    transports, storage = [], Storage()

    def make(url: str, token: str) -> Resolver:
        transports.append(ServerTransport(url, TokenSource(token, None)))
        return Resolver(transports[-1], storage)

    yield make
    for transport in transports:
        transport.close()
    storage.close()


@pytest.fixture
def quirky() -> Iterator[QuirkyServer]:
    with quirky_server() as running:
        yield running


@pytest.fixture
def resolver(quirky: QuirkyServer, connect: Callable[[str, str], Resolver]) -> Resolver:
    return connect(quirky.url, TOKEN)


@pytest.fixture
def dataset(quirky: QuirkyServer, resolver: Resolver) -> Dataset:
    uuid = str(uuid_module.uuid4())
    quirky.add(uuid, CONTENTS, b"readme: 1\n", **OTHERS)
    return resolver.dataset_by_uuid(UUID(uuid), BASE_URI)


@pytest.fixture
def upstream(quirky: QuirkyServer) -> QuirkyServer:
    """The fake as the upstream plugin is."""
    quirky.versions = {"dservercore": "0.22.0", "dserver_signed_url_plugin": None}
    quirky.quirks.knows_items_false = False
    return quirky


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried again at once."""
    monkeypatch.setattr("dserverfs.base.retry.FIRST_WAIT_S", 0.001)
