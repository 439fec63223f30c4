"""The order of a host's addresses, and what is remembered of those that failed."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dserverfs.remote import addresses
from dserverfs.remote.addresses import (
    AVOIDED_S,
    MAX_FAILED,
    Address,
    FailedAddresses,
    Peer,
    addresses_of,
)

A, B, C = (Address(socket.AF_INET, (f"127.0.0.{number}", 80)) for number in (1, 2, 3))
SIX, SEVEN = (Address(socket.AF_INET6, (f"::{number}", 80, 0, 0)) for number in (6, 7))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> FailedAddresses:
    known = FailedAddresses(clock)
    monkeypatch.setattr(addresses, "FAILED", known)
    return known


def test_address_that_failed_is_the_last_until_its_time_is_over_and_then_the_first_for_one(
    known: FailedAddresses, clock: Clock
) -> None:
    known.failed(A)

    assert known.ordered([A, B, C]) == [B, C, A]
    clock.now_s += AVOIDED_S[0]
    assert not known.is_avoided(A)
    assert known.ordered([A, B, C]) == [A, B, C]
    assert known.ordered([A, B, C]) == [B, C, A]
    known.answered(A)
    assert known.ordered([A, B, C]) == [A, B, C]


def test_answer_by_a_connection_of_before_a_failure_says_nothing_of_since(
    known: FailedAddresses, clock: Clock
) -> None:
    begun_s = clock.now_s
    clock.now_s += 1.0
    known.failed(A)

    known.answered(A, begun_s)
    assert known.is_avoided(A)
    known.answered(A, clock.now_s)
    assert not known.is_avoided(A)


def test_of_addresses_that_all_failed_the_first_is_the_one_that_failed_longest_ago(
    known: FailedAddresses, clock: Clock
) -> None:
    for address in (B, A, C, B):
        clock.now_s += 1
        known.failed(address)

    assert known.ordered([A, B, C]) == [A, C, B]


def test_address_that_fails_again_and_again_is_avoided_longer_up_to_a_bound(
    known: FailedAddresses, clock: Clock
) -> None:
    pauses_s = []
    for _ in range(12):
        for _ in range(3):  # one that tries it, and others that were under way
            known.failed(A)
        began_s = clock.now_s
        while known.is_avoided(A):
            clock.now_s += 1
        pauses_s.append(clock.now_s - began_s)
        assert known.ordered([A, B]) == [A, B]

    assert 0.8 * AVOIDED_S[0] <= pauses_s[0] <= AVOIDED_S[0] + 1
    assert 0.8 * AVOIDED_S[1] <= pauses_s[-1] <= AVOIDED_S[1] + 1
    assert pauses_s[3] > 2 * pauses_s[0]


def test_only_address_of_a_host_is_tried_whatever_became_of_it(known: FailedAddresses) -> None:
    known.failed(A)

    assert known.ordered([A]) == [A]


def test_what_is_remembered_has_a_bound_and_many_threads_may_change_it(
    known: FailedAddresses, clock: Clock
) -> None:
    def change(number: int) -> None:
        address = Address(socket.AF_INET, ("127.0.0.9", number))
        known.failed(address)
        known.ordered([address, A])
        if number % 2:
            known.answered(address)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(3000)))

    assert len(known._failures) <= MAX_FAILED
    assert known.ordered([A, B]) == [A, B]


@pytest.mark.parametrize(
    ("status", "is_wanted"),
    [
        *((status, True) for status in (200, 403, 404, 429, 501)),
        *((status, False) for status in (500, 502, 503, 504)),
    ],
)
def test_answers_of_what_is_away_have_another_address_asked(
    known: FailedAddresses, status: int, is_wanted: bool
) -> None:
    peer = Peer(A)

    peer.answered(status)

    assert peer.is_wanted() is is_wanted
    peer.answered(200)
    assert peer.is_wanted()


def test_end_and_beginning_of_an_outage_are_told_once_each(
    known: FailedAddresses, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dserverfs"):
        for _ in range(3):
            known.failed(A)
        for _ in range(3):
            known.answered(A)

    assert [record.getMessage() for record in caplog.records] == [
        "127.0.0.1:80 fails: other addresses of its host are asked first",
        "127.0.0.1:80 answers again",
    ]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([A], [A]),
        ([A, B, A], [A, B]),
        ([SIX, SEVEN, A, B], [SIX, A, SEVEN, B]),
        ([A, B, C, SIX], [A, SIX, B, C]),
    ],
)
def test_families_take_turns_and_no_address_is_tried_twice(
    monkeypatch: pytest.MonkeyPatch, found: Sequence[Address], expected: Sequence[Address]
) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> Any:
        return [(each.family, socket.SOCK_STREAM, 6, "", each.place) for each in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    assert addresses_of("several.invalid", 80, 5.0) == expected


def test_thread_may_ask_one_address_only(
    known: FailedAddresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "addresses_of", lambda *_: [A, B])

    with addresses.only(B):
        assert addresses.to_try("several.invalid", 80, 5.0) == [B]
        assert Peer(B).is_wanted()
        assert not Peer(A).is_wanted()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(addresses.to_try, "several.invalid", 80, 5.0).result() == [A, B]

    assert addresses.to_try("several.invalid", 80, 5.0) == [A, B]
