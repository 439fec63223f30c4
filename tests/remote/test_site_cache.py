"""A site cache on the way to a store: used while it works, passed over when it does not."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dserverfs.base.errors import Unreachable
from dserverfs.base.retry import Deadline, Retries
from dserverfs.remote.many_gets import Got, Want
from dserverfs.remote.objects import ByteRange, Source, Storage
from dserverfs.remote.site_cache import HEADER, MAX_PAUSE_S, TRIAL_S, SiteCache
from tests.support import front_faults
from tests.support.faulty_store import FaultyStore, faulty_store
from tests.support.front import Exchange, Fault, Front, for_good, front
from tests.support.nginx import site_cache
from tests.support.patience import LATE_S
from tests.support.servers import ServerHandle
from tests.support.signed_store import SignedStore, signed_store
from tests.support.small_disk import fill, small_disk

CONTENT = bytes(range(256)) * 41 + b"end"
BLOCK = 1000
PASSED_OVER = "objects come from the store itself, and the cache is tried again in"


def as_cache(fault: Fault, said: str = "HIT") -> Fault:
    """Return a fault that says of itself that it is a site cache's."""

    def marked(exchange: Exchange) -> None:
        ask = exchange.ask

        def asked(*given: Any, **headers: Any) -> Any:
            answer = ask(*given, **headers)
            return answer._replace(headers=[*answer.headers, (HEADER, said)])

        exchange.ask = asked  # type: ignore[method-assign]
        fault(exchange)

    return marked


def right(exchange: Exchange) -> None:
    exchange.answer(exchange.ask())


def other_range(exchange: Exchange) -> None:
    exchange.answer(exchange.ask(Range="bytes=0-9"))


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class World(NamedTuple):
    """A store, a cache before any store, and one who reads."""

    store: FaultyStore
    front: Front
    cache: SiteCache
    clock: Clock
    storage: Storage

    @property
    def url(self) -> str:
        return self.store.url

    def read(self, start: int = 0, length: int = len(CONTENT), **how: Any) -> bytes:
        """Read as readers do, who try again."""
        blocks: list[bytes] = []
        read_s = Deadline(LATE_S)

        def attempt(limit: Deadline) -> None:
            done = sum(map(len, blocks))
            self.storage.read_range(
                self.url,
                ByteRange(start + done, length - done, len(CONTENT)),
                block_size=BLOCK,
                etag=None,
                deadline=limit,
                on_etag=lambda etag: None,
                on_block=blocks.append,
                **how,
            )

        Retries(read_s, sleep=lambda seconds: None).run(attempt)
        return b"".join(blocks)

    def read_many(self, count: int = 40) -> list[bytes | None]:
        wants = iter([Want(self.url, len(CONTENT), number) for number in range(count)])
        found: dict[int, bytes | None] = {}

        def done(bunch: list[Got[int]]) -> None:
            found.update({got.what: got.content for got in bunch})

        self.storage.many_gets().run(lambda: next(wants, None), done)
        return [found[number] for number in range(count)]


@pytest.fixture
def world() -> Iterator[World]:
    clock = Clock()
    with faulty_store(CONTENT) as store, front(None) as before:
        cache = SiteCache(before.url, silence_s=30, block_s=30, clock_s=clock)
        storage = Storage(site_cache=cache)
        yield World(store, before, cache, clock, storage)
        storage.close()
        cache.close()


def test_ranges_and_small_objects_come_by_the_cache_with_the_stores_host(world: World) -> None:
    with world.front.planned("", for_good(as_cache(right))) as plan:
        assert world.read(5, 3000) == CONTENT[5:3005]
        assert world.read_many() == [CONTENT] * 40

    assert len(plan.requests) == 41
    host = world.store.url.partition("://")[2].partition("/")[0]
    assert {request.headers["Host"] for request in plan.requests} == {host}
    assert world.cache.state()[1:4] == (41, 41, None)


def test_what_nothing_is_compared_with_comes_from_the_store(world: World) -> None:
    with world.front.planned("", for_good(as_cache(right))) as plan:
        assert world.storage.read_object(world.url, Deadline(LATE_S)) == CONTENT
        assert world.storage.look(world.url, Deadline(LATE_S)).size_in_bytes == len(CONTENT)
        assert world.read(source=Source.STORE) == CONTENT

    assert plan.requests == []


def test_url_without_a_signature_goes_to_the_store(world: World) -> None:
    assert world.cache.way(world.store.url.partition("?")[0]) is None
    assert world.cache.way("https://store/x?X-Amz-Date=a") is None
    assert world.cache.way("https://store/x?Signature=a&Expires=1") is not None
    assert world.cache.way("https://store/x\n?Signature=a") is None


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://store.example.org/x?Signature=a", "store.example.org"),
        ("https://store.example.org:443/x?Signature=a", "store.example.org"),
        ("http://store.example.org:80/x?Signature=a", "store.example.org"),
        ("https://store.example.org:80/x?Signature=a", "store.example.org:80"),
        ("http://[::1]:80/x?Signature=a", "[::1]"),
    ],
)
def test_host_is_the_one_that_a_client_would_send(world: World, url: str, host: str) -> None:
    way = world.cache.way(url)

    assert way is not None
    assert way.target.authority == host
    assert way.url == f"{world.cache.url}/x?Signature=a"


