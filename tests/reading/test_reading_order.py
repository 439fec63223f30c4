"""Many small items in whatever order, by one or several: few requests for URLs, one an item."""

from __future__ import annotations

import random
import uuid as uuid_module
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dserverfs.base.items import ItemContent
from dserverfs.base.model import UUID
from dserverfs.client import Client
from dserverfs.reading.item_order import FIRST_WINDOW
from dserverfs.reading.open_item import OpenItem
from dserverfs.settings import Settings
from tests.support.quirky_server import BASE_URI, TOKEN, QuirkyServer, quirky_server

COUNT = 400
CONTENTS = {f"{number:04d}": b"%d" % number * 20 for number in range(COUNT)}
PLACES = list(range(COUNT))


def interleaved(threads: int) -> list[int]:
    """Return the order of tools that give each thread a part of the list, from its end."""
    parts = [
        PLACES[start : start + COUNT // threads][::-1] for start in PLACES[:: COUNT // threads]
    ]
    return [place for places in zip(*parts, strict=True) for place in places]


ORDERS: dict[str, list[int]] = {
    "forwards": PLACES,
    "backwards": PLACES[::-1],
    "shuffled": random.Random(2).sample(PLACES, COUNT),
    "from several ends": interleaved(8),
    "from the middle": [*PLACES[COUNT // 2 :], *PLACES[: COUNT // 2]],
}


@pytest.fixture(scope="module")
def served() -> Iterator[QuirkyServer]:
    with quirky_server() as server:
        server.add(UUID_OF_ALL, CONTENTS)
        yield server


UUID_OF_ALL = str(uuid_module.UUID(int=7))


class Mount:
    """What a mount has of the dataset, with a cache of its own."""

    def __init__(self, client: Client) -> None:
        self.client = client
        dataset = client.resolver.dataset_by_uuid(UUID(UUID_OF_ALL), BASE_URI)
        self.items: list[tuple[str, ItemContent]] = list(client.catalogue.contents(dataset))

    def read(self, place: int) -> bool:
        relpath, content = self.items[place]
        return OpenItem(self.client.reader, content).read(0, 128 * 1024) == CONTENTS[relpath]

    def read_all(self, order: list[int], threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            assert all(pool.map(self.read, order))


@pytest.fixture
def mount(served: QuirkyServer, tmp_path: Path) -> Iterator[Mount]:
    server = served.url.removeprefix("http://")
    settings = Settings({"DSERVER_TOKEN": TOKEN}, {})
    with Client(
        server, settings, cache_directory=tmp_path / "cache", staging_directory=tmp_path / "staging"
    ) as client:
        mount = Mount(client)
        served.requests.clear()
        served.store_headers.clear()
        yield mount


@pytest.mark.parametrize(
    ("order", "threads", "ahead"),
    [
        ("forwards", 1, 0.95),
        ("forwards", 8, 0),
        ("backwards", 1, 0.95),
        ("backwards", 8, 0),
        ("shuffled", 1, 0.5),
        ("shuffled", 8, 0),
        ("from several ends", 1, 0.8),
        ("from the middle", 1, 0.9),
    ],
)
def test_items_cost_few_requests_for_urls_and_one_each_in_any_order(
    served: QuirkyServer, mount: Mount, order: str, threads: int, ahead: float
) -> None:
    mount.read_all(ORDERS[order], threads)

    assert served.asked("/signed-urls/") < COUNT / 50
    assert len(served.store_headers) == COUNT
    # Only what nobody waits for is fetched whole.
    fetched_ahead = sum("Range" not in headers for headers in served.store_headers)
    assert fetched_ahead >= ahead * COUNT


@pytest.mark.parametrize("order", [ORDERS["backwards"], ORDERS["shuffled"]], ids=["back", "mixed"])
@pytest.mark.parametrize("limit", [10_000, 10], ids=["signed whole", "signed one by one"])
def test_server_that_signs_no_batches_is_asked_no_more_than_it_must(
    served: QuirkyServer,
    mount: Mount,
    monkeypatch: pytest.MonkeyPatch,
    order: list[int],
    limit: int,
) -> None:
    monkeypatch.setattr(
        served, "versions", {"dservercore": "0.22.0", "dserver_signed_url_plugin": None}
    )
    monkeypatch.setattr("dserverfs.remote.signing.MAX_ITEMS_ASKED_WHOLE", limit)

    mount.read_all(order[:100], 8)
    mount.client.reader.flush()

    assert served.asked("/signed-urls/") <= (1 if limit > COUNT else COUNT)
    assert len(served.store_headers) <= COUNT


def test_few_items_in_no_order_are_fetched_alone(served: QuirkyServer, mount: Mount) -> None:
    mount.read_all(random.Random(3).sample(PLACES, 10), 1)
    mount.client.reader.flush()

    assert len(served.store_headers) <= 10 + FIRST_WINDOW  # two of them lie side by side
