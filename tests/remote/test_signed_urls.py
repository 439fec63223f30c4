"""How long a signed URL is used, and that it is asked for once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dserverfs.base.errors import NotFound, Unreachable
from dserverfs.base.model import BackendURI, Identifier
from dserverfs.remote.signed_urls import DEFAULT_LIFETIME_S, MARGIN_S, SignedURL, UrlBook, expiry_of
from tests.support.patience import LATE_S

DATASET = BackendURI("s3://bucket/11111111-2222-3333-4444-555555555555")
ITEM = Identifier("a" * 40)
AWS = "https://s3/b/k?X-Amz-Date=20261121T100000Z&X-Amz-Expires=3600&X-Amz-Signature=0"


def test_the_urls_own_dates_count_by_the_servers_clock() -> None:
    headers = {"Date": "Sat, 21 Nov 2026 10:30:00 GMT"}

    until = expiry_of(AWS, {"expiry_seconds": 99_999}, headers, before_s=50.0)

    assert until == 50.0 + 1800 - MARGIN_S


def test_seconds_of_the_answer_count_where_the_url_says_nothing() -> None:
    assert expiry_of("https://s/k?sig=1", {"expiry_seconds": 3600}, {}, 50.0) == 3650 - MARGIN_S


HEADERS = {"Date": "Sat, 21 Nov 2026 10:00:00 GMT"}


@pytest.mark.parametrize(
    ("url", "answer"),
    [
        ("https://s/k?X-Goog-Date=20261121T100000Z&X-Goog-Expires=1000", {}),
        ("https://a/k?se=2026-11-21T10%3A16%3A40Z&sig=x", {}),
        ("https://s/k?Expires=1795256200&Signature=x", {}),
        ("https://s/k", {"expiry_timestamp": "2026-11-21T10:16:40.000000+00:00"}),
        ("https://s/k", {"expiry_timestamp": "2026-11-21T10:16:40Z", "expiry_seconds": None}),
        ("https://s/k", {"expiry_timestamp": "tomorrow", "expiry_seconds": "1000"}),
        # A clock that must be wrong does not count.
        ("https://s/k?X-Amz-Date=20201121T100000Z&X-Amz-Expires=9", {"expiry_seconds": 1000}),
    ],
)
def test_life_is_found_wherever_it_is_told(url: str, answer: dict[str, object]) -> None:
    assert expiry_of(url, answer, HEADERS, 50.0) == 50.0 + 1000 - MARGIN_S


@pytest.mark.parametrize("answer", [{}, {"expiry_seconds": None}, {"expiry_seconds": True}])
def test_unknown_life_is_taken_to_be_short(answer: dict[str, object]) -> None:
    until = expiry_of("https://s/k", answer, {}, 0.0)

    assert until < DEFAULT_LIFETIME_S


def test_short_life_keeps_most_of_it() -> None:
    assert expiry_of("https://s/k", {"expiry_seconds": 20}, {}, 0.0) == 18


def test_url_is_asked_for_again_when_it_is_due() -> None:
    now = [0.0]
    book = UrlBook(lambda: now[0])
    answers = [SignedURL("one", 10.0), SignedURL("two", 20.0)]

    def ask() -> dict[Identifier, SignedURL]:
        return {ITEM: answers.pop(0)}

    assert book.get(DATASET, ITEM, ask).url == "one"
    now[0] = 9.9
    assert book.get(DATASET, ITEM, ask).url == "one"
    now[0] = 10.0
    assert book.get(DATASET, ITEM, ask).url == "two"


def test_refused_url_is_forgotten_but_not_its_successor() -> None:
    book = UrlBook(lambda: 0.0)
    old, new = SignedURL("old", 10.0), SignedURL("new", 10.0)
    book.add(DATASET, {ITEM: old})

    book.forget(DATASET, ITEM, old)
    assert book.get(DATASET, ITEM, lambda: {ITEM: new}) is new
    book.forget(DATASET, ITEM, old)

    assert book.get(DATASET, ITEM, dict) is new


def test_many_who_wait_for_one_url_ask_once() -> None:
    book = UrlBook(lambda: 0.0)
    asked = []
    gate = threading.Event()

    def ask() -> dict[Identifier, SignedURL]:
        asked.append(1)
        gate.wait(LATE_S)
        return {ITEM: SignedURL("url", 10.0)}

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(book.get, DATASET, ITEM, ask) for _ in range(8)]
        gate.set()
        urls = {future.result(LATE_S).url for future in waiting}

    assert urls == {"url"}
    assert len(asked) == 1


def test_failure_reaches_all_and_is_not_kept() -> None:
    book = UrlBook(lambda: 0.0)

    def fail() -> dict[Identifier, SignedURL]:
        raise Unreachable("away")

    with pytest.raises(Unreachable):
        book.get(DATASET, ITEM, fail)
    with pytest.raises(NotFound):
        book.get(DATASET, ITEM, dict)
    assert book.get(DATASET, ITEM, lambda: {ITEM: SignedURL("u", 1.0)}).url == "u"


def test_urls_of_one_answer_may_end_at_different_times() -> None:
    now = [0.0]
    book = UrlBook(lambda: now[0])
    other = Identifier("b" * 40)
    book.add(DATASET, {ITEM: SignedURL("early", 5.0), other: SignedURL("late", 50.0)})

    now[0] = 20.0

    assert book.get(DATASET, other, dict).url == "late"
    assert book.get(DATASET, ITEM, lambda: {ITEM: SignedURL("new", 99.0)}).url == "new"


def test_memory_is_bounded_within_a_dataset_and_over_all() -> None:
    book = UrlBook(lambda: 0.0, max_bytes=100_000)
    asked: list[Identifier] = []

    def url_of(dataset: BackendURI, item: Identifier) -> None:
        def ask() -> dict[Identifier, SignedURL]:
            asked.append(item)
            return {item: SignedURL("x" * 750, 10.0)}

        book.get(dataset, item, ask)

    items = [Identifier(f"{number:040x}") for number in range(150)]
    for item in items:
        url_of(DATASET, item)
    asked.clear()
    for item in items[-100:]:
        url_of(DATASET, item)
    assert asked == []
    url_of(DATASET, items[0])
    assert asked == [items[0]]

    url_of(BackendURI("other"), items[0])
    asked.clear()
    url_of(DATASET, items[-1])
    assert asked == [items[-1]]


def test_who_waits_for_a_question_that_leaves_out_its_item_asks_again() -> None:
    book = UrlBook(lambda: 0.0)
    other = Identifier("b" * 40)
    gate, started = threading.Event(), threading.Event()

    def first() -> dict[Identifier, SignedURL]:
        started.set()
        gate.wait(LATE_S)
        raise NotFound("no such item")

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(book.get, DATASET, ITEM, first, question=DATASET)
        started.wait(LATE_S)
        two = pool.submit(
            book.get, DATASET, other, lambda: {other: SignedURL("u", 1.0)}, question=DATASET
        )
        gate.set()

        assert two.result(LATE_S).url == "u"
        with pytest.raises(NotFound):
            one.result(LATE_S)


def test_urls_of_a_host_that_cannot_be_reached_are_forgotten_and_no_others() -> None:
    book = UrlBook()
    here, there = "http://store.example:9000", "http://store.example:9001"
    urls = {
        Identifier("a"): SignedURL(f"{here}/a?s", 1e12),
        Identifier("b"): SignedURL(f"{here}/b?s", 1e12),
        Identifier("c"): SignedURL(f"{there}/c?s", 1e12),
    }
    key = DATASET
    book.add(key, urls)

    book.forget_host(urls[Identifier("a")])

    asked: list[str] = []

    def ask(identifier: str) -> dict[Identifier, SignedURL]:
        asked.append(identifier)
        return {Identifier(identifier): SignedURL(f"{there}/{identifier}", 1e12)}

    for name in ("a", "b", "c"):
        book.get(key, Identifier(name), lambda name=name: ask(name))  # type: ignore[misc]
    assert asked == ["a", "b"]
