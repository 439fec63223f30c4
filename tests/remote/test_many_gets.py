"""Many GETs in one thread: the plain case is had, every other is reported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.remote.connections import Connections
from dserverfs.remote.many_gets import MAX_CONNECTIONS, Got, ManyGets, Want
from dserverfs.remote.trust import Trust
from tests.support.faulty_store import (
    Fault,
    FaultyStore,
    Handler,
    faulty_store,
    hang_up,
    refuse,
    reset,
    stall,
    trickle,
)
from tests.support.web_front import make_certificates

CONTENT = bytes(range(256)) * 16


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    with faulty_store(CONTENT) as store:
        yield store


@contextlib.contextmanager
def getting(
    trust: Trust | None = None, *, stall_timeout_s: float = 10.0, object_timeout_s: float = 60.0
) -> Iterator[ManyGets]:
    with contextlib.closing(Connections(trust)) as connections:
        gets = ManyGets(
            connections, stall_timeout_s=stall_timeout_s, object_timeout_s=object_timeout_s
        )
        with contextlib.closing(gets):
            yield gets


@pytest.fixture
def gets() -> Iterator[ManyGets]:
    with getting() as gets:
        yield gets


def get(
    gets: ManyGets, store: FaultyStore, count: int, size: int = len(CONTENT)
) -> dict[int, bytes | None]:
    """Get the store's object so many times; return what came of each."""
    wants = iter([Want(store.url, size, number) for number in range(count)])
    found: dict[int, bytes | None] = {}

    def done(bunch: list[Got[int]]) -> None:
        for got in bunch:
            number, content = got.what, got.content
            assert number not in found
            found[number] = content

    gets.run(lambda: next(wants, None), done)
    return found


@pytest.mark.parametrize("content", [b"", b"x", CONTENT, CONTENT * 256])
def test_every_object_comes_whole_and_connections_are_few(
    store: FaultyStore, gets: ManyGets, content: bytes
) -> None:
    store.content = content

    found = get(gets, store, 200, len(content))

    assert found == dict.fromkeys(range(200), content)
    assert len(store.connections) <= MAX_CONNECTIONS


def test_connections_are_kept_for_the_next_run(store: FaultyStore, gets: ManyGets) -> None:
    get(gets, store, 1)
    get(gets, store, 5)

    assert len(store.connections) <= 5


def test_over_tls_every_object_comes_whole(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    content = CONTENT * 50
    trust = Trust(ca_file=certificates.authority)
    with faulty_store(content, certificates) as store, getting(trust) as gets:
        assert get(gets, store, 50, len(content)) == dict.fromkeys(range(50), content)


def test_certificate_that_is_not_trusted_gives_nothing(tmp_path: Path) -> None:
    with faulty_store(CONTENT, make_certificates(tmp_path)) as store, getting() as gets:
        assert get(gets, store, 3) == dict.fromkeys(range(3))


def chunked(handler: Handler) -> None:
    trickle(0.0, chunked=True)(handler)


def too_long(handler: Handler) -> None:
    handler.answer(200, CONTENT + b"x")


def cut_off(handler: Handler) -> None:
    handler.answer(200, CONTENT[:10], promised=len(CONTENT))


def encoded(handler: Handler) -> None:
    handler.answer(200, CONTENT, {"Content-Encoding": "gzip"})


def part(handler: Handler) -> None:
    handler.answer(206, CONTENT, {"Content-Range": f"bytes 0-4095/{len(CONTENT)}"})


def more_than_promised(handler: Handler) -> None:
    handler.answer(200, CONTENT + b"HTTP/1.1 200 OK", promised=len(CONTENT))


@pytest.mark.parametrize(
    "fault",
    [
        *(refuse(403, "AccessDenied"), refuse(404, "NoSuchKey"), refuse(503, "SlowDown")),
        *(refuse(301, "Moved"), chunked, too_long, cut_off, encoded, part, more_than_promised),
        *(hang_up, reset),
    ],
)
def test_whatever_is_not_plain_is_not_had_and_harms_no_other(
    store: FaultyStore, gets: ManyGets, fault: Fault
) -> None:
    store.faults = [fault]

    found = get(gets, store, 20)

    assert sorted(found) == [*range(20)]
    assert [*found.values()].count(None) == 1
    assert [*found.values()].count(CONTENT) == 19


@pytest.mark.parametrize("fault", [hang_up, reset])
def test_kept_connection_that_turns_out_dead_counts_for_nothing(
    store: FaultyStore, gets: ManyGets, fault: Fault
) -> None:
    get(gets, store, 1)
    store.faults = [fault]

    # One: on a connection that is new a fault counts, and which comes first is chance.
    assert get(gets, store, 1) == {0: CONTENT}


@pytest.mark.parametrize("fault", [stall, trickle(0.2, chunked=False)])
def test_store_that_stalls_or_trickles_is_given_up(store: FaultyStore, fault: Fault) -> None:
    store.faults = [fault]

    with getting(stall_timeout_s=1.0, object_timeout_s=2.0) as gets:
        found = get(gets, store, 3)

    assert [*found.values()].count(None) == 1


# Python's own look-up refuses a host with an empty label, and not as an OSError.
@pytest.mark.parametrize("host", ["127.0.0.1:1", "a..b"])
def test_store_that_is_not_there_gives_nothing(gets: ManyGets, host: str) -> None:
    store = FaultyStore(CONTENT)
    store.url = f"http://{host}/bucket/key"

    assert get(gets, store, 3) == dict.fromkeys(range(3))


@pytest.mark.parametrize(
    "url", ["http://h/a b", "http://h/a\r\nX: y", "ftp://h/", "http://u:p@h/", "http://h:1/\u00e9"]
)
def test_url_that_is_no_plain_line_is_not_asked_for(gets: ManyGets, url: str) -> None:
    store = FaultyStore(CONTENT)
    store.url = url

    assert get(gets, store, 1) == {0: None}


def test_by_way_of_a_proxy_every_object_comes(
    store: FaultyStore, gets: ManyGets, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = store.url.partition("/bucket")[0]
    monkeypatch.setenv("http_proxy", proxy)
    store.url = "http://store.invalid/bucket/key"

    assert get(gets, store, 20) == dict.fromkeys(range(20), CONTENT)


def test_end_reports_what_is_under_way(store: FaultyStore, gets: ManyGets) -> None:
    def stall_and_end(handler: Handler) -> None:
        gets.close()
        stall(handler)

    store.faults = [stall_and_end]

    assert sorted(get(gets, store, 5)) == [*range(5)]
