"""An HTTP server before a real dserver or store, whose plans say what it does wrong.

For tests of what survives a fault. A request that matches a plan takes the next of its
faults (`front_faults`); every other is passed on as it is, and so are all when a plan has
no faults left. Host and path are passed on as they come, so signed URLs stay good.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import re
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple

from tests.support.local_web import Certificates, serving

_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length", "host", "date"})
HOLD_S = 120.0
DRIP_S = 0.02


class Answer(NamedTuple):
    """What the server behind says."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Request(NamedTuple):
    """A request as it came."""

    method: str
    path: str  # with its query
    headers: dict[str, str]
    content: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.path.partition('?')[0]}"


class Plan:
    """The faults of the requests that match, and what was asked.

    `pattern` is searched for in "METHOD /path", and `within` in the whole path, unquoted,
    or else in the content: the name of a bucket keeps the plans of one apart from another's.
    """

    def __init__(self, pattern: str, faults: Iterable[Fault], *, within: str = "") -> None:
        self._pattern = re.compile(pattern)
        self._within = within
        self._faults = iter(faults)
        self._lock = threading.Lock()
        self.released = threading.Event()  # who is held up may end
        self.requests: list[Request] = []
        self.done = 0  # of the faults

    def matches(self, request: Request) -> bool:
        if self._pattern.search(str(request)) is None:
            return False
        within = self._within
        return within in urllib.parse.unquote(request.path) or within.encode() in request.content

    def take(self, request: Request) -> Fault | None:
        """Note a request that matches; return its fault, if there is one left."""
        with self._lock:
            self.requests.append(request)
            fault = next(self._faults, None)
            self.done += fault is not None
            return fault

    def lift(self) -> None:
        """Have everything go well from now on."""
        with self._lock:
            self._faults = iter(())
        self.released.set()


class Front:
    """The plans of a front, and the way behind it."""

    def __init__(self, target: tuple[str, int] | None) -> None:
        self.target = target  # None: where the request's Host is
        self.url = ""
        self.connections = 0  # that there ever were
        self.lock = threading.Lock()
        self._plans: list[Plan] = []
        self._sockets: set[socket.socket] = set()
        # Kept for the next request of whichever client: a server has its limit.
        self.behind: list[http.client.HTTPConnection] = []

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def add(self, plan: Plan) -> Plan:
        with self.lock:
            self._plans.append(plan)
        return plan

    def remove(self, plan: Plan) -> None:
        plan.lift()
        with self.lock:
            self._plans.remove(plan)

    @contextlib.contextmanager
    def planned(self, pattern: str, faults: Iterable[Fault], *, within: str = "") -> Iterator[Plan]:
        """Have a plan as long as the block lasts."""
        plan = self.add(Plan(pattern, faults, within=within))
        try:
            yield plan
        finally:
            self.remove(plan)

    def fault_for(self, request: Request) -> tuple[Plan, Fault | None] | None:
        """Return the first plan that the request matches, and the fault that it takes."""
        with self.lock:
            plans = list(self._plans)
        for plan in plans:
            if plan.matches(request):
                return plan, plan.take(request)
        return None

    def hang_up(self) -> None:
        """End all connections."""
        with self.lock:
            sockets = list(self._sockets)
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self.lock:
            plans = list(self._plans)
        for plan in plans:
            plan.lift()
        self.hang_up()
        for each in self.behind:
            each.close()

    def take_behind(self) -> http.client.HTTPConnection | None:
        with contextlib.suppress(IndexError):
            return self.behind.pop()
        return None

    def is_open(self, connection: socket.socket, is_open: bool) -> None:
        with self.lock:
            if is_open:
                self.connections += 1
                self._sockets.add(connection)
            else:
                self._sockets.discard(connection)


