"""Heads of requests and answers: nothing but one head is sent, and any answer is understood."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dserverfs.base.errors import ProtocolError
from dserverfs.remote.http1 import (
    MAX_HEAD_BYTES,
    Target,
    header_lines,
    parse_head,
    request_head,
    require_headers_of_an_object,
    target_of,
)
from dserverfs.remote.objects import Storage

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 3\r\netag: "x"\r\n\r\n'


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h/a?b=c", Target("http://h", "h", "/a?b=c")),
        ("https://h.example:8443/%20", Target("https://h.example:8443", "h.example:8443", "/%20")),
        ("http://[::1]:80/", Target("http://[::1]:80", "[::1]:80", "/")),
    ],
)
def test_url_is_taken_apart(url: str, expected: Target) -> None:
    assert target_of(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        *("http://h/a b", "http://h/a\r\nX: y", "ftp://h/", "http://u:p@h/", "http://h:1/\u00e9"),
        *("http://h", "http:///a", "http://h:123456/a", ""),
    ],
)
def test_url_that_is_not_one_line_to_one_host_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        target_of(url)


def test_request_says_what_it_is_given() -> None:
    target = target_of("http://h:1/k?s=1")

    head = request_head("PUT", target.path, target, header_lines({"X-A": "b", "Q": "\u00e9"}))

    assert head == b"PUT /k?s=1 HTTP/1.1\r\nHost: h:1\r\nX-A: b\r\nQ: \xe9\r\n\r\n"


@pytest.mark.parametrize("headers", [{"a": "b\r\nc: d"}, {"a\n": "b"}, {"a": "\x00"}])
def test_header_that_is_more_than_one_line_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        header_lines(headers)


def test_answer_is_understood_once_its_head_has_ended() -> None:
    for end in range(len(ANSWER)):
        assert parse_head(ANSWER[:end]) is None

    head = parse_head(ANSWER + b"abc")

    assert head is not None
    assert (head.status, head.reason, head.length, head.end) == (200, "OK", 3, len(ANSWER))
    assert head.headers == {"Content-Length": "3", "Etag": '"x"'}
    assert head.keeps_connection
    assert head.is_as_stored()


@pytest.mark.parametrize(
    ("first", "header", "length", "keeps"),
    [
        ("HTTP/1.1 200 OK", "Content-Length: 5", 5, True),
        ("HTTP/1.1 200 OK", "Content-Length: 5\r\nConnection: Close", 5, False),
        ("HTTP/1.0 200 OK", "Content-Length: 5", 5, False),
        ("HTTP/1.1 200", "Transfer-Encoding: chunked", None, False),
        ("HTTP/1.1 200 OK", "Transfer-Encoding: chunked\r\nContent-Length: 5", None, False),
        ("HTTP/1.1 200 OK", "Content-Length: -5", None, False),
        ("HTTP/1.1 200 OK", f"Content-Length: {'9' * 5000}", None, False),
        ("HTTP/1.1 204 No Content", "X: y", 0, True),
    ],
)
def test_length_of_the_body_and_whether_another_request_may_follow(
    first: str, header: str, length: int | None, keeps: bool
) -> None:
    head = parse_head(f"{first}\r\n{header}\r\n\r\n".encode())

    assert head is not None
    assert (head.length, head.keeps_connection) == (length, keeps)


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("", True), ("identity", True), ("AWS-chunked", True), ("gzip", False), ("br", False)],
)
def test_encoded_body_is_not_as_stored(encoding: str, expected: bool) -> None:
    head = parse_head(f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\n\r\n".encode())

    assert head is not None
    assert head.is_as_stored() is expected


@pytest.mark.parametrize("answer", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 20x\r\n\r\n", b"\r\n\r\n"])
def test_answer_that_is_no_http_is_an_error(answer: bytes) -> None:
    with pytest.raises(ConnectionError, match="not HTTP"):
        parse_head(answer)


def test_head_without_end_is_an_error() -> None:
    with pytest.raises(ConnectionError, match="does not end"):
        parse_head(b"HTTP/1.1 200 OK\r\n" + b"a" * MAX_HEAD_BYTES)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_head_or_an_error_of_the_connection(data: bytes, begins_well: bool) -> None:
    try:
        head = parse_head((b"HTTP/1.1 200 OK\r\n" if begins_well else b"") + data + b"\r\n\r\n")
    except ConnectionError:
        assert not begins_well
        return
    assert head is not None


@pytest.mark.parametrize("second", ["4", "", "03", "9" * 30])
def test_answer_with_two_lengths_is_an_error(second: str) -> None:
    """Read by the wrong one, the rest would be taken for the answer to the next request."""
    with pytest.raises(ConnectionError, match="two lengths"):
        parse_head(ANSWER.replace(b"\r\n\r\n", f"\r\nCONTENT-LENGTH: {second}\r\n\r\n".encode()))

    same = parse_head(ANSWER.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n"))
    assert same is not None
    assert same.length == 3


FOREIGN = (
    *("Host", "content-length", "Transfer-Encoding", "CONNECTION", "Expect", "Authorization"),
    *("Cookie", "", "a b", "a:b", "\xe9", "a\r\nHost", ":", " Host", "Host "),
)


@pytest.mark.parametrize("name", FOREIGN)
def test_header_that_is_not_of_an_object_is_not_sent(name: str) -> None:
    """A server says which headers a PUT has: not where it goes and where it ends."""
    with pytest.raises(ProtocolError, match="not its to give"):
        Storage().write("http://127.0.0.1:1/x", {name: "1"}, b"GET / HTTP/1.1", lambda count: None)


def test_headers_of_objects_are_sent() -> None:
    require_headers_of_an_object({"Content-MD5": "x", "x-amz-meta-a": "y", "x-ms-blob-type": "z"})
