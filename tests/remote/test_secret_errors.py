"""What is raised, with all its causes, and what is logged has no signature and no token.

A notebook shows the whole traceback of an error, and notebooks are handed on.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import traceback
from collections.abc import Callable, Iterator

import pytest

from dserverfs.base.errors import DserverfsError
from dserverfs.base.retry import Deadline
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.objects import ByteRange, Storage
from dserverfs.remote.tokens import TokenSource
from tests.support.patience import LATE_S

SIGNATURE = "5ec4e7516na7u4e"
TOKEN = "70k3nOfNobody"
ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "no HTTP": b"220 mail.example.org ESMTP\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
    "no chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "no gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: /x?y\r\nContent-Length: 0\r\n\r\n",
    "refused": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    "a long head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a page": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 3\r\n\r\n<p>",
}


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Give the address of a server that answers every request with these bytes, and hangs up."""

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # its thread leaves accept()
            thread.join()


def _read_range(storage: Storage, url: str) -> None:
    storage.read_range(
        url,
        ByteRange(0, 5, 5),
        block_size=5,
        etag=None,
        deadline=Deadline(LATE_S),
        on_etag=lambda etag: None,
        on_block=lambda block: None,
    )


OF_A_STORE: dict[str, Callable[[Storage, str], object]] = {
    "object": lambda storage, url: storage.read_object(url, Deadline(LATE_S)),
    "look": lambda storage, url: storage.look(url, Deadline(LATE_S)),
    "range": _read_range,
    "put": lambda storage, url: storage.write(url, {}, b"x", lambda count: None),
}


@contextlib.contextmanager
def saying_nothing_of(secret: str, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    with contextlib.suppress(DserverfsError):
        try:
            yield
        except DserverfsError as error:
            said = "".join(traceback.format_exception(error))
            assert secret not in said, said
            raise
    assert secret not in caplog.text


@pytest.mark.parametrize("what", ANSWERS)
@pytest.mark.parametrize("how", OF_A_STORE)
def test_error_of_a_store_has_no_signature(
    what: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage()
    with answering(ANSWERS[what]) as address, saying_nothing_of(SIGNATURE, caplog):
        OF_A_STORE[how](storage, f"{address}/b/k?X-Amz-Signature={SIGNATURE}")
    storage.close()


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no.such.host.invalid", "[::1]:1", "a..b", "h:0"])
@pytest.mark.parametrize("how", OF_A_STORE)
def test_error_of_no_store_has_no_signature(
    host: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage()
    with saying_nothing_of(SIGNATURE, caplog):
        OF_A_STORE[how](storage, f"http://{host}/b/k\u00e9?X-Amz-Signature={SIGNATURE}")
    storage.close()


@pytest.mark.parametrize("what", ANSWERS)
def test_error_of_a_dserver_has_no_token(what: str, caplog: pytest.LogCaptureFixture) -> None:
    with answering(ANSWERS[what]) as address:
        transport = ServerTransport(address, TokenSource(TOKEN, None))
        with saying_nothing_of(TOKEN, caplog):
            transport.request("GET", "/me", attempts=1).json()
        with saying_nothing_of(TOKEN, caplog):
            transport.request_once("POST", "/x", Deadline(LATE_S), json={"a": 1})
        transport.close()


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f"{TOKEN} x", f"{TOKEN}\u00e9", f"\r\n{TOKEN}"])
def test_token_that_cannot_be_sent_is_not_told(
    token: str, caplog: pytest.LogCaptureFixture
) -> None:
    transport = ServerTransport("http://127.0.0.1:1", TokenSource(token, None))
    with saying_nothing_of(TOKEN, caplog):
        transport.request("GET", "/me", attempts=1)
    transport.close()
