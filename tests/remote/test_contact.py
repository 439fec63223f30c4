"""Whether a server answers: how long each request may take, and what is tried again."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from dserverfs.base import retry
from dserverfs.base.errors import Busy, DserverfsError, NotConnected, Stalled, Unreachable
from dserverfs.base.retry import Deadline
from dserverfs.remote.api import Resolver
from dserverfs.remote.contact import LASTING_AFTER_S, LONG_EVERY_S, SHORT_S, Contact
from tests.support.quirky_server import QuirkyServer, says

pytest_plugins = ["tests.support.resolver_fixtures"]


class World:
    """A contact, and its clocks."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.contact = Contact(lambda: self.now_s, lambda: self.now_s + 5000.0)

    def fail(self, error: DserverfsError | None = None) -> bool:
        """Return whether a failure is said to be lasting."""
        error = error or Stalled("says nothing")
        self.contact.failed(error)
        return isinstance(error, Unreachable) and error.lasting

    def stall_s(self) -> float:
        """Return how long a connection of the next request may say nothing."""
        return self.contact.limit(Deadline(30.0, stall_s=10.0)).stall_s


@pytest.fixture
def world() -> World:
    return World()


def test_server_is_away_from_the_first_failure_to_the_next_answer(world: World) -> None:
    assert world.contact.away is None
    world.fail()
    world.now_s += 3
    world.fail(NotConnected("refused"))

    assert world.contact.away == (6000.0, "refused")

    world.contact.answered()
    assert world.contact.away is None


def test_requests_are_short_and_final_once_a_server_has_been_away_for_a_while(
    world: World,
) -> None:
    found = []
    for _ in range(4):
        found.append((world.stall_s(), world.fail()))
        world.now_s += LASTING_AFTER_S / 2

    assert found == [(10.0, False), (10.0, False), (SHORT_S, True), (SHORT_S, True)]


def test_now_and_then_a_request_has_all_its_time(world: World) -> None:
    world.fail()
    world.now_s += LONG_EVERY_S

    assert [world.stall_s() for _ in range(3)] == [10.0, SHORT_S, SHORT_S]

    world.now_s += LONG_EVERY_S
    assert world.stall_s() == 10.0


def test_an_answer_makes_the_next_failure_the_first_one(world: World) -> None:
    world.fail()
    world.now_s += LASTING_AFTER_S
    world.contact.answered()

    assert world.stall_s() == 10.0
    assert not world.fail()


def test_hurry_is_of_its_thread_and_block_alone(world: World) -> None:
    elsewhere = []
    with world.contact.hurried():
        thread = threading.Thread(target=lambda: elsewhere.append(world.stall_s()))
        thread.start()
        thread.join()
        assert (world.stall_s(), world.fail()) == (SHORT_S, True)

    assert elsewhere == [10.0]
    assert (world.stall_s(), world.fail()) == (10.0, False)


def test_server_that_is_busy_is_not_away(world: World) -> None:
    world.fail(Busy("503"))

    assert world.contact.away is None


def drop(handler: object) -> None:
    handler.close_connection = True  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize(
    ("look", "requests"), [(Resolver.user, retry.ATTEMPTS), (Resolver.look, 1)]
)
def test_a_look_asks_once_and_says_since_when_there_is_no_answer(
    quirky: QuirkyServer, resolver: Resolver, look: Callable[[Resolver], object], requests: int
) -> None:
    assert resolver.look() is None
    quirky.broken = {"": drop}
    before = len(quirky.requests)

    try:
        away = look(resolver)
    except Unreachable:
        away = resolver.contact.away

    assert len(quirky.requests) - before == requests
    assert away == resolver.contact.away
    assert away is not None
    quirky.broken = {"": says(500)}
    assert resolver.look() is None, "it answers, whatever it says"
