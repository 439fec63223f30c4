"""The addresses of a host: looked up, and in the order in which they are tried.

Used by `bounded_sockets`, which connects to them, and by `dserverfs doctor`, which asks each. An
address that failed while its host has others is tried last for a while, by all connections
of the process: it refused, it was silent for longer than `NEXT_ADDRESS_S`, the connection broke,
or it answered that what is behind it is away. When the while is over one connection tries it
in its turn; the others do so after it has answered. Names are looked up for each new
connection, and not kept. Knows neither tokens nor URLs. Thread-safe.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Any, NamedTuple

from dserverfs.base.retry import pause_s

logger = logging.getLogger(__name__)

AVOIDED_S = (30.0, 600.0)  # longer each time; guess
MAX_FAILED = 256
# Of gateways whose server or store is away, and of servers that end. One that has too much to do
# (429) would have others asked to do it.
_AWAY_STATUSES = frozenset({500, 502, 503, 504})


class Address(NamedTuple):
    """A place of a host."""

    family: int
    place: tuple[Any, ...]  # what connect takes

    def __str__(self) -> str:
        host, port = self.place[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Failure(NamedTuple):
    """What is known of an address that failed. Times are of the clock."""

    last_s: float
    until_s: float  # it is avoided
    pause_s: float  # for how long that was

    def again(self, now_s: float) -> _Failure:
        """Return it with a longer pause, from now on."""
        longer_s = pause_s(self.pause_s, *AVOIDED_S)
        return _Failure(now_s, now_s + longer_s, longer_s)


class FailedAddresses:
    """Addresses that failed lately, at most `MAX_FAILED`.

    A change replaces the table, so that nothing is locked when a process forks. Of two at one
    moment one may be lost: then the address fails, or answers, once more.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._failures: Mapping[Address, _Failure] = {}

    def failed(self, address: Address) -> None:
        """Have an address tried after others; longer if it was before."""
        now_s = self._clock_s()
        known = self._failures.get(address)
        if known is None:
            logger.info("%s fails: other addresses of its host are asked first", address)
            known = _Failure(now_s, now_s, 0.0)
        # Until then it is what others met that were under way.
        is_avoided = now_s < known.until_s
        changed = known._replace(last_s=now_s) if is_avoided else known.again(now_s)
        self._replace({**self._failures, address: changed})

    def now_s(self) -> float:
        return self._clock_s()

    def answered(self, address: Address, connected_s: float = math.inf) -> None:
        """Note that an address is as good as others, by a connection made then.

        What was connected before the address failed says nothing of it since.
        """
        failure = self._failures.get(address)
        if failure is not None and connected_s >= failure.last_s:
            logger.info("%s answers again", address)
            self._replace({key: it for key, it in self._failures.items() if key != address})

    def is_avoided(self, address: Address) -> bool:
        failure = self._failures.get(address)
        return failure is not None and self._clock_s() < failure.until_s

    def ordered(self, addresses: Sequence[Address]) -> list[Address]:
        """Return the addresses as they are to be tried; avoided ones last, the longest good first.

        One that need not be avoided any more is the first for this caller only.
        """
        failures, now_s = self._failures, self._clock_s()

        def failed_s(address: Address) -> float:
            failure = failures.get(address)
            return failure.last_s if failure is not None and now_s < failure.until_s else 0.0

        in_order = sorted(addresses, key=failed_s) if failures else list(addresses)
        if len(in_order) > 1 and in_order[0] in failures:
            self._replace({**failures, in_order[0]: failures[in_order[0]].again(now_s)})
        return in_order

    def _replace(self, failures: dict[Address, _Failure]) -> None:
        if len(failures) > MAX_FAILED:
            del failures[min(failures, key=lambda address: failures[address].last_s)]
        self._failures = failures


# Of the process: every client, and every thread of it, learns from the first that waited.
FAILED = FailedAddresses()


class Peer(NamedTuple):
    """The other end of a connection whose host has more than one address."""

    address: Address
    connected_s: float = math.inf  # on the clock of `FAILED`
    others: tuple[Address, ...] = ()  # of its host

    def failed(self) -> None:
        FAILED.failed(self.address)

    def answered(self, status: int) -> None:
        """Note the status of an answer."""
        if status in _AWAY_STATUSES:
            FAILED.failed(self.address)
        else:
            FAILED.answered(self.address, self.connected_s)

    def has_another(self) -> bool:
        """Return whether another address need not be avoided."""
        return _only.address is None and not all(map(FAILED.is_avoided, self.others))

    def is_wanted(self) -> bool:
        """Return whether a new connection would go there."""
        if _only.address is not None:
            return self.address == _only.address
        return not FAILED.is_avoided(self.address)


class _Only(threading.local):
    address: Address | None = None


_only = _Only()


@contextlib.contextmanager
def only(address: Address) -> Iterator[None]:
    """Have what this thread asks for in the block asked at one address of its host."""
    before, _only.address = _only.address, address
    try:
        yield
    finally:
        _only.address = before


def peer_of(address: Address, places: Sequence[Address]) -> Peer | None:
    """Return whom to tell what becomes of a connection; None if its host has no other address."""
    others = tuple(place for place in places if place != address)
    has_others = bool(others) or address == _only.address
    return Peer(address, FAILED.now_s(), others) if has_others else None


def to_try(host: str, port: int, timeout_s: float) -> list[Address]:
    """Return the addresses of a host in the order in which they are to be tried.

    Raises what `addresses_of` does.
    """
    addresses = addresses_of(host, port, timeout_s)
    if _only.address in addresses:
        return [_only.address]
    return FAILED.ordered(addresses)


def addresses_of(host: str, port: int, timeout_s: float) -> list[Address]:
    """Return the addresses of a host, those of IPv6 and IPv4 in turns (RFC 8305, section 4).

    The system's lookup cannot be interrupted: one that takes longer is left to a
    thread of its own. Raises TimeoutError, and gaierror if there is none.
    """
    host = host.strip("[]")
    found: Future[list[Address]] = Future()
    if _is_address(host):
        _look_up(host, port, found)
    else:
        thread = threading.Thread(target=_look_up, args=(host, port, found), daemon=True)
        thread.name = "name-lookup"
        thread.start()
        if not wait_for([found], timeout_s).done:
            raise TimeoutError(f"no address of {host} is found in time")
    return _in_turns(found.result())


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _look_up(host: str, port: int, found: Future[list[Address]]) -> None:
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # Of an enumeration the hash takes longer.
        addresses = [Address(int(family), place) for family, _, _, _, place in entries]
        found.set_result(list(dict.fromkeys(addresses)))
    except BaseException as error:  # noqa: BLE001 - top of a thread: the caller gets it
        found.set_exception(error)


def _in_turns(addresses: Sequence[Address]) -> list[Address]:
    families = dict.fromkeys(address.family for address in addresses)
    by_family = [[each for each in addresses if each.family == family] for family in families]
    turns = itertools.zip_longest(*by_family)
    return [address for turn in turns for address in turn if address is not None]
