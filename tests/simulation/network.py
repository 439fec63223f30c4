"""The network of the simulation: requests of dserverfs go to the dserver in memory, or get lost.

`install` puts it in the place of connections: what is above them (time limits, retries,
parsing, URLs) is the real code. The weather decides what happens to a request.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import urllib3

from tests.simulation import threads
from tests.simulation.dserver import Dserver
from tests.simulation.scheduler import Scheduler
from tests.simulation.store import Answer, Request


class Fate(NamedTuple):
    """What happens to one request."""

    kind: str = "arrives"
    # of: arrives, refused (no connection), lost (before it was heard), unheard (the answer is
    # lost), silent (nothing comes), cut (the body breaks off), garbled (a byte is another),
    # status (an answer of a proxy), page (HTML with 200)
    after_s: float = 0.0
    status: int = 0
    headers: Mapping[str, str] = {}


FINE = Fate()


class Network:
    """The way from the processes to the server; `fate_of` is asked about each request."""

    def __init__(
        self, scheduler: Scheduler, dserver: Dserver, fate_of: Callable[[Request], Fate]
    ) -> None:
        self._scheduler = scheduler
        self._dserver = dserver
        self._fate_of = fate_of
        self.seam: Callable[[str, str], None] = lambda kind, where: None
        self.heard: Callable[[Request], None] = lambda request: None
        self.requests = 0

    def exchange(self, request: Request, patience_s: float) -> Answer:
        """Return the answer; raises what connections raise. Waits at most `patience_s`."""
        self._scheduler.require_alive()
        self.seam("request", request.url)
        self.requests += 1
        fate = self._fate_of(request)
        if fate.kind == "refused":
            raise urllib3.exceptions.NewConnectionError(None, "connection refused")  # type: ignore[arg-type]
        if fate.kind == "lost":
            raise urllib3.exceptions.ProtocolError("connection reset", ConnectionResetError())
        if fate.kind == "silent" or fate.after_s >= patience_s:
            threads.sleep(patience_s)
            raise urllib3.exceptions.ReadTimeoutError(None, "", "timed out")  # type: ignore[arg-type]
        if fate.after_s:
            threads.sleep(fate.after_s)
        if fate.kind == "status":
            kind = {"Content-Type": "text/html"}
            return Answer(fate.status, {**kind, **fate.headers}, b"<title>a proxy's</title>")
        if fate.kind == "page":
            return Answer(200, {"Content-Type": "text/html"}, b"<html>sign in</html>")
        answer = self._dserver.answer(request)
        self.seam("answer", request.url)
        if fate.kind == "unheard":
            raise urllib3.exceptions.ProtocolError("connection reset", ConnectionResetError())
        if fate.kind == "cut" and answer.body:
            return answer._replace(body=answer.body[: len(answer.body) // 2])
        if fate.kind == "garbled" and answer.body:
            place = self._scheduler.rng.randrange(len(answer.body))
            body = bytearray(answer.body)
            body[place] ^= 1 << self._scheduler.rng.randrange(8)
            return answer._replace(body=bytes(body))
        self.heard(request)
        return answer


_network: Network


def use(network: Network) -> None:
    global _network
    _network = network


class _Body(io.BytesIO):
    """A body that may end too soon, as that of a connection does."""


class SimulatedConnections:
    """In the place of `remote.connections.Connections`."""

    def __init__(self, trust: Any = None, *, max_idle: int = 0) -> None:
        self._is_closed = False

    def request(
        self, method: str, url: str, headers: Mapping[str, str], deadline: Any, *, body: Any = None
    ) -> urllib3.BaseHTTPResponse:
        deadline.begin()
        content = body if isinstance(body, bytes) else b"".join(body or ())
        sent = {name.lower(): value for name, value in headers.items()}
        answer = _network.exchange(Request(method, url, sent, content), deadline.wait_s())
        return urllib3.HTTPResponse(
            _Body(answer.body),
            headers=answer.headers,
            status=answer.status,
            preload_content=False,
            decode_content=False,
            enforce_content_length=True,
            request_method=method,
        )

    def begin_anew(self, url: str) -> None:
        """There are no kept ones."""

    def close(self) -> None:
        self._is_closed = True


def put(
    connections: Any,
    url: str,
    headers: Mapping[str, str],
    content: Any,
    *,
    stall_timeout_s: float,
    on_progress: Callable[[int], None],
) -> Any:
    """In the place of `remote.puts.put`."""
    import os

    from dserverfs.base.errors import ItemChanged
    from dserverfs.remote import puts
    from dserverfs.remote.http1 import parse_head

    if not isinstance(content, bytes):
        data = os.pread(content.descriptor, content.length, content.offset)
        if len(data) < content.length:
            raise ItemChanged(f"{content.relpath}: became shorter", relpath=content.relpath)
    else:
        data = content
    on_progress(0)
    sent = {name.lower(): value for name, value in headers.items()}
    try:
        answer = _network.exchange(Request("PUT", url, sent, data), stall_timeout_s)
    except urllib3.exceptions.ReadTimeoutError as error:
        raise TimeoutError("stalled") from error
    on_progress(len(data))
    lines = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
    head = parse_head(f"HTTP/1.1 {answer.status} said\r\n{lines}\r\n".encode())
    assert head is not None
    return puts.Answer(head, answer.body)


class SimulatedGets:
    """In the place of `remote.many_gets.ManyGets`: one after the other."""

    def __init__(self, connections: Any, *, site_cache: None = None) -> None:
        self.is_closed = False

    def run(self, take: Callable[[], Any], done: Callable[[list[Any]], None]) -> None:
        from dserverfs.remote.many_gets import Got

        while (want := take()) is not None:
            content: bytes | None = None
            if not self.is_closed:
                try:
                    answer = _network.exchange(Request("GET", want.url, {}), 10.0)
                except (urllib3.exceptions.HTTPError, OSError):
                    answer = Answer(0, {}, b"")
                if answer.status == 200 and len(answer.body) == want.size_in_bytes:
                    content = answer.body
            done([Got(want.what, content)])

    def close(self) -> None:
        self.is_closed = True


def install() -> None:
    """Put it in the place of connections; dserverfs is imported by now."""
    from dserverfs.remote import dserver_http, objects

    modules: Any = (dserver_http, objects)
    for module in modules:
        module.Connections = SimulatedConnections
    modules[1].put = put
    modules[1].ManyGets = SimulatedGets
