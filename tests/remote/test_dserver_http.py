"""Calls to a dserver: tokens, retries, proxies, and what is said when it goes wrong."""

from __future__ import annotations

import gzip
import os
import socket
import sqlite3
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from dserverfs.base.errors import (
    Conflict,
    DeadlineExceeded,
    DserverfsError,
    NotAuthenticated,
    NotConnected,
    NotFound,
    NotTheServer,
    PermissionDenied,
    ProtocolError,
    Unreachable,
    Unsupported,
    UnusableAnswer,
    UsageError,
)
from dserverfs.base.limits import MAX_SMALL_ANSWER_BYTES
from dserverfs.base.retry import ATTEMPTS, Deadline
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.tokens import TokenSource
from tests.support.patience import SOON_S
from tests.support.quirky_server import TOKEN, QuirkyServer, jwt, quirky_server, says

HTML = {"Content_Type": "text/html"}


@pytest.fixture
def quirky() -> Iterator[QuirkyServer]:
    with quirky_server() as running:
        yield running


@pytest.fixture
def transport(quirky: QuirkyServer) -> Iterator[ServerTransport]:
    transport = ServerTransport(quirky.url, TokenSource(TOKEN, None))
    yield transport
    transport.close()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# Answers


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (says(400, {"code": 400, "errors": {"json": {"a": ["bad"]}}}), ProtocolError, "bad"),
        (says(401), NotAuthenticated, "Unauthorized"),
        (says(401, {"msg": "Token has expired"}), NotAuthenticated, "Token has expired"),
        (says(422, {"msg": "Bad\nsegments"}), NotAuthenticated, "Bad segments"),
        (says(422, {"code": 422, "errors": {"query": {"x": ["?"]}}}), ProtocolError, "query"),
        (says(403), PermissionDenied, "403 Forbidden"),
        (says(404), NotFound, "404 Not Found"),
        (says(405), NotFound, "405"),
        (says(410), NotFound, "410 Gone"),
        (says(404, b"<html><title>404 Not Found</title>", **HTML), NotTheServer, "a proxy's?"),
        (says(404, b"default backend - 404"), NotTheServer, "a proxy's?"),
        (says(404, b""), NotTheServer, "a proxy's?"),
        (says(404, {"message": "no Route matched"}), NotTheServer, "a proxy's?"),
        (says(404, {"code": "404", "status": "Not Found"}), NotTheServer, "a proxy's?"),
        (says(404, ["code", "status"]), NotTheServer, "a proxy's?"),
        (says(403, b"<html><title>Forbidden</title>", **HTML), NotTheServer, "a proxy's?"),
        (says(405, b"<html><title>Not Allowed</title>", **HTML), NotTheServer, "a proxy's?"),
        (says(410, b"gone"), NotTheServer, "a proxy's?"),
        (says(409, {"message": "exists"}), Conflict, "exists"),
        (says(418, {"error": "teapot"}), ProtocolError, "teapot"),
        (says(500), UnusableAnswer, "500 Internal Server Error"),
        (says(501), Unsupported, "501"),
        (says(500, b"<html><title>Oh \x1b[31m no</title>", **HTML), UnusableAnswer, "Oh [31m no"),
        (says(500, b"<Error><Message>Deep</Message></Error>"), UnusableAnswer, "Deep"),
        (says(500, {"message": f"{TOKEN} is bad"}), UnusableAnswer, "... is bad"),
    ],
)
def test_error_is_one_line_of_what_the_server_said(
    quirky: QuirkyServer,
    transport: ServerTransport,
    fault: Any,
    error: type[DserverfsError],
    said: str,
) -> None:
    quirky.faults = [fault] * ATTEMPTS

    with pytest.raises(error) as refusal:
        transport.request("GET", "/me", attempts=1)

    assert type(refusal.value) is error
    assert said in str(refusal.value)
    assert quirky.url in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert TOKEN not in str(refusal.value)
    assert len(quirky.requests) == 1


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("https://{host}/me", "set DSERVER_PROTOCOL=https"),
        ("https://other.example/lookup/me", "=https://other.example/lookup"),
        ("https://u:secret@sso.example/login?next=secret#secret", "wants a login"),
        ("", "is this a dserver"),
    ],
)
def test_redirect_says_what_to_set(
    quirky: QuirkyServer,
    transport: ServerTransport,
    location: str,
    said: str,
) -> None:
    host = "127.0.0.1"
    quirky.faults = [says(301, b"", Location=location.format(host=host))] * ATTEMPTS

    with pytest.raises(NotTheServer) as refusal:
        transport.get("/me")

    assert said in str(refusal.value)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    "page",
    [
        b"<title>400 The plain HTTP request was sent to HTTPS port</title>",
        b"Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />",
        b"Client sent an HTTP request to an HTTPS server.",
    ],
    ids=["nginx", "Apache", "Go"],
)
def test_server_that_wants_https_is_named(
    quirky: QuirkyServer, transport: ServerTransport, page: bytes
) -> None:
    quirky.faults = [says(400, page)] * ATTEMPTS

    with pytest.raises(UsageError, match="speaks https: set DSERVER_PROTOCOL=https"):
        transport.get("/me")


