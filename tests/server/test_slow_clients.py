"""Clients that are slow, stop in the middle, or come by the hundred: the others are answered."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import pytest
import requests
from flask import Flask

from dserverfs.server import slow_clients
from dserverfs.server.slow_clients import HEAD_S, MAX_CONNECTIONS, STALLED_S, overdue
from dserverfs.server.store.signals import Signals
from dserverfs.server.web import THREADS, WebServer
from tests.support.servers import ServerHandle

NOW_S = 10_000.0


@dataclasses.dataclass(eq=False)
class Channel:
    """What `overdue` looks at of a connection of waitress."""

    moved_s: float = NOW_S
    request_s: float = NOW_S
    request: Any = None
    is_shaking_hands: bool = False
    requests: list[Any] = dataclasses.field(default_factory=list)
    total_outbufs_len: int = 0


class Head:
    headers_finished: ClassVar[bool] = False


class Body:
    headers_finished: ClassVar[bool] = True


def still(**state: Any) -> Channel:
    """Return a channel on which nothing moved for too long."""
    long_ago_s = NOW_S - STALLED_S - 1
    return Channel(moved_s=long_ago_s, request_s=long_ago_s, **state)


@pytest.mark.parametrize(
    ("channel", "is_closed"),
    [
        (Channel(), False),
        (Channel(request=Head()), False),
        (Channel(request=Head(), request_s=NOW_S - HEAD_S - 1), True),  # though it trickles
        (Channel(is_shaking_hands=True), False),
        (Channel(is_shaking_hands=True, request_s=NOW_S - HEAD_S - 1), True),
        (Channel(request=Body(), request_s=NOW_S - 3600), False),  # a large one, that moves
        (
            still(
                request=Body(),
            ),
            True,
        ),
        (
            still(
                requests=[Body()],
            ),
            False,
        ),  # is worked on
        (
            still(
                requests=[Body()],
                total_outbufs_len=1,
            ),
            True,
        ),  # reads no more
        (
            still(
                total_outbufs_len=1,
            ),
            True,
        ),
        (Channel(total_outbufs_len=1), False),
        (still(), False),  # idle, which is waitress's to close
    ],
)
def test_who_is_too_slow_is_closed(channel: Channel, *, is_closed: bool) -> None:
    assert overdue([channel], NOW_S) == ([channel] if is_closed else [])


def test_of_too_many_those_go_that_wait_longest() -> None:
    at_work = [Channel(requests=[Body()], request_s=0.0) for _ in range(5)]
    waiting = [Channel(request_s=NOW_S - 20 + n / 100) for n in range(MAX_CONNECTIONS)]

    closed = overdue([*waiting[::-1], *at_work], NOW_S)

    assert closed == waiting[:5]


def address_of(server: ServerHandle) -> tuple[str, int]:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return host, int(port)


@contextlib.contextmanager
def hanging(server: ServerHandle, count: int, *, sent: bytes) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(address_of(server), timeout=30))
            client.sendall(sent)
            clients.append(client)
        yield clients


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /me HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /token HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{",
        b"POST /token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1",
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk"],
)
def test_server_answers_while_hundreds_hang(server: ServerHandle, sent: bytes) -> None:
    with hanging(server, MAX_CONNECTIONS + 20, sent=sent) as clients:
        for _ in range(3):
            assert server.get("/config/health", token="").status_code == 200

        gone = [client for client in clients[:20] if client.recv(1) == b""]
        assert len(gone) == 20  # those that waited longest


def test_connections_that_are_closed_for_others_are_not_noticed(server: ServerHandle) -> None:
    """Clients keep connections: one that was closed meanwhile is opened again."""
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(f"{server.url}/config/health", timeout=30).status_code == 200
        with hanging(server, MAX_CONNECTIONS + 1, sent=b""):
            assert session.get(f"{server.url}/config/health", timeout=30).status_code == 200


@pytest.fixture
def large_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A web server whose /large does not fit into the buffers of a connection."""
    monkeypatch.setattr(slow_clients, "STALLED_S", 0.2)
    app = Flask("large")
    app.config["JWT_PUBLIC_KEY"] = ""
    app.add_url_rule("/large", view_func=lambda: (bytes(1 << 20) for _ in range(64)))
    app.add_url_rule("/small", endpoint="small", view_func=lambda: "small")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        web = WebServer(app, listener, cast("Signals", None))
        with web.running():
            yield listener.getsockname()


def test_clients_that_stop_reading_take_no_thread_for_good(
    large_answers: tuple[str, int],
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(2 * THREADS):
            client = stack.enter_context(socket.create_connection(large_answers, timeout=30))
            client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(1)  # it is being answered, and a thread waits from now on

        with socket.create_connection(large_answers, timeout=60) as other:
            other.sendall(b"GET /small HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: other.recv(4096), b""))
    assert answer.endswith(b"small")
