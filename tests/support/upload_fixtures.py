"""Fixtures for tests of uploads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.base.model import DserverURI
from dserverfs.client import Client
from dserverfs.settings import TOKEN, Settings
from tests.support.faulty_put_front import Detour, put_front
from tests.support.local_uploads import Site
from tests.support.mounts import client_of
from tests.support.servers import ServerHandle


@pytest.fixture
def site(server: ServerHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr("dserverfs.base.retry.MAX_WAIT_S", 0.02)
    with (
        put_front() as front,
        client_of(server.base_uri, server.token, tmp_path / "cache") as client,
    ):
        storage = Detour(front, stall_timeout_s=2.0)
        yield Site(server, client, front, storage)
        storage.close()


@pytest.fixture
def client(server: ServerHandle, token: str, tmp_path: Path) -> Iterator[Client]:
    """A client with a cache and a staging area of its own."""
    with Client(
        DserverURI.parse(server.base_uri).server,
        Settings({TOKEN: token}, {}),
        cache_directory=tmp_path / "cache",
        staging_directory=tmp_path / "staging",
    ) as client:
        client.staging.open()
        yield client