def test_answer_that_trickles_ends_at_the_deadline(
    quirky: QuirkyServer, transport: ServerTransport
) -> None:
    def trickle(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        try:
            for _ in range(1000):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            handler.close_connection = True

    quirky.faults = [trickle for _ in range(2 * ATTEMPTS)]
    began = time.monotonic()

    with pytest.raises(DeadlineExceeded):
        transport.request("GET", "/me", timeout_s=0.5)

    assert time.monotonic() - began < SOON_S


def test_answer_without_end_is_refused(
    quirky: QuirkyServer, transport: ServerTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = Deadline(10)
    response = transport.stream("/me", limit)

    with pytest.raises(ProtocolError, match="larger than 10 bytes"):
        list(transport.read_pieces(response, limit, max_bytes=10))


def test_connection_is_kept_and_replaced_when_it_dies(
    quirky: QuirkyServer, transport: ServerTransport
) -> None:
    def hang_up(handler: Any) -> None:
        handler.close_connection = True

    transport.get("/me")
    quirky.faults = [hang_up]

    assert transport.get("/me").json()["username"] == "grumpy"


def test_answer_that_unpacks_to_more_than_its_kind_may_have_is_not_read(
    quirky: QuirkyServer, transport: ServerTransport
) -> None:
    bomb = gzip.compress(b"[" + b" " * (64 << 20) + b"]")

    def explode(handler: Any) -> None:
        handler.answer(200, bomb, {"Content-Encoding": "gzip"})

    quirky.faults = [explode]
    tracemalloc.start()

    with pytest.raises(ProtocolError, match="larger than"):
        transport.get("/me")

    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * MAX_SMALL_ANSWER_BYTES


def test_of_an_endless_error_only_the_beginning_is_read(
    quirky: QuirkyServer, transport: ServerTransport
) -> None:
    page = b"<title>Sorry, not today</title>" + bytes(10 << 20)
    quirky.faults = [lambda handler: handler.answer(400, page, HTML)]

    with pytest.raises(ProtocolError, match="Sorry, not today"):
        transport.get("/me")


# Servers that are not there


def test_server_that_restarts_is_waited_for(
    quirky: QuirkyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            restarted.base_url = quirky.url  # it is up again

    monkeypatch.setattr(time, "sleep", sleep)
    restarted = ServerTransport(f"http://127.0.0.1:{closed_port()}", TokenSource(TOKEN, None))

    assert restarted.get("/me").json()["username"] == "grumpy"
    restarted.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_address_where_nobody_is_fails_at_once_if_so_asked(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    transport = ServerTransport(f"http://{host}:{closed_port()}", TokenSource(TOKEN, None))

    with pytest.raises(Unreachable, match=host):
        transport.request("GET", "/", authenticated=False, attempts=1)

    assert waits == []
    transport.close()


def test_what_was_handled_meanwhile_is_not_taken_for_the_reason(
    transport: ServerTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        inner = urllib3.exceptions.ProtocolError("Connection aborted.", OSError(104, "reset"))
        raise inner

    monkeypatch.setattr(urllib3.PoolManager, "urlopen", refuse)

    def ask_while_handling_another() -> None:
        try:
            raise sqlite3.OperationalError("database is locked")
        except sqlite3.Error:
            transport.get("/me")

    with pytest.raises(Unreachable) as refusal:
        ask_while_handling_another()

    assert "cannot be reached: reset;" in str(refusal.value)
    assert "database" not in str(refusal.value)


# Tokens


def test_login_that_is_asked_for_without_a_token_is_no_refusal_of_one(
    quirky: QuirkyServer, transport: ServerTransport
) -> None:
    quirky.faults = [says(401, {"msg": "who are you"})]

    with pytest.raises(NotAuthenticated) as refusal:
        transport.request("GET", "/config/versions", authenticated=False)

    assert "/config/versions: 401 who are you, where no token was sent" in str(refusal.value)


def test_token_replaced_after_its_refusal_is_used(quirky: QuirkyServer, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old-token\n")
    transport = ServerTransport(quirky.url, TokenSource(None, path))

    def refuse_and_replace(handler: Any) -> None:
        stamp = path.stat()
        path.write_text(f"{TOKEN}")  # of the same length and date, in place
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        handler.answer(401, {"msg": "Token has expired"})

    quirky.faults = [refuse_and_replace]

    assert transport.get("/me").json()["username"] == "grumpy"
    transport.close()


@pytest.mark.parametrize("answer", [says(401, {"msg": "expired"}), says(422, {"msg": "bad"})])
def test_token_that_stays_is_sent_once(quirky: QuirkyServer, tmp_path: Path, answer: Any) -> None:
    path = tmp_path / "token"
    path.write_text(jwt(sub="grumpy", exp=1_600_000_000))
    transport = ServerTransport(quirky.url, TokenSource(None, path))
    quirky.faults = [answer] * 3

    with pytest.raises(NotAuthenticated) as refusal:
        transport.get("/me")

    assert len(quirky.requests) == 1
    assert f"the token in {path} (of user grumpy, expired 2020-09-13 12:26 UTC)" in str(
        refusal.value
    )
    transport.close()


@pytest.mark.expects_log("sent unencrypted")
def test_token_over_plain_http_to_another_host_warns_once(
    caplog: pytest.LogCaptureFixture, quirky: QuirkyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", quirky.url)  # stands in for the other host
    transport = ServerTransport("http://data.invalid", TokenSource(TOKEN, None))
    quirky.faults = [says(200, {}), says(200, {}), says(200, {})]

    transport.request("GET", "/config/versions", authenticated=False)
    assert "unencrypted" not in caplog.text
    for _ in range(2):
        transport.get("/me")

    assert caplog.text.count("unencrypted") == 1
    transport.close()


def test_refused_connection_is_no_connection_and_not_a_slow_answer() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        transport = ServerTransport(url, TokenSource(TOKEN, None))

        with pytest.raises(NotConnected, match="cannot be reached: Connection refused"):
            transport.request("GET", "/me", attempts=1)

        transport.close()
