"""Connections whose every wait ends with the exchange they are used for."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.errors import DeadlineExceeded, NotConnected, Unreachable, UsageError
from dserverfs.base.retry import Deadline
from dserverfs.remote import addresses, bounded_sockets
from dserverfs.remote.addresses import addresses_of
from dserverfs.remote.bounded_sockets import _Race
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.objects import Storage
from dserverfs.remote.tokens import TokenSource
from dserverfs.remote.trust import Trust
from tests.support.faulty_store import faulty_store
from tests.support.patience import LATE_S
from tests.support.several_addresses import NAME, Place, black_hole, give_addresses, refusing
from tests.support.web_front import make_certificates

Behaviour = Callable[[socket.socket, threading.Event], None]
Way = Callable[[], contextlib.AbstractContextManager[Place]]


def drip(*pieces: bytes, first: bytes = b"") -> Behaviour:
    """Say `first`, then `pieces` for ever, a piece at a time."""

    def behave(link: socket.socket, over: threading.Event) -> None:
        link.sendall(first)
        while not over.wait(0.01):
            for piece in pieces:
                link.sendall(piece)

    return behave


def say_nothing(link: socket.socket, over: threading.Event) -> None:
    over.wait(LATE_S)


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
        thread.join(LATE_S)


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


@pytest.mark.filterwarnings("ignore:Unverified HTTPS")
@pytest.mark.parametrize("is_plain", [True, False])
def test_plain_server_is_told_from_a_slow_one_with_tls(tmp_path: Path, is_plain: bool) -> None:
    """Both say nothing to a handshake for a second; one of them answers a plain question."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(make_certificates(tmp_path)[1])
    asked = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 0)) as listener:
            ports.append(listener.getsockname()[1])
            listening_now.set()
            shaken, _ = listener.accept()
            question, _ = listener.accept()  # while the handshake waits
            with question:
                asked.set()
                assert question.recv(100).startswith(b"HEAD / HTTP/1.0\r\n")
                status = b"404 Not Found" if is_plain else b"400 Bad Request"
                question.sendall(b"HTTP/1.1 " + status + b"\r\n\r\n")
            if is_plain:
                shaken.close()
                return
            with context.wrap_socket(shaken, server_side=True) as link:
                link.recv(1000)
                link.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")

    ports: list[int] = []
    listening_now = threading.Event()
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert listening_now.wait(LATE_S)
    transport = ServerTransport(
        f"https://127.0.0.1:{ports[0]}", TokenSource("token", None), trust=Trust(verify=False)
    )
    try:
        if is_plain:
            with pytest.raises(UsageError, match="does not speak https: set DSERVER_PROTOCOL=http"):
                transport.request("GET", "/me", timeout_s=30.0, authenticated=False)
        else:
            answer = transport.request("GET", "/me", timeout_s=30.0, authenticated=False)
            assert answer.json() == {}
    finally:
        transport.close()
        thread.join(LATE_S)
    assert asked.is_set()


@pytest.mark.parametrize("ask", [ask_server, ask_store])
def test_name_that_is_looked_up_for_ever_ends_with_the_deadline(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], None]
) -> None:
    over = threading.Event()

    def look_up(*arguments: Any, **options: Any) -> Any:
        over.wait(LATE_S)
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


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Callable[[Place, Place], str]:
    """Returns the URL of a host that has these two addresses."""

    def make(first: Place, second: Place) -> str:
        give_addresses(monkeypatch, {80: [first, second]})
        return f"http://{NAME}:80/object"

    return make


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def answer(link: socket.socket, over: threading.Event) -> None:
    link.sendall(ANSWER)


@pytest.mark.parametrize("way", [refusing, black_hole])
def test_host_is_reached_by_whichever_of_its_addresses_takes_a_connection(
    listening: Callable[[Behaviour], int],
    two: Callable[[Place, Place], str],
    monkeypatch: pytest.MonkeyPatch,
    way: Way,
) -> None:
    waits_s = []
    wait = _Race.wait

    def noted(race: _Race, timeout_s: float) -> None:
        waits_s.append(timeout_s)
        wait(race, timeout_s)

    monkeypatch.setattr(_Race, "wait", noted)
    good = ("127.0.0.1", listening(answer))
    with contextlib.closing(Storage()) as storage, way() as bad:
        assert storage.read_object(two(bad, good), Deadline(30.0)) == b"{}"

        assert waits_s[0] <= 2.0  # for an address, before the next
        assert [each.place for each in addresses.to_try(NAME, 80, 1.0)] == [good, bad]


