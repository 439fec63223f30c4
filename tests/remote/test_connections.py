"""Connections to stores: opened once, kept for the next request, and never more than allowed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import urllib3

from dserverfs.remote.connections import Connection, Connections
from dserverfs.remote.http1 import target_of
from tests.support.faulty_store import FaultyStore, faulty_store


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    with faulty_store(b"content") as store:
        yield store


@pytest.fixture
def connections() -> Iterator[Connections]:
    with contextlib.closing(Connections(max_idle=2)) as connections:
        yield connections


def opened(connections: Connections, store: FaultyStore) -> Connection:
    return connections.open(store.url, target_of(store.url).origin)


def test_kept_connection_is_taken_once(connections: Connections, store: FaultyStore) -> None:
    connection = opened(connections, store)
    assert not connection.is_kept

    connections.keep(connection)

    assert connection.is_kept
    assert connections.take_idle("http://elsewhere") is None
    assert connections.take_idle(connection.origin) is connection
    assert connections.take_idle(connection.origin) is None
    connection.close()


def test_no_more_are_kept_than_allowed(connections: Connections, store: FaultyStore) -> None:
    several = [opened(connections, store) for _ in range(3)]

    for connection in several:
        connections.keep(connection)

    assert [each.socket.fileno() >= 0 for each in several] == [True, True, False]


@pytest.mark.parametrize("end", ["drop_idle", "close"])
def test_kept_connections_are_closed(
    connections: Connections, store: FaultyStore, end: str
) -> None:
    connection = opened(connections, store)
    connections.keep(connection)

    connections.close() if end == "close" else connections.drop_idle(connection.origin)

    assert connection.socket.fileno() == -1
    assert connections.take_idle(connection.origin) is None


def test_connection_that_was_in_use_at_the_end_is_not_kept(
    connections: Connections, store: FaultyStore
) -> None:
    connection = opened(connections, store)

    connections.close()
    connections.keep(connection)

    assert connection.socket.fileno() == -1


def test_proxy_is_told_the_whole_url(
    connections: Connections, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = target_of(store.url).origin
    monkeypatch.setenv("http_proxy", proxy.replace("http://", "http://user:pw@"))
    url = "http://store.invalid/k"

    with contextlib.closing(connections.open(url, target_of(url).origin)) as connection:
        assert connection.takes_urls
        assert connection.headers["proxy-authorization"].startswith("Basic ")


def test_host_that_is_not_there_is_an_error(connections: Connections) -> None:
    with pytest.raises(urllib3.exceptions.NewConnectionError):
        connections.open("http://127.0.0.1:1/k", "http://127.0.0.1:1")
