"""One fault of the network is survived, whatever it hits; one that lasts is told.

Between a real server, a real store and their client stand fronts that do wrong once what
a network, a proxy or a busy server does wrong.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from dserverfs.base import retry
from dserverfs.base.errors import Busy, DserverfsError, Unreachable
from dserverfs.base.items import ItemContent
from dserverfs.base.model import UUID, Dataset
from dserverfs.base.retry import Deadline
from dserverfs.catalogue.manifests import Manifests
from dserverfs.catalogue.offline import KeptAnswers
from dserverfs.catalogue.refreshed import loaded
from dserverfs.client import Client
from dserverfs.reading.ranges import FirstVersion, RangeFetcher
from dserverfs.reading.stored_items import StoredItems
from dserverfs.reading.whole_item import download
from dserverfs.remote.api import Resolver
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.metadata_api import MetadataWrites
from dserverfs.remote.objects import ByteRange, Storage
from dserverfs.remote.routes import Routes
from dserverfs.remote.tokens import TokenSource
from dserverfs.writing.upload.uploader import Uploader
from tests.support import front_faults as faults
from tests.support.front import Fault, Front, for_good, front, once
from tests.support.front_faults import says
from tests.support.local_uploads import local_dataset
from tests.support.mounts import client_of
from tests.support.server_store import storage_of
from tests.support.servers import ServerHandle, upload

LARGE = os.urandom(3 * 1024 * 1024 + 5)
CONTENTS = {"large": LARGE, "small": b"small\n", "other": b"other\n"}
README = b"---\ndescription: of one fault\n"

ONCE: dict[str, Fault] = {
    "stall": faults.stall,
    "stall in the body": faults.stall_in_body,
    "trickled head": faults.trickled_head,
    "trickled body": faults.trickled_body,
    "trickled trailers": faults.trickled_trailers,
    "endless 100 Continue": faults.endless_continue,
    "reset": faults.reset,
    "lost answer": faults.lose_answer,
    "cut": faults.cut,
    "too short": faults.too_short,
    "encoded": faults.says_encoded,
    "redirect": says(302, Location="http://elsewhere.invalid/login?next=secret"),
    "page of a proxy": says(200),
    "proxy's 404": says(404),
    "500": says(500),
    "408": says(408),
    "429": says(429, Retry_After="0"),
    "503 for an hour": says(503, Retry_After="3600"),
    "503 until a date": faults.in_an_hour(503),
    "502": says(502),
}


class Way:
    """To a server and its store by way of their fronts, and names that are not found."""

    def __init__(self, server: Front, store: Front) -> None:
        self.fronts = {"server": server, "store": store}
        self.lookups_to_fail = 0
        self._look_up = socket.getaddrinfo
        self._ports = {
            target[1]: front.port for front in self.fronts.values() if (target := front.target)
        }

    def look_up(self, host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if port in self._ports and self.lookups_to_fail:
            self.lookups_to_fail -= 1
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self._look_up(host, self._ports.get(port, port), *arguments, **options)


@dataclass
class World:
    """What a client is made of, new for each test."""

    way: Way
    client: Client  # which has seen everything before
    resolver: Resolver
    routes: Routes
    storage: Storage
    dataset: Dataset
    contents: dict[str, ItemContent]
    scratch: Path

    @property
    def ranges(self) -> RangeFetcher:
        return RangeFetcher(self.resolver, self.storage)

    @property
    def stored(self) -> StoredItems:
        return StoredItems(self.ranges)


@pytest.fixture(scope="module")
def way(server: ServerHandle) -> Iterator[Way]:
    store = urlsplit(storage_of(server).endpoint)
    assert store.port is not None
    port = urlsplit(server.url).port
    assert port is not None
    with (
        front(("127.0.0.1", port)) as before_server,
        front(("127.0.0.1", store.port)) as before_store,
    ):
        yield Way(before_server, before_store)


@pytest.fixture(scope="module")
def client(
    server: ServerHandle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Client, Dataset]]:
    uri = upload(server, CONTENTS, readme=README, name="one-fault")
    cache = tmp_path_factory.mktemp("cache")
    with client_of(server.base_uri, server.token, cache) as client:
        base_uri, _, uuid = uri.rpartition("/")
        yield client, client.resolver.dataset_by_uuid(UUID(uuid), base_uri)


@pytest.fixture
def world(
    server: ServerHandle,
    way: Way,
    client: tuple[Client, Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    whole, dataset = client
    contents = dict(whole.catalogue.contents(dataset))
    monkeypatch.setattr(socket, "getaddrinfo", way.look_up)
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(retry, "MAX_WAIT_S", 0.002)
    monkeypatch.setattr(retry, "MAX_RETRY_AFTER_S", 0.002)
    # The first connection is given up soon; the second may be slow, as the machine may be.
    monkeypatch.setattr(retry, "stall_s", lambda first_s, failures: 20.0 if failures else 0.1)
    transport = ServerTransport(server.url, TokenSource(server.token, None))
    storage = Storage(stall_timeout_s=0.15)
    routes = Routes(transport)
    resolver = Resolver(transport, storage, routes)
    routes.capabilities()
    routes.core("uris", dataset.uri)  # so that the form of its paths is known
    yield World(way, whole, resolver, routes, storage, dataset, contents, tmp_path)
    way.lookups_to_fail = 0
    transport.close()
    storage.close()


def fetched(world: World, name: str) -> bytes:
    content, blocks = world.contents[name], list[bytes]()
    wanted = ByteRange(0, content.size_in_bytes, content.size_in_bytes)
    version = FirstVersion(content)
    world.ranges.fetch(content, wanted, version, blocks.append, Deadline(60.0))
    return b"".join(blocks)


def me(world: World) -> None:
    assert world.dataset.base_uri in world.resolver.user().search_base_uris


def versions(world: World) -> None:
    assert Routes(world.routes.transport).capabilities().extended


def listing(world: World) -> None:
    assert world.dataset in world.resolver.datasets(world.dataset.base_uri)


def manifest(world: World) -> None:
    answers = KeptAnswers(world.resolver, world.scratch)
    manifests = Manifests(answers, "server", world.scratch, explain=lambda dataset, error: error)
    try:
        index = loaded(lambda: manifests.index(world.dataset))
        assert index.number_of_items == len(CONTENTS)
    finally:
        manifests.close()


def readme(world: World) -> None:
    assert world.resolver.readme(world.dataset) == README


def signature(world: World) -> None:
    content = world.contents["small"]
    url = world.resolver.item_url(world.dataset, content.identifier, content.neighbours)
    assert world.storage.read_object(url.url, Deadline(60.0)) == b"small\n"


def metadata(world: World) -> None:
    assert b"one-fault" in world.resolver.metadata(world.dataset).admin_metadata


def large_item(world: World) -> None:
    assert fetched(world, "large") == LARGE


def small_item(world: World) -> None:
    assert fetched(world, "small") == b"small\n"


def whole_download(world: World) -> None:
    with tempfile.TemporaryFile(dir=world.scratch) as file:
        found = download(world.ranges, world.contents["large"], file.fileno())
        assert found == world.contents["large"].hash
        assert os.pread(file.fileno(), len(LARGE) + 1, 0) == LARGE


def size(world: World) -> None:
    assert world.stored.size(world.contents["large"]) == len(LARGE)


def new_dataset(world: World) -> None:
    dataset = local_dataset(world.scratch / "items", {"a": b"a" * 5000})
    uploader = Uploader(world.resolver, world.storage)
    uri = uploader.upload(dataset, world.dataset.base_uri)
    assert uploader.is_registered(dataset, uri)


def tag(world: World) -> None:
    MetadataWrites(world.routes, world.resolver).put_tag(world.dataset, "tagged")
    assert "tagged" in world.resolver.metadata(world.dataset).tags


def new_readme(world: World) -> None:
    MetadataWrites(world.routes, world.resolver).put_readme(world.dataset, README)
    assert world.resolver.readme(world.dataset) == README


def annotation(world: World) -> None:
    MetadataWrites(world.routes, world.resolver).put_annotation(world.dataset, "n", [1])
    assert world.resolver.metadata(world.dataset).annotations["n"] == b"[\n  1\n]"


class Operation(NamedTuple):
    """Something that crosses the network, and its requests that the fault hits."""

    act: Callable[[World], None]
    front: str
    pattern: str
    requests: int = 1  # when nothing goes wrong


OPERATIONS = [
    Operation(me, "server", "GET /me$"),
    Operation(versions, "server", "GET /config/versions"),
    Operation(listing, "server", "POST /uris"),
    Operation(manifest, "server", "GET /manifests/"),
    Operation(readme, "server", "GET /readmes/"),
    Operation(signature, "server", "POST /signed-urls/items/"),
    Operation(metadata, "store", "GET .*/dtool$"),
    Operation(large_item, "store", "GET .*/data/"),
    Operation(small_item, "store", "GET .*/data/"),
    Operation(whole_download, "store", "GET .*/data/"),
    Operation(size, "store", "GET .*/data/"),
    Operation(new_dataset, "store", "PUT .*/data/"),
    Operation(new_dataset, "server", "POST /signed-urls/upload/"),
    Operation(new_dataset, "server", "POST /signed-urls/upload-complete"),
    Operation(new_dataset, "server", "GET /manifests/"),
    Operation(tag, "server", "POST /tags/"),
    Operation(new_readme, "server", "PUT /readmes/"),
    Operation(annotation, "server", "PUT /annotations/"),
]


# What nobody can tell from what was asked for, and what needs no second request.
NO_FAULTS = {
    ("page of a proxy", "size"),  # has a size, too
    ("cut", "new_dataset by PUT .*/data/"),  # the status was there, all that counts
    ("cut", "new_dataset by POST /signed-urls/upload-complete"),
}


def is_one(fault: str, operation: Operation) -> bool:
    return not {(fault, named(operation)), (fault, operation.act.__name__)} & NO_FAULTS


def named(operation: Operation) -> str:
    return f"{operation.act.__name__} by {operation.pattern}"


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        pytest.param(operation, fault, id=f"{named(operation)}-{fault}")
        for operation in OPERATIONS
        for fault in ONCE
        if is_one(fault, operation) or fault == "cut"
    ],
)
def test_operation_succeeds_though_one_request_meets_a_fault(
    world: World, operation: Operation, fault: str
) -> None:
    front = world.way.fronts[operation.front]

    with front.planned(operation.pattern, once(ONCE[fault])) as plan:
        operation.act(world)

    assert plan.done == 1
    assert len(plan.requests) <= operation.requests + 2


@pytest.mark.parametrize("operation", OPERATIONS, ids=named)
def test_operation_succeeds_though_a_name_is_not_found_once(
    world: World, operation: Operation
) -> None:
    world.routes.transport.close()
    world.way.lookups_to_fail = 1

    operation.act(world)

    assert world.way.lookups_to_fail == 0


LASTING: list[tuple[str, Fault, type[DserverfsError]]] = [
    ("cut", faults.cut, Unreachable),
    ("503", faults.in_an_hour(503), Busy),
    ("redirect", says(302, Location="http://elsewhere.invalid/?secret"), Unreachable),
]


@pytest.mark.parametrize(
    ("operation", "fault", "error"),
    [
        pytest.param(operation, fault, error, id=f"{named(operation)}-{name}")
        for operation in OPERATIONS
        for name, fault, error in LASTING
        if is_one(name, operation)
    ],
)
def test_fault_that_lasts_is_told_after_few_requests(
    world: World, operation: Operation, fault: Fault, error: type[DserverfsError]
) -> None:
    front = world.way.fronts[operation.front]

    with (
        front.planned(operation.pattern, for_good(fault)) as plan,
        pytest.raises(error) as failure,
    ):
        operation.act(world)

    assert "secret" not in str(failure.value)
    assert len(plan.requests) <= 12
