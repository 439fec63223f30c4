"""Names that have several addresses, and addresses at which something is wrong."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from dserverfs.remote import addresses
from dserverfs.remote.addresses import FailedAddresses

NAME = "localhost"  # to which a token is sent without a warning

Place = tuple[str, int]


def give_addresses(monkeypatch: pytest.MonkeyPatch, places: Mapping[int, Sequence[Place]]) -> None:
    """Have NAME lead to these places, by its port; forget what has failed."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host != NAME or int(port) not in places:
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