class Exchange(BaseHTTPRequestHandler):
    """A request, and what can be done to it: passes on what it does not spoil."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    front: Front
    plan: Plan
    _content: bytes | None = None

    def setup(self) -> None:
        super().setup()
        self.front.is_open(self.connection, True)

    def finish(self) -> None:
        self.front.is_open(self.connection, False)
        with contextlib.suppress(OSError):
            super().finish()

    def _dispatch(self) -> None:
        self._content = None
        length = int(self.headers.get("Content-Length", 0))
        headers = dict(self.headers.items())
        # What is put may be refused before it is read; the path says enough of it.
        request = Request(self.command, self.path, headers, b"")
        if self.command != "PUT" or not self.path.partition("?")[2]:
            self._content = self.rfile.read(length)
            request = request._replace(content=self._content)
        taken = self.front.fault_for(request)
        if taken is None or taken[1] is None:
            pass_on(self)
        else:
            self.plan = taken[0]
            taken[1](self)
        if self._content is None:  # nobody has read it
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _dispatch

    @property
    def content(self) -> bytes:
        """The body of the request."""
        if self._content is None:
            self._content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return self._content

    def ask(self, content: bytes | None = None, **headers: str | None) -> Answer:
        """Return what the server behind answers, to the request as it came.

        With another content, or with `headers` in place of its own (None: without).
        """
        content = self.content if content is None else content
        changed = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        kept = self.front.take_behind() if self.front.target else None
        behind = kept or self._connected()
        try:
            behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                sent = changed.get(name.lower(), value)
                if sent is not None:
                    behind.putheader(name, sent)
            behind.endheaders(content or None)
            response = behind.getresponse()
            answer = Answer(response.status, response.getheaders(), response.read())
        except (OSError, http.client.HTTPException):
            behind.close()
            if kept is None:
                raise
        else:
            if self.front.target and behind.sock is not None:
                self.front.behind.append(behind)
            else:
                behind.close()
            return answer
        return self.ask(content, **headers)

    def _connected(self) -> http.client.HTTPConnection:
        """Connect without looking a name up, which tests have go wrong."""
        target = self.front.target
        if target is None:
            host, _, port = self.headers["Host"].partition(":")
            target = (host, int(port))
        connection = http.client.HTTPConnection(*target)
        connection.sock = socket.socket()
        connection.sock.settimeout(60)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sock.connect(target)
        return connection

    def head(self, answer: Answer, *more: tuple[str, str]) -> bytes:
        """Return status line and headers as they are sent, less Content-Length."""
        headers = [each for each in answer.headers if each[0].lower() not in _HOP_BY_HOP]
        lines = [f"{name}: {value}\r\n" for name, value in [*headers, *more]]
        return f"HTTP/1.1 {answer.status} Said\r\n{''.join(lines)}".encode("latin-1")

    def say(self, *pieces: bytes) -> None:
        with contextlib.suppress(OSError):
            for piece in pieces:
                self.wfile.write(piece)

    def answer(self, answer: Answer, *more: tuple[str, str]) -> None:
        """Say all of an answer."""
        length = ("Content-Length", str(len(answer.body)))
        self.say(self.head(answer, length, *more) + b"\r\n" + answer.body)

    def hold(self) -> None:
        """Say nothing more until the plan is lifted."""
        self.plan.released.wait(HOLD_S)
        self.close_connection = True

    def drip(self, pieces: Iterable[bytes]) -> None:
        """Say piece after piece, slowly, until the other side hangs up."""
        with contextlib.suppress(OSError):
            for piece in pieces:
                if self.plan.released.wait(DRIP_S):
                    break
                self.wfile.write(piece)
        self.close_connection = True

    def reset(self) -> None:
        """Reset the connection."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


Fault = Callable[[Exchange], None]


def pass_on(exchange: Exchange) -> None:
    exchange.answer(exchange.ask())


def once(fault: Fault) -> Iterator[Fault]:
    return iter([fault])


def for_good(fault: Fault) -> Iterator[Fault]:
    return itertools.repeat(fault)


@contextlib.contextmanager
def front(
    target: tuple[str, int] | None, certificates: Certificates | None = None
) -> Iterator[Front]:
    """Run one on a free port of 127.0.0.1, with TLS if there are certificates."""
    before = Front(target)
    with serving(Exchange, certificates, front=before) as before.url:
        try:
            yield before
        finally:
            before.close()
