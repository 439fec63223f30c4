"""Names that have several addresses, and addresses at which something is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import select
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dserverfs.remote import addresses
from dserverfs.remote.addresses import FailedAddresses
from dserverfs.server.web import WebServer
from tests.support.front import Front, front
from tests.support.server_app import AppClient
from tests.support.servers import ServerHandle

MIB = 1024 * 1024
PARTS_FROM = 3 * MIB
NAME = "localhost"  # to which a token is sent without a warning

Place = tuple[str, int]


class _Quiet:
    def wake(self) -> None:
        """Nobody waits for the server's faults."""


@dataclasses.dataclass
class Site:
    """A real server and store, and the good way to each."""

    app: AppClient
    ways: dict[str, Front]
    uri: str  # of a dataset


@contextlib.contextmanager
def running_site(
    server: ServerHandle, directory: Path, contents: Mapping[str, bytes], *, name: str = NAME
) -> Iterator[Site]:
    """Run a server of a store that has that name in its URLs, with a dataset."""
    app = AppClient(server, directory, max_put_bytes=PARTS_FROM, part_bytes=5 * MIB)
    with contextlib.ExitStack() as stack:
        stack.callback(app.close)
        endpoint = urlsplit(app.storage.endpoint)
        assert endpoint.port is not None
        uri = app.upload(contents, readme=b"---\nfirst: 1\n")
        to_store = stack.enter_context(front(("127.0.0.1", endpoint.port)))
        # The server itself asks the store, and signs URLs of its front.
        app.store.storage = dataclasses.replace(
            app.storage, endpoint=f"http://{name}:{to_store.port}"
        )
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        stack.callback(listener.close)
        web: Any = WebServer(app.app, listener, _Quiet())  # type: ignore[arg-type]
        stack.enter_context(web.running())
        to_server = stack.enter_context(front(listener.getsockname()))
        yield Site(app, {"server": to_server, "store": to_store}, uri)


def give_addresses(
    monkeypatch: pytest.MonkeyPatch, places: Mapping[int, Sequence[Place]], *, name: str = NAME
) -> None:
    """Have a name lead to these places, by its port; forget what has failed."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host != name or int(port) not in places:
            return look_up(host, port, *arguments, **options)
        return [
            entry for place in places[int(port)] for entry in look_up(*place, *arguments, **options)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(addresses, "FAILED", FailedAddresses())


@contextlib.contextmanager
def refusing(host: str = "127.0.0.1") -> Iterator[Place]:
    """An address at which nothing listens."""
    with _bound(host) as listener:
        yield listener.getsockname()[:2]


@contextlib.contextmanager
def silent(host: str = "127.0.0.1") -> Iterator[Place]:
    """An address that takes connections and says nothing."""
    with _bound(host) as listener:
        listener.listen(128)
        yield listener.getsockname()[:2]


@contextlib.contextmanager
def black_hole(host: str = "127.0.0.1") -> Iterator[Place]:
    """An address that loses what is sent to it: the kernel drops a SYN while the queue is full."""
    with _bound(host) as listener, contextlib.ExitStack() as stack:
        listener.listen(0)
        place = listener.getsockname()[:2]
        for _ in range(8):
            filler = stack.enter_context(socket.socket(listener.family))
            filler.setblocking(False)
            assert filler.connect_ex(place) == errno.EINPROGRESS
            if not select.select([], [filler], [], 0.05)[1]:
                yield place
                return
        pytest.skip("this kernel drops no connection of a full queue")


@contextlib.contextmanager
def _bound(host: str) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        try:
            listener.bind((host, 0))
        except OSError as error:
            pytest.skip(f"this machine has no {host}: {error.strerror}")
        yield listener
