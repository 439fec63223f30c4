"""The heads of HTTP/1.1 requests and answers, as far as GET and PUT of objects need them.

Used by `puts` and `many_gets`, which speak HTTP on connections that urllib3 opened,
because a head costs http.client more than the rest of the work: 2,000 PUTs of 4 KiB take
0.26 s of processor time this way, 0.39 s with http.client on the same connections and
0.8 s with urllib3. libcurl (pycurl 7.49) was measured too. It needs 0.21 s for these PUTs
and as much as this for small GETs, but 1.3 times urllib3's time for four large downloads
at once and 2.8 times that of sendfile for large PUTs. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

MAX_HEAD_BYTES = 64 * 1024
# Printable ASCII only: a URL cannot be more than one line of a request.
_URL = re.compile(r"(https?://((?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?))(/[!-~]*)\Z")
_HEADER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_NOT_OF_AN_OBJECT = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "expect", "upgrade"}
    | {"te", "trailer", "authorization", "cookie", "proxy-authorization", "proxy-connection"}
)
_MAX_DIGITS = 19  # of a size; int() refuses thousands


class Target(NamedTuple):
    """The parts of a URL that a request needs."""

    origin: str  # scheme, host and port
    authority: str  # for the Host header
    path: str  # with the query


class Head(NamedTuple):
    """The head of an answer."""

    status: int
    reason: str
    headers: Mapping[str, str]  # names as in "Retry-After"
    length: int | None  # of the body; None if only its end will tell
    keeps_connection: bool  # once the body is read
    end: int  # where the body begins

    def is_as_stored(self) -> bool:
        """Return whether the body has the bytes of the object, without compression."""
        encoding = self.headers.get("Content-Encoding", "").lower()
        return encoding in ("", "identity", "aws-chunked")


def target_of(url: str) -> Target:
    """Return the parts of a URL; raises ValueError if it cannot stand in a request."""
    match = _URL.match(url)
    if match is None:
        raise ValueError("a URL that the server gave cannot be sent")
    return Target(*match.groups())


def require_headers_of_an_object(headers: Mapping[str, str]) -> None:
    """Raise ValueError for headers that say more than what the bytes of a PUT are.

    A server names them. With another length or host, what a user uploads would be read as
    further requests, or by another than its URL says.
    """
    for name in headers:
        if not _HEADER.match(name) or name.lower() in _NOT_OF_AN_OBJECT:
            raise ValueError(f"the server wants a header {name!r}, which is not its to give")


def header_lines(headers: Mapping[str, str]) -> str:
    """Return the headers of a request; raises ValueError if one cannot be sent."""
    lines = [f"{name}: {value}" for name, value in headers.items()]
    if not "".join(lines).isprintable():
        raise ValueError("a header that the server gave cannot be sent")
    return "".join(f"{line}\r\n" for line in lines)


def request_head(method: str, url_or_path: str, target: Target, lines: str) -> bytes:
    """Return the head of a request with these header lines; raises ValueError if beyond Latin-1."""
    first = f"{method} {url_or_path} HTTP/1.1\r\nHost: {target.authority}\r\n"
    return f"{first}{lines}\r\n".encode("latin-1")


def parse_head(data: bytes | bytearray) -> Head | None:
    """Return the head that `data` begins with; None if it has not ended.

    Raises ConnectionError if it is too long, or not HTTP.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > MAX_HEAD_BYTES:
            raise ConnectionError("the head of the answer does not end")
        return None
    first, *lines = data[:end].decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    code, _, reason = rest.partition(" ")
    if not version.startswith("HTTP/1.") or not (code.isdecimal() and len(code) == 3):
        raise ConnectionError("the answer is not HTTP")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.title(), value.strip()
        if name == "Content-Length" and headers.setdefault(name, value) != value:
            raise ConnectionError("the answer has two lengths")  # one of them is another's
        headers[name] = value
    length: int | None = None
    size = headers.get("Content-Length", "")
    if code == "204":
        length = 0
    elif size.isdecimal() and len(size) <= _MAX_DIGITS and "Transfer-Encoding" not in headers:
        length = int(size)
    closing = version == "HTTP/1.0" or "close" in headers.get("Connection", "").lower()
    keeps_connection = length is not None and not closing
    return Head(int(code), reason.strip(), headers, length, keeps_connection, end + 4)