TROUBLE: dict[str, Fault] = {
    "silence": front_faults.stall,
    "silence in the body": as_cache(front_faults.stall_in_body),
    "a reset": front_faults.reset,
    "half a body": as_cache(front_faults.cut),
    "a page": front_faults.says(200),
    "a page of a proxy": front_faults.says(502),
    "a store it cannot reach": front_faults.says(502, Dserverfs_Site_Cache="MISS"),
    "a judge it cannot reach": front_faults.says(502, Dserverfs_Site_Cache="PASSED"),
    "a store that is slow": front_faults.says(504, Dserverfs_Site_Cache="MISS"),
    "no cache": right,
    "a header that trickles": front_faults.trickled_head,
}
GARBLED: dict[str, Fault] = {
    "another range": as_cache(other_range),
    "an encoding": as_cache(front_faults.says_encoded),
}
trouble = pytest.mark.parametrize("fault", [*TROUBLE.values()], ids=[*TROUBLE])
garbled = pytest.mark.parametrize(
    "fault", [*TROUBLE.values(), *GARBLED.values()], ids=[*TROUBLE, *GARBLED]
)


def hurry(world: World) -> None:
    """Have the cache given up soon; elsewhere a busy machine has time."""
    world.cache.silence_s = 0.3
    world.cache.block_s = 1.0


@garbled
@pytest.mark.expects_log(PASSED_OVER)
def test_cache_that_fails_costs_no_byte_and_is_left_alone(world: World, fault: Fault) -> None:
    hurry(world)
    with world.front.planned("", for_good(fault)) as plan:
        assert world.read() == CONTENT
        asked = len(plan.requests)
        assert world.read() == CONTENT

    assert len(plan.requests) == asked <= 2  # a kept connection may have been dead
    assert world.cache.state().reason is not None


@trouble
@pytest.mark.expects_log(PASSED_OVER)
def test_small_objects_come_from_the_store_when_the_cache_fails(world: World, fault: Fault) -> None:
    hurry(world)
    with world.front.planned("", for_good(fault)):
        assert world.read_many() == [CONTENT] * 40

    assert world.cache.state().reason is not None


@pytest.mark.expects_log(PASSED_OVER)
def test_cache_that_refuses_connections_is_passed_over(world: World) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # not listening
        cache = SiteCache(f"http://127.0.0.1:{closed.getsockname()[1]}")
        there = world._replace(cache=cache, storage=Storage(site_cache=cache))
        assert there.read() == CONTENT
        assert there.read_many() == [CONTENT] * 40
        there.storage.close()

    assert cache.state().reason == "it cannot be connected to"


@pytest.mark.expects_log(PASSED_OVER)
def test_cache_is_tried_by_one_request_and_used_again(world: World) -> None:
    with world.front.planned("", for_good(front_faults.says(502))) as plan:
        for _ in range(3):
            world.read()
            world.clock.now_s += MAX_PAUSE_S + 1
        tries = len(plan.requests)
        world.cache.way(world.url)  # is trying it
        assert world.cache.way(world.url) is None
        world.clock.now_s += TRIAL_S
    with world.front.planned("", for_good(as_cache(right))) as plan:
        assert world.read() == world.read() == CONTENT

    assert tries == 3
    assert len(plan.requests) == 2
    assert world.cache.state().reason is None


@pytest.mark.parametrize("answer", [(403, "DECLINED"), (412, "HIT"), (416, "MISS"), (404, "HIT")])
def test_what_is_not_for_a_cache_is_asked_of_the_store_and_no_fault(
    world: World, answer: tuple[int, str]
) -> None:
    fault = front_faults.says(answer[0], Dserverfs_Site_Cache=answer[1])
    with world.front.planned("", for_good(fault)) as plan:
        assert world.read() == world.read() == CONTENT
        assert world.read_many(5) == [CONTENT] * 5

    assert len(plan.requests) == 7
    assert world.cache.state().reason is None


@pytest.mark.expects_log("does not know the store http://127")
def test_store_that_the_cache_does_not_know_is_asked_itself_from_then_on(world: World) -> None:
    fault = front_faults.says(403, Dserverfs_Site_Cache="UNKNOWN-STORE")
    with world.front.planned("", for_good(fault)) as plan:
        assert world.read() == world.read() == CONTENT

    assert len(plan.requests) == 1
    assert world.cache.way("http://another/x?Signature=a") is not None


def test_refusal_of_the_store_is_taken_from_the_cache(world: World) -> None:
    fault = front_faults.refuses(403, "AccessDenied", Dserverfs_Site_Cache="PASSED")
    with world.front.planned("", for_good(fault)), pytest.raises(Exception, match="AccessDenied"):
        world.read()

    assert world.store.requests == []


@pytest.fixture(scope="module")
def signed(server: ServerHandle) -> Iterator[SignedStore]:
    with signed_store(server) as running:
        yield running


@pytest.mark.parametrize("disk_is", ["full", "read-only"])
@pytest.mark.expects_log(PASSED_OVER)
def test_cache_whose_disk_takes_nothing_costs_no_byte(
    signed: SignedStore, tmp_path: Path, disk_is: str
) -> None:
    content = bytes(9 * 1024**2)
    url = signed.url(signed.new_object(content))
    blocks: list[bytes] = []
    with (
        small_disk(tmp_path / "disk", 8 * 1024**2) as disk,
        site_cache(tmp_path / "cache", [signed.storage.endpoint], kept=disk / "kept") as cache,
    ):
        if disk_is == "full":
            fill(disk / "filled")
        else:
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        before = SiteCache(cache.url)
        storage = Storage(site_cache=before)
        while len(b"".join(blocks)) < len(content):
            done = len(b"".join(blocks))
            try:
                storage.read_range(
                    url,
                    ByteRange(done, len(content) - done, len(content)),
                    block_size=1024**2,
                    etag=None,
                    deadline=Deadline(LATE_S),
                    on_etag=lambda etag: None,
                    on_block=blocks.append,
                )
            except Unreachable:
                assert before.state().reason is not None
        storage.close()
        before.close()

    assert b"".join(blocks) == content
