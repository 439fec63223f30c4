"""Requests that no client sends, byte for byte: refused, and nobody else notices."""

from __future__ import annotations

import json
import random
import re
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mutations import mangled
from tests.support.servers import ServerHandle, encoded

LAST = b"GET /config/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def exchange(server: ServerHandle, sent: bytes) -> bytes:
    """Send these bytes and a good request behind them; return all that is answered."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=90) as connection:
        try:
            connection.sendall(sent + LAST)
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionError:
            pass  # it hung up before it had read all, which is an answer, too
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in STATUS.findall(answer)]


SMUGGLED = b"GET /published/x HTTP/1.1\r\nHost: x\r\n\r\n"  # 404: not one of the other answers
ODD: dict[str, bytes] = {
    "two lengths": b"POST /token HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 50\r\n\r\n{}",
    "length and chunks": (
        b"POST /token HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n" + SMUGGLED
    ),
    "chunks in other words": (
        b"POST /token HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED
    ),
    "length with a sign": b"POST /token HTTP/1.1\r\nContent-Length: +2\r\n\r\n{}",
    "length of other digits": "POST /token HTTP/1.1\r\nContent-Length: \u0662\r\n\r\n{}".encode(),
    "huge length": b"POST /token HTTP/1.1\r\nContent-Length: " + b"9" * 400 + b"\r\n\r\n{}",
    "chunk of no length": b"POST /token HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
    "bare line feeds": b"GET /me HTTP/1.1\nHost: x\n\n",
    "folded header": b"GET /me HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
    "blank before the colon": b"GET /me HTTP/1.1\r\nAuthorization : Bearer x\r\n\r\n",
    "NUL in a header": b"GET /me HTTP/1.1\r\nX: a\0b\r\n\r\n",
    "header without a name": b"GET /me HTTP/1.1\r\n: x\r\n\r\n",
    "large header": b"GET /me HTTP/1.1\r\nX: " + b"x" * 300_000 + b"\r\n\r\n",
    "many headers": b"GET /me HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    "long address": b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "many parameters": b"GET /uris?" + b"page=1&" * 20_000 + b" HTTP/1.1\r\n\r\n",
    "another version": b"GET /me HTTP/9.9\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(60) + b"\r\n\r\n",
    "no words": b"\r\n\r\n\r\n",
    "another server": b"GET http://elsewhere.example/me HTTP/1.1\r\nHost: x\r\n\r\n",
    "another directory": b"GET /static/../../../../etc/passwd HTTP/1.1\r\n\r\n",
    "another directory, encoded": b"GET /static/%2e%2e/%2e%2e%2fetc%2fpasswd HTTP/1.1\r\n\r\n",
    "line ends in an address": b"GET /me%0d%0aX-Injected:%201 HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /me HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
}


@pytest.mark.parametrize("what", ODD)
def test_odd_request_is_refused(server: ServerHandle, what: str) -> None:
    answer = exchange(server, ODD[what])

    found = statuses(answer)
    assert all(400 <= status < 500 or status == 501 for status in found if status != 200), answer[
        :2000
    ]
    assert found[:1] != [200] or what == "no words", answer[:2000]
    assert b"X-Injected" not in answer
    assert b"root:" not in answer
    assert server.get("/config/health", token="").status_code == 200


@pytest.mark.parametrize("what", ["two lengths", "length and chunks", "chunks in other words"])
def test_request_in_the_body_of_another_is_not_answered_behind_a_proxy(
    server: ServerHandle, what: str
) -> None:
    """Where a proxy sees one request and the server two, the second is asked in another's name."""
    answer = exchange(server, ODD[what])

    assert b"this link has expired" not in answer or statuses(answer)[0] >= 400


def test_first_of_two_tokens_does_not_open_what_the_second_may_not(server: ServerHandle) -> None:
    for first, second in ((server.token, "x"), ("x", server.token)):
        head = (
            f"GET /me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {first}\r\n"
            f"Authorization: Bearer {second}\r\n\r\n"
        )
        assert statuses(exchange(server, head.encode()))[0] in (400, 401, 422)


def test_parameter_that_is_given_twice_is_no_fault(server: ServerHandle) -> None:
    for query in ("page=1&page=x", "page=x&page=1", "page_size=1&page_size=0", "sort=uri&sort=%00"):
        assert server.get(f"/uris?{query}").status_code < 500


@settings(max_examples=60, deadline=None)
@given(chance=st.randoms(use_true_random=True))
def test_any_bytes_get_an_answer_that_is_no_fault(
    server: ServerHandle, chance: random.Random
) -> None:
    path = encoded(f"{server.backend_uri}/x").encode()
    example = b"PUT /readmes/%b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n" % (
        path,
        server.token.encode(),
    )
    body = json.dumps({"readme": "x"}).encode()
    words = (b"\r\n", b"\n", b"Content-Length: 0\r\n", b"%00", b"?page=", b"\xff", b" ", b":")

    sent = mangled(example, words, chance) + b"Content-Length: %d\r\n\r\n" % len(body) + body

    assert all(status < 500 or status == 501 for status in statuses(exchange(server, sent)))
