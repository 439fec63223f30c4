"""Of a server's and a store's addresses one has a fault: everything goes well by way of the other.

The faults are those of a machine that is down, of a gateway that dies and of one whose server
or store is away; the operations are all that crosses the network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base import retry
from dserverfs.base.model import Dataset, identifier_of
from dserverfs.base.retry import Deadline
from dserverfs.remote import addresses, bounded_sockets, puts
from dserverfs.remote.api import Resolver
from dserverfs.remote.connections import Connections
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.many_gets import Got, ManyGets, Want
from dserverfs.remote.metadata_api import MetadataWrites
from dserverfs.remote.objects import ByteRange, Storage
from dserverfs.remote.routes import Routes
from dserverfs.remote.tokens import TokenSource
from dserverfs.writing.upload.uploader import Uploader
from tests.support import front_faults as faults
from tests.support.front import Exchange, Fault, Front, Plan, for_good, front
from tests.support.front_faults import says
from tests.support.local_uploads import local_dataset
from tests.support.servers import ServerHandle
from tests.support.several_addresses import (
    NAME,
    Place,
    Site,
    black_hole,
    give_addresses,
    refusing,
    running_site,
    silent,
)

MIB = 1024 * 1024
LARGE = os.urandom(2 * MIB + 5)
SMALL = {f"small-{number}": b"%d" % number * 100 for number in range(20)}
STALL_S = 0.4
PATIENT_S = 30.0  # the machine may be slow


class Patience:
    """How long a connection may say nothing: not long while all there are may hang."""

    def __init__(self) -> None:
        self.silent: list[Place] = []

    def stall_s(self) -> float:
        known = {address.place for address in addresses.FAILED._failures}
        return PATIENT_S if known.issuperset(self.silent) else STALL_S


class PatientStorage(Storage):
    """Gives a PUT as long as that."""

    def __init__(self, connections: Connections, patience: Patience) -> None:
        super().__init__(connections=connections)
        self._patience = patience

    def write(self, *arguments: Any) -> Mapping[str, str]:
        self._stall_timeout_s = self._patience.stall_s()
        return super().write(*arguments)


@dataclasses.dataclass
class World:
    """A client that has made no connection yet."""

    patience: Patience
    storage: Storage
    resolver: Resolver
    routes: Routes
    gets: ManyGets
    dataset: Dataset
    scratch: Path

    def url_of(self, relpath: str) -> str:
        identifiers = [identifier_of(each) for each in ("large", *SMALL)]
        return self.resolver.item_url(
            self.dataset, identifier_of(relpath), lambda count: identifiers[:count]
        ).url


@pytest.fixture(scope="module")
def site(server: ServerHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    contents = {"large": LARGE, **SMALL}
    with running_site(server, tmp_path_factory.mktemp("server"), contents) as site:
        yield site


@contextlib.contextmanager
def client(site: Site, patience: Patience, scratch: Path) -> Iterator[World]:
    url = f"http://{NAME}:{site.ways['server'].port}"
    transport = ServerTransport(url, TokenSource(site.app.token("grumpy"), None))
    connections = Connections()
    storage = PatientStorage(connections, patience)
    routes = Routes(transport)
    resolver = Resolver(transport, storage, routes)
    base_uri, _, uuid = site.uri.rpartition("/")
    entry = {"uri": site.uri, "uuid": uuid, "base_uri": base_uri, "name": "a-dataset"}
    dataset = Dataset.from_json({**entry, "creator_username": "grumpy", "frozen_at": 1.7e9})
    gets = ManyGets(connections)
    try:
        yield World(patience, storage, resolver, routes, gets, dataset, scratch)
    finally:
        storage.close()
        transport.close()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Patience:
    patience = Patience()

    def stall_s(first_s: float, failures: int) -> float:
        return PATIENT_S if failures else patience.stall_s()

    monkeypatch.setattr(retry, "stall_s", stall_s)
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(retry, "MAX_RETRY_AFTER_S", 0.01)
    monkeypatch.setattr(bounded_sockets, "NEXT_ADDRESS_S", 0.15)
    monkeypatch.setattr(puts, "_ANSWER_FACTOR", 1)
    return patience


# Faults


def dies_half_way(exchange: Exchange) -> None:
    """Reset the connection in the middle of the body that is sent, or else of the answer."""
    if exchange.command == "PUT" and int(exchange.headers["Content-Length"]) > 1000:
        exchange.rfile.read(int(exchange.headers["Content-Length"]) // 2)
    else:
        answer = exchange.ask()
        length = ("Content-Length", str(len(answer.body)))
        exchange.say(exchange.head(answer, length) + b"\r\n", answer.body[: len(answer.body) // 2])
    exchange.reset()


def at_front(fault: Fault) -> Callable[[Front], contextlib.AbstractContextManager[Place]]:
    """Return what makes an address that does this to all it is asked."""

    @contextlib.contextmanager
    def make(good: Front) -> Iterator[Place]:
        with front(good.target) as bad:
            bad.add(Plan("", for_good(fault)))
            yield ("127.0.0.1", bad.port)

    return make


FAULTS: dict[str, Callable[[Front], contextlib.AbstractContextManager[Place]]] = {
    "refuses": lambda good: refusing(),
    "black hole": lambda good: black_hole(),
    "accepts and is silent": lambda good: silent(),
    "hangs up": at_front(lambda exchange: setattr(exchange, "close_connection", True)),
    "resets half way": at_front(dies_half_way),
    "502": at_front(says(502)),
    "503, Retry-After": at_front(says(503, Retry_After="5")),
    "IPv6 is a black hole": lambda good: black_hole("::1"),
}
LATER: dict[str, Fault | None] = {
    "is gone": None,
    "is silent": faults.stall,
    "answers 503": says(503),
}


def hangs_half_way(exchange: Exchange) -> None:
    """Say nothing more in the middle of an answer."""
    answer = exchange.ask()
    length = ("Content-Length", str(len(answer.body)))
    exchange.say(exchange.head(answer, length) + b"\r\n", answer.body[: len(answer.body) // 2])
    faults.stall(exchange)


# Operations


def listing(world: World) -> None:
    uris = {each.uri for each in world.resolver.datasets(world.dataset.base_uri)}
    assert world.dataset.uri in uris


def item(world: World) -> None:
    retry.Retries(Deadline(60.0)).run(lambda limit: read_large(world, limit))


def many_items(world: World) -> None:
    """Those that were not had are asked for once more, as `item_prefetch` leaves to readers."""
    found: dict[str, bytes] = {}
    for _ in range(3):
        left = [relpath for relpath in SMALL if relpath not in found]
        wants = iter([Want(world.url_of(each), len(SMALL[each]), each) for each in left])

        def done(bunch: list[Got[str]]) -> None:
            found.update({got.what: got.content for got in bunch if got.content is not None})

        world.gets._stall_timeout_s = world.patience.stall_s()
        world.gets.run(lambda wants=wants: next(wants, None), done)  # type: ignore[misc]
    assert found == SMALL


def small_upload(world: World) -> None:
    upload(world, {"a": b"a" * 2000, "b/c": b"b" * 3000, "d": b""})


def large_upload(world: World) -> None:
    upload(world, {"large": LARGE})


def upload_in_parts(world: World) -> None:
    upload(world, {"large": LARGE * 3})


def upload(world: World, contents: dict[str, bytes]) -> None:
    dataset = local_dataset(world.scratch / os.urandom(4).hex(), contents)
    uploader = Uploader(world.resolver, world.storage)
    uri = uploader.upload(dataset, world.dataset.base_uri)
    assert uploader.is_registered(dataset, uri)


def readme(world: World) -> None:
    text = b"---\nnumber: %d\n" % time.monotonic_ns()
    MetadataWrites(world.routes, world.resolver).put_readme(world.dataset, text)
    assert world.resolver.readme(world.dataset) == text


# What they ask.
OPERATIONS: dict[Callable[[World], None], list[str]] = {
    listing: ["server"],
    item: ["server", "store"],
    many_items: ["server", "store"],
    small_upload: ["server", "store"],
    large_upload: ["server", "store"],
    upload_in_parts: ["server", "store"],
    readme: ["server"],
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_operation_succeeds_while_the_first_of_two_addresses_has_a_fault(
    site: Site,
    patience: Patience,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fault: str,
    operation: Callable[[World], None],
) -> None:
    with contextlib.ExitStack() as stack:
        places = {}
        for side, way in site.ways.items():
            bad = stack.enter_context(FAULTS[fault](way))
            if fault == "accepts and is silent" and side in OPERATIONS[operation]:
                patience.silent.append(bad)
            places[way.port] = [bad, ("127.0.0.1", way.port)]
        give_addresses(monkeypatch, places)
        world = stack.enter_context(client(site, patience, tmp_path))

        operation(world)

        # All other threads and clients of the process have learnt from it. An answer without a
        # body, as to a PUT, may have come whole before its connection was reset.
        for side in OPERATIONS[operation]:
            if (fault, side) == ("resets half way", "store"):
                continue
            port = site.ways[side].port
            assert addresses.to_try(NAME, port, 5.0)[0].place == ("127.0.0.1", port)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", LATER)
def test_operation_succeeds_though_the_address_of_kept_connections_goes_down(
    site: Site,
    patience: Patience,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fault: str,
    operation: Callable[[World], None],
) -> None:
    monkeypatch.setattr(bounded_sockets, "NEXT_ADDRESS_S", PATIENT_S)
    with contextlib.ExitStack() as stack:
        gateways, ends, places = {}, [], {}
        for side, way in site.ways.items():
            ends.append(stack.enter_context(contextlib.ExitStack()))
            gateways[side] = ends[-1].enter_context(front(way.target))
            places[way.port] = [("127.0.0.1", gateways[side].port), ("127.0.0.1", way.port)]
        give_addresses(monkeypatch, places)
        world = stack.enter_context(client(site, patience, tmp_path))
        before = {side: way.connections for side, way in site.ways.items()}
        operation(world)
        assert all(gateways[side].connections for side in OPERATIONS[operation])
        # Where one address works, the other is not connected to.
        assert before == {side: way.connections for side, way in site.ways.items()}

        for end, gateway in zip(ends, gateways.values(), strict=True):
            if (what := LATER[fault]) is None:
                end.close()
            else:
                gateway.add(Plan("", for_good(what)))
        if fault == "is silent":
            patience.silent = [("127.0.0.1", gateways[side].port) for side in OPERATIONS[operation]]

        operation(world)


def test_address_that_hangs_in_the_middle_of_ranges_is_left_once_and_a_slow_store_is_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stall as long as the whole time: only what is shorter elsewhere lets it end."""
    store = site.ways["store"]
    retries = retry.Retries(Deadline(PATIENT_S), first_stall_s=PATIENT_S, elsewhere_s=STALL_S)
    with front(store.target) as bad, contextlib.ExitStack() as stack:
        bad.add(Plan("", for_good(hangs_half_way)))
        places = [("127.0.0.1", bad.port), ("127.0.0.1", store.port)]
        give_addresses(monkeypatch, {store.port: places})
        world = stack.enter_context(client(site, Patience(), tmp_path))

        for _ in range(3):
            retries.run(lambda limit: read_large(world, limit))
        assert bad.connections == 1

        # With no other address that is good nothing is given up before its time.
        only = [addresses.Address(2, place) for place in places]
        peer = addresses.peer_of(only[1], only)
        assert peer is not None
        assert not peer.has_another()


def read_large(world: World, limit: Deadline) -> None:
    blocks: list[bytes] = []
    world.storage.read_range(
        world.url_of("large"),
        ByteRange(0, len(LARGE), len(LARGE)),
        block_size=MIB,
        etag=None,
        deadline=limit,
        on_etag=lambda etag: None,
        on_block=blocks.append,
    )
    assert b"".join(blocks) == LARGE
