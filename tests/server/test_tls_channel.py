"""TLS of the web server: right bytes whatever the sizes, and no client that keeps others out."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import pytest
import requests
from flask import Flask, request

from dserverfs.base.errors import UsageError
from dserverfs.server import certificates as certificates_module
from dserverfs.server import slow_clients
from dserverfs.server.certificates import Certificates
from dserverfs.server.request_limits import WITHOUT_TOKEN_BYTES
from dserverfs.server.store.gateway import TlsFiles
from dserverfs.server.store.signals import Signals
from dserverfs.server.web import THREADS, WebServer
from tests.support.authority import Authority

LARGE = os.urandom(1 << 20) * 24


class Served(NamedTuple):
    """A web server with TLS."""

    address: tuple[str, int]
    authority: Authority
    files: TlsFiles

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.address[1]}"

    @contextlib.contextmanager
    def session(self) -> Iterator[requests.Session]:
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(self.authority.file)
            yield session

    def connect(self, stack: contextlib.ExitStack) -> ssl.SSLSocket:
        connection = stack.enter_context(socket.create_connection(self.address, timeout=60))
        context = ssl.create_default_context(cafile=self.authority.file)
        return stack.enter_context(context.wrap_socket(connection, server_hostname="127.0.0.1"))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(slow_clients, "STALLED_S", 0.5)
    monkeypatch.setattr(slow_clients, "HEAD_S", 1.0)
    monkeypatch.setattr(certificates_module, "LOOK_S", 0.0)
    authority = Authority(tmp_path)
    files = TlsFiles(*authority.certify("server", "127.0.0.1"))
    certificates = Certificates(files)
    certificates.load()
    app = Flask("tls")
    app.config["JWT_PUBLIC_KEY"] = ""
    app.add_url_rule("/large", "large", lambda: LARGE)
    app.add_url_rule(
        "/pieces", "pieces", lambda: (LARGE[n : n + 70_000] for n in range(0, len(LARGE), 70_000))
    )
    app.add_url_rule("/small", "small", lambda: request.scheme)
    app.add_url_rule("/token", "echo", lambda: request.get_data(), methods=["POST"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        web = WebServer(app, listener, cast("Signals", None), certificates=certificates)
        with web.running():
            yield Served(listener.getsockname(), authority, files)


@pytest.mark.parametrize("path", ["/large", "/pieces"])
def test_large_answers_are_whole(served: Served, path: str) -> None:
    with served.session() as session:
        for _ in range(2):  # by one connection
            answer = session.get(served.url + path, timeout=60)
            assert hashlib.md5(answer.content).digest() == hashlib.md5(LARGE).digest()
        assert session.get(f"{served.url}/small", timeout=60).text == "https"


def test_bodies_come_whole_in_pieces_of_any_size_and_end_at_their_limit(served: Served) -> None:
    body = os.urandom(WITHOUT_TOKEN_BYTES)
    with served.session() as session:
        for size, piece in ((300, 1), (40_000, 16_383), (40_000, 16_384), (40_000, 16_385)):
            chunks = (body[n : min(n + piece, size)] for n in range(0, size, piece))
            echoed = session.post(f"{served.url}/token", data=chunks, timeout=60).content
            assert echoed == body[:size]
        assert session.post(f"{served.url}/token", data=body, timeout=60).content == body
        # The server hangs up without reading it all; a client that still sends may see only that.
        with contextlib.suppress(requests.ConnectionError):
            too_large = session.post(f"{served.url}/token", data=body + b"x", timeout=60)
            assert too_large.status_code == 413


def test_records_that_come_byte_by_byte_are_read(served: Served) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=served.authority.file)
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with socket.create_connection(served.address, timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def done(step: str, *arguments: object) -> bytes:
            while True:
                try:
                    result = getattr(tls, step)(*arguments)
                except ssl.SSLWantReadError:
                    result = None
                for byte in outgoing.read():
                    connection.sendall(bytes([byte]))
                if result is not None or (step == "do_handshake" and tls.version()):
                    return cast("bytes", result)
                incoming.write(connection.recv(65536))

        done("do_handshake")
        done("write", b"GET /small HTTP/1.0\r\n\r\n")
        answer = b""
        while piece := done("read", 65536):
            answer += piece

    assert answer.endswith(b"https")  # and TLS's goodbye came, or `read` would have failed


def test_client_that_speaks_plain_http_is_told(served: Served) -> None:
    answer = requests.get(served.url.replace("https:", "http:"), timeout=30)

    assert answer.status_code == 400
    assert answer.json().keys() == {"code", "status", "message"}
    assert "speaks https" in answer.json()["message"]


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01", b"\0" * 100, b"\r\n" * 50])
def test_who_does_not_come_to_an_end_of_the_handshake_is_closed(
    served: Served, sent: bytes
) -> None:
    with socket.create_connection(served.address, timeout=30) as connection:
        connection.sendall(sent)

        with contextlib.suppress(ConnectionResetError):
            while connection.recv(100):
                pass


def test_clients_that_stop_reading_over_tls_take_no_thread_for_good(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(2 * THREADS):
            client = served.connect(stack)
            client.sendall(b"GET /pieces HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(1)  # it is being answered, and a thread waits from now on

        with served.session() as session:
            assert session.get(f"{served.url}/small", timeout=60).text == "https"


def test_clients_at_once_get_their_own(served: Served) -> None:
    wrong: list[bytes] = []

    def ask(number: int) -> None:
        with served.session() as session:
            for turn in range(20):
                body = f"{number} {turn} ".encode() * 1000
                answer = session.post(f"{served.url}/token", data=body, timeout=60).content
                if answer != body:
                    wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)

    assert wrong == []


def serial_of(served: Served) -> int:
    with contextlib.ExitStack() as stack:
        certificate = served.connect(stack).getpeercert()
        assert certificate is not None
        return int(str(certificate["serialNumber"]), 16)


@pytest.mark.expects_log(
    "the key is not the certificate's; the certificate before it stays", "No such file"
)
def test_certificate_is_read_again_when_both_files_are_new(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    first = serial_of(served)
    certificate, key = served.authority.certify("next", "127.0.0.1")

    with served.session() as session:
        assert session.get(f"{served.url}/small", timeout=30).text == "https"
        served.files.certificate.unlink()
        away = [serial_of(served) for _ in range(3)]
        shutil.copyfile(certificate, served.files.certificate)
        between = [serial_of(served) for _ in range(3)]
        shutil.copyfile(key, served.files.key)
        after = serial_of(served)
        # A connection from before goes on.
        assert session.get(f"{served.url}/small", timeout=30).text == "https"

    assert away == between == [first] * 3
    assert after != first
    assert caplog.text.count("the certificate before it stays") == 2  # once for each state


@pytest.mark.parametrize(
    "days",
    [
        pytest.param(-1, marks=pytest.mark.expects_log("has expired on .*: clients refuse it")),
        pytest.param(1, marks=pytest.mark.expects_log("expires on .*: renew it")),
        30,
    ],
)
def test_operator_is_told_of_a_certificate_that_ends(tmp_path: Path, days: int) -> None:
    files = TlsFiles(*Authority(tmp_path).certify("server", "127.0.0.1", days=days))

    Certificates(files).load()


def test_key_with_a_passphrase_is_refused_and_asks_nobody(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, _ = authority.certify("server", "127.0.0.1")
    key = authority.encrypted_key("server")

    with pytest.raises(UsageError, match="has a passphrase"):
        Certificates(TlsFiles(certificate, key)).load()
