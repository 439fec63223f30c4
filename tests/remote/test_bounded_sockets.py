"""Connections whose every wait ends with the exchange they are used for."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dserverfs.base.errors import DeadlineExceeded
from dserverfs.base.retry import Deadline
from dserverfs.remote import addresses
from dserverfs.remote.addresses import Address, addresses_of
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.objects import Storage
from dserverfs.remote.tokens import TokenSource
from dserverfs.remote.trust import Trust

Behaviour = Callable[[socket.socket, threading.Event], None]


def drip(*pieces: bytes, first: bytes = b"") -> Behaviour:
    """Say `first`, then `pieces` for ever, a piece at a time."""

    def behave(link: socket.socket, over: threading.Event) -> None:
        link.sendall(first)
        while not over.wait(0.01):
            for piece in pieces:
                link.sendall(piece)

    return behave


def say_nothing(link: socket.socket, over: threading.Event) -> None:
    over.wait(30)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BEHAVIOURS = {
    "nothing": say_nothing,
    "a status line without end": drip(b"x", first=b"HTTP/1.1 200 "),
    "headers without end": drip(b"X-More: 1\r\n", first=HEAD),
    "100 Continue without end": drip(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body without end": drip(b" ", first=HEAD + b"Content-Length: 1000000\r\n\r\n"),
    "a chunk's size without end": drip(b"0", first=HEAD + b"Transfer-Encoding: chunked\r\n\r\n"),
    "trailers without end": drip(
        b"X-More: 1\r\n", first=HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    ),
}


@pytest.fixture
def listening() -> Iterator[Callable[[Behaviour], int]]:
    """Makes servers that behave so to whoever connects, and returns their ports."""
    over = threading.Event()
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(listener: socket.socket, behave: Behaviour) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = listener.accept()
                thread = threading.Thread(target=answer, args=(link, behave), daemon=True)
                thread.start()
                threads.append(thread)

    def answer(link: socket.socket, behave: Behaviour) -> None:
        with link, contextlib.suppress(OSError):
            link.recv(65536)
            behave(link, over)

    def listen(behave: Behaviour) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threads.append(threading.Thread(target=serve, args=(listener, behave), daemon=True))
        threads[-1].start()
        port: int = listener.getsockname()[1]
        return port

    yield listen
    over.set()
    for listener in listeners:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in list(threads):
        thread.join(10)


def ask_server(url: str) -> None:
    transport = ServerTransport(url, TokenSource("token", None), trust=Trust(verify=False))
    try:
        transport.request("GET", "/me", timeout_s=0.3, authenticated=False)
    finally:
        transport.close()


def ask_store(url: str) -> None:
    storage = Storage(Trust(verify=False))
    try:
        storage.read_object(f"{url}/object", Deadline(0.3))
    finally:
        storage.close()


@pytest.mark.parametrize("ask", [ask_server, ask_store])
@pytest.mark.parametrize("name", BEHAVIOURS)
def test_exchange_ends_with_its_deadline_whatever_comes(
    listening: Callable[[Behaviour], int], name: str, ask: Callable[[str], None]
) -> None:
    port = listening(BEHAVIOURS[name])

    with pytest.raises(DeadlineExceeded):
        ask(f"http://127.0.0.1:{port}")


@pytest.mark.filterwarnings("ignore:Unverified HTTPS")
@pytest.mark.parametrize("ask", [ask_server, ask_store])
@pytest.mark.parametrize("name", ["nothing", "a status line without end"])
def test_handshake_ends_with_the_deadline(
    listening: Callable[[Behaviour], int], name: str, ask: Callable[[str], None]
) -> None:
    # A record of TLS that announces more than ever comes.
    behave = say_nothing if name == "nothing" else drip(b"\0", first=b"\x16\x03\x03\x40\0")
    port = listening(behave)

    with pytest.raises(DeadlineExceeded):
        ask(f"https://127.0.0.1:{port}")


@pytest.mark.parametrize("ask", [ask_server, ask_store])
def test_name_that_is_looked_up_for_ever_ends_with_the_deadline(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], None]
) -> None:
    over = threading.Event()

    def look_up(*arguments: Any, **options: Any) -> Any:
        over.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        with pytest.raises(DeadlineExceeded):
            ask("http://slow-name.invalid:1234")
    finally:
        over.set()


def test_address_is_looked_up_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", None)

    assert addresses_of("127.0.0.1", 80, 1.0) == [(socket.AF_INET, ("127.0.0.1", 80))]
    assert addresses_of("[::1]", 80, 1.0)[0][0] == socket.AF_INET6


def test_host_is_reached_by_whichever_of_its_addresses_answers(
    listening: Callable[[Behaviour], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    port = listening(lambda link, over: link.sendall(answer))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()
    places = [Address(socket.AF_INET, closed), Address(socket.AF_INET, ("127.0.0.1", port))]
    monkeypatch.setattr(addresses, "addresses_of", lambda *_: places)
    storage = Storage()

    assert storage.read_object("http://two.invalid/o", Deadline(20.0)) == b"{}"
    storage.close()