def test_address_that_is_slow_is_used_if_no_other_takes_a_connection_before(
    listening: Callable[[Behaviour], int],
    two: Callable[[Place, Place], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounded_sockets, "NEXT_ADDRESS_S", 0.0)  # every address is slow then
    good = ("127.0.0.1", listening(answer))
    with contextlib.closing(Storage()) as storage, black_hole() as bad:
        assert storage.read_object(two(good, bad), Deadline(30.0)) == b"{}"
        assert [each.place for each in addresses.to_try(NAME, 80, 1.0)] == [good, bad]


def test_host_without_an_address_that_takes_a_connection_is_told_with_each(
    two: Callable[[Place, Place], str],
) -> None:
    with refusing() as first, refusing() as second:
        url = two(first, second)
        transport = ServerTransport(url, TokenSource("token", None))
        with pytest.raises(NotConnected) as error, contextlib.closing(transport):
            transport.request("GET", "/me", attempts=1, authenticated=False)

    refused = [f"127.0.0.1:{port} Connection refused" for _, port in (first, second)]
    said = f"none of its addresses takes a connection: {', '.join(refused)}; "
    assert said in str(error.value)
    # Neither is better than the other.
    assert [each.place for each in addresses.to_try(NAME, 80, 1.0)] == [first, second]


def test_limit_of_a_connection_is_shared_by_its_addresses(
    two: Callable[[Place, Place], str], listening: Callable[[Behaviour], int]
) -> None:
    good = ("127.0.0.1", listening(answer))
    with contextlib.closing(Storage()) as storage, black_hole() as bad:
        assert storage.read_object(two(bad, good), Deadline(1.0)) == b"{}"


def test_answer_that_ends_with_its_connection_is_no_failure_and_one_that_is_cut_is(
    two: Callable[[Place, Place], str], listening: Callable[[Behaviour], int]
) -> None:
    whole = b"HTTP/1.0 200 OK\r\n\r\n{}"
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}"
    first = ("127.0.0.1", listening(lambda link, over: link.sendall(whole)))
    second = ("127.0.0.1", listening(lambda link, over: link.sendall(cut)))
    with contextlib.closing(Storage()) as storage:
        assert storage.read_object(two(first, second), Deadline(30.0)) == b"{}"
        assert [each.place for each in addresses.to_try(NAME, 80, 1.0)] == [first, second]
        with pytest.raises(Unreachable):
            storage.read_object(two(second, first), Deadline(30.0))
        assert [each.place for each in addresses.to_try(NAME, 80, 1.0)] == [first, second]


@pytest.mark.parametrize("behave", [say_nothing, answer, lambda link, over: None])
def test_address_that_does_not_speak_tls_is_followed_by_one_that_does(
    two: Callable[[Place, Place], str],
    listening: Callable[[Behaviour], int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    behave: Behaviour,
) -> None:
    monkeypatch.setattr(bounded_sockets, "HANDSHAKE_TIMEOUT_S", 0.3)
    certificates = make_certificates(tmp_path)
    bad = ("127.0.0.1", listening(behave))
    with faulty_store(b"{}", certificates) as store:
        url = two(bad, ("127.0.0.1", int(store.url.split(":")[2].partition("/")[0])))
        with contextlib.closing(Storage(Trust(ca_file=certificates.authority))) as storage:
            with pytest.raises((Unreachable, DeadlineExceeded)):
                storage.read_object(url.replace("http:", "https:"), Deadline(30.0))
            monkeypatch.setattr(bounded_sockets, "HANDSHAKE_TIMEOUT_S", 30.0)  # it may be slow
            content = storage.read_object(url.replace("http:", "https:"), Deadline(30.0))

    assert content == b"{}"
