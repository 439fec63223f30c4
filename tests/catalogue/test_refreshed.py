"""Values that are loaded on demand and refreshed behind their readers' backs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures import wait as futures_wait
from typing import Any

import pytest

from dserverfs.base.errors import NotAuthenticated, NotFound, PermissionDenied, Unreachable
from dserverfs.catalogue import refreshed
from dserverfs.catalogue.refreshed import (
    COMMAND,
    NO_WAIT_S,
    RENEW_SHARE,
    RETRY_S,
    NotLoaded,
    RefreshedValue,
    RefreshWaits,
    loaded,
)
from tests.support.patience import LATE_S


class Inline(Executor):
    """Runs what is submitted when the test says so."""

    def __init__(self) -> None:
        self.queue: list[Callable[[], Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def call() -> None:
            future.set_result(fn(*args, **kwargs))

        self.queue.append(call)
        return future

    def run(self) -> None:
        queue, self.queue = self.queue, []
        for call in queue:
            call()


class World:
    """A clock, a thread pool and a source that can fail."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.pool = Inline()
        self.answers: list[object] = []
        self.asked = 0

    def fetch(self) -> object:
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def value(self) -> RefreshedValue[object]:
        return RefreshedValue(self.fetch, 60.0, self.pool, lambda: self.now_s)


@pytest.fixture
def world() -> World:
    return World()


def test_cell_says_what_to_load_and_then_answers(world: World) -> None:
    world.answers = ["one"]
    value = world.value()

    with pytest.raises(NotLoaded) as missing:
        value.get()
    missing.value.load()

    assert value.get() == "one"


def test_cell_is_loaded_once_by_all_who_found_it_missing(world: World) -> None:
    world.answers = ["one"]
    value = world.value()

    value.load()
    value.load()

    assert world.asked == 1


def test_old_value_is_served_while_a_new_one_is_fetched(world: World) -> None:
    world.answers = ["one", "two"]
    value = world.value()
    value.load()
    world.now_s += 61

    assert value.get() == "one"
    assert value.get() == "one"
    assert len(world.pool.queue) == 1
    world.pool.run()

    assert value.get() == "two"


@pytest.mark.parametrize("error", [Unreachable("away"), NotAuthenticated("expired")])
def test_value_is_kept_when_the_server_is_away_or_the_token_expired(
    world: World, error: Exception
) -> None:
    world.answers = ["one", error, "two"]
    value = world.value()
    value.load()
    world.now_s += 61
    value.get()
    world.pool.run()

    assert value.get() == "one"
    assert not world.pool.queue
    world.now_s += RETRY_S
    value.get()
    world.pool.run()

    assert value.get() == "two"


@pytest.mark.parametrize("error", [PermissionDenied("no longer"), NotFound("gone")])
def test_value_is_dropped_when_the_server_says_no(world: World, error: Exception) -> None:
    world.answers = ["one", error]
    value = world.value()
    value.load()
    world.now_s += 61
    value.get()
    world.pool.run()

    with pytest.raises(NotLoaded):
        value.get()


def test_failed_load_raises_and_is_tried_again(world: World) -> None:
    world.answers = [Unreachable("away"), "one"]
    value = world.value()

    with pytest.raises(Unreachable):
        value.load()
    value.load()

    assert value.get() == "one"


def test_what_was_fetched_in_another_way_is_fresh_and_not_fetched_again(world: World) -> None:
    value = world.value()

    value.keep("known")
    value.load()

    assert value.get() == "known"
    assert world.asked == 0
    assert not world.pool.queue
    world.now_s += 60
    assert value.get() == "known"
    assert len(world.pool.queue) == 1


# Old values


class Waited:
    """What `concurrent.futures.wait` is to a test: the refresh is done, or time has passed."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.times_s: list[float] = []
        self.server_answers = True
        monkeypatch.setattr(refreshed, "wait", self)

    def __call__(self, futures: list[Future[None]], timeout: float) -> Any:
        self.times_s.append(timeout)
        if self.server_answers:
            self.world.pool.run()
        else:
            self.world.now_s += timeout
        return futures_wait(futures, timeout=0)


@pytest.fixture
def waited(world: World, monkeypatch: pytest.MonkeyPatch) -> Waited:
    return Waited(world, monkeypatch)


@pytest.mark.parametrize("pause_s", [120.0, 3600.0, 1e6])
def test_very_old_value_is_refreshed_before_it_is_told(
    world: World, waited: Waited, pause_s: float
) -> None:
    world.answers = ["one", "two"]
    value = world.value()
    value.load()
    world.now_s += pause_s

    assert loaded(value.get) == "two"
    assert waited.times_s == [refreshed.WAIT_S]


@pytest.mark.parametrize("pause_s", [0.0, 59.0, 60.0, 119.0])
def test_younger_value_is_told_at_once(world: World, waited: Waited, pause_s: float) -> None:
    world.answers = ["one"]
    value = world.value()
    value.load()
    world.now_s += pause_s

    assert value.get() == "one"
    assert waited.times_s == []


@pytest.mark.parametrize(("age_s", "told"), [(59.0, "one"), (60.0, "two"), (3600.0, "two")])
def test_command_is_told_nothing_older_than_a_minute(
    world: World, waited: Waited, age_s: float, told: str
) -> None:
    world.answers = ["one", "two"]
    waits = RefreshWaits(lambda: world.now_s, COMMAND)
    value = RefreshedValue(world.fetch, 60.0, world.pool, lambda: world.now_s, waits)
    value.load()
    world.now_s += age_s

    assert loaded(value.get) == told


def test_command_is_told_the_old_value_by_a_server_that_is_away(
    world: World, waited: Waited
) -> None:
    world.answers = ["one", Unreachable("away")]
    waits = RefreshWaits(lambda: world.now_s, COMMAND)
    value = RefreshedValue(world.fetch, 60.0, world.pool, lambda: world.now_s, waits)
    value.load()
    world.now_s += 3600

    assert loaded(value.get) == "one"


def test_who_cannot_wait_has_the_old_value_at_once(world: World, waited: Waited) -> None:
    world.answers = ["one", "two"]
    value = world.value()
    value.load()
    world.now_s += 1000

    assert (value.get_at_once(), value.at_hand()) == ("one", "one")
    world.pool.run()

    assert value.get_at_once() == "two"


def test_server_that_is_slow_holds_up_one_reader_for_a_moment(world: World, waited: Waited) -> None:
    waited.server_answers = False
    waits = RefreshWaits(lambda: world.now_s)
    world.answers = ["one", "one", "two", "two", "three"]
    first, second = (
        RefreshedValue(world.fetch, 60.0, world.pool, lambda: world.now_s, waits) for _ in range(2)
    )
    first.load()
    second.load()
    world.now_s += 1000

    for _ in range(3):
        assert loaded(first.get) == "one"
        assert loaded(second.get) == "one"
    assert waited.times_s == [refreshed.WAIT_S]

    world.pool.run()
    assert (first.get(), second.get()) == ("two", "two")
    assert not waits.are_suspended()


@pytest.mark.parametrize("error", [Unreachable("away"), NotAuthenticated("expired")])
def test_server_that_is_away_holds_nobody_up_twice(
    world: World, waited: Waited, error: Exception
) -> None:
    world.answers = ["one", *[error] * 100]
    value = world.value()
    value.load()
    world.now_s += 1000

    for _ in range(int(NO_WAIT_S / RETRY_S) - 1):
        assert loaded(value.get) == "one"
        world.pool.run()
        world.now_s += RETRY_S

    assert len(waited.times_s) == 1


def test_value_is_renewed_for_who_wants_a_younger_one(world: World, waited: Waited) -> None:
    world.answers = ["one", "two"]
    value = world.value()
    value.load()
    world.now_s += 1.9
    value.renew(2.0)
    assert waited.times_s == []
    world.now_s += 0.1

    with pytest.raises(NotLoaded) as missing:
        value.renew(2.0)
    missing.value.load()
    value.renew(2.0)

    assert value.get() == "two"


def test_value_that_takes_long_is_renewed_less_often(world: World, waited: Waited) -> None:
    def fetch() -> object:
        world.now_s += 5
        return "listing"

    value = RefreshedValue(fetch, 60.0, world.pool, lambda: world.now_s)
    value.load()
    world.now_s += 5 * RENEW_SHARE - 6
    value.renew(2.0)
    world.now_s += 1

    with pytest.raises(NotLoaded):
        value.renew(2.0)


def test_renewing_fails_quietly(world: World, waited: Waited) -> None:
    world.answers = ["one", Unreachable("away")]
    value = world.value()
    value.load()
    world.now_s += 10

    loaded(lambda: value.renew(2.0))

    assert value.get() == "one"
    assert len(waited.times_s) == 1


def test_many_who_find_a_value_old_refresh_it_once() -> None:
    asked = []
    with ThreadPoolExecutor(4) as pool:
        now_s = [0.0]
        value = RefreshedValue(lambda: asked.append(1), 60.0, pool, lambda: now_s[0])
        value.load()
        now_s[0] += 1000

        futures = [pool.submit(loaded, value.get_at_once) for _ in range(50)]
        for future in futures:
            future.result(LATE_S)
        loaded(value.get)

    assert len(asked) == 2


def test_all_who_wait_for_a_failing_load_are_told_by_one_request() -> None:
    asked = 0

    def fetch() -> object:
        nonlocal asked
        asked += 1
        if asked == 1:
            # The others come while this one is under way; each waits, or is told at once.
            others.extend(pool.submit(value.load) for _ in range(4))
            futures_wait(others, timeout=0.2)
        raise Unreachable("gone for a moment")

    others: list[Future[None]] = []
    with ThreadPoolExecutor(5) as pool:
        value: RefreshedValue[object] = RefreshedValue(fetch, 60.0, pool)
        first = pool.submit(value.load)
        errors = [load.exception(LATE_S) for load in (first, *others)]

        assert [str(error) for error in errors] == ["gone for a moment"] * len(errors)
        assert asked == 1
        with pytest.raises(Unreachable):
            value.load()  # who comes later asks
        assert asked == 2


# Values that were kept on the disk


class Kept:
    """A value that was kept, and how often it was made of that."""

    def __init__(self) -> None:
        self.times = 0

    def recall(self) -> Callable[[], object]:
        def make() -> object:
            self.times += 1
            return "kept"

        return make


def recalling(world: World, kept: Kept, waits: RefreshWaits) -> RefreshedValue[object]:
    return RefreshedValue(
        world.fetch, 60.0, world.pool, lambda: world.now_s, waits, recall=kept.recall
    )


def test_kept_value_is_told_when_the_server_does_not_answer_shortly(
    world: World, waited: Waited
) -> None:
    waited.server_answers = False
    world.answers, kept = ["one"], Kept()
    waits = RefreshWaits(lambda: world.now_s)
    value, another = recalling(world, kept, waits), recalling(world, kept, waits)

    assert loaded(value.get) == "kept"
    assert loaded(another.get) == "kept"
    assert waited.times_s[0] == refreshed.WAIT_S
    assert sum(waited.times_s[1:]) == 0, "nobody waits after one did in vain"

    world.pool.queue.pop()
    world.pool.run()
    assert value.get() == "one"


def test_value_that_was_dropped_is_fetched_whatever_was_kept(world: World, waited: Waited) -> None:
    waited.server_answers = False
    world.answers, kept = ["one", "two"], Kept()
    value = recalling(world, kept, RefreshWaits(lambda: world.now_s))
    value.keep("one")
    value.forget()

    assert loaded(value.get) == "one"
    assert kept.times == 0


def test_kept_value_is_not_even_made_when_the_server_answers(world: World, waited: Waited) -> None:
    """Its names would be bound, and those of today's datasets be others."""
    world.answers, kept = ["one"], Kept()

    assert loaded(recalling(world, kept, RefreshWaits(lambda: world.now_s)).get) == "one"
    assert (kept.times, world.asked) == (0, 1)


@pytest.mark.parametrize("error", [PermissionDenied("no"), NotFound("gone"), Unreachable("away")])
def test_refusal_is_told_once_and_no_kept_value(
    world: World, waited: Waited, error: Exception
) -> None:
    world.answers, kept = [error], Kept()

    with pytest.raises(type(error)):
        recalling(world, kept, RefreshWaits(lambda: world.now_s)).load()
    assert (kept.times, world.asked) == (0, 1)


def test_command_waits_for_the_server(world: World, waited: Waited) -> None:
    waited.server_answers = False
    world.answers, kept = ["one"], Kept()

    assert loaded(recalling(world, kept, RefreshWaits(lambda: world.now_s, COMMAND)).get) == "one"
    assert kept.times == 0


@pytest.mark.parametrize("ask", [lambda value: loaded(value.get), RefreshedValue.renewed])
def test_answer_that_was_asked_for_before_it_was_forgotten_is_not_told(
    world: World, ask: Callable[[RefreshedValue[object]], object]
) -> None:
    world.answers = ["before", "after"]

    def fetch() -> object:
        answer = world.fetch()
        if answer == "before":
            value.forget()  # a change is made while the answer is on its way
        return answer

    value = RefreshedValue(fetch, 60.0, world.pool, lambda: world.now_s)

    assert ask(value) == "after"
    assert value.get() == "after"


def test_what_was_kept_is_not_told_once_it_is_forgotten(world: World, waited: Waited) -> None:
    waited.server_answers = False
    world.answers = ["after"]

    def read() -> object:
        value.forget()  # while it is read from the disk
        return "before"

    value = RefreshedValue(world.fetch, 60.0, world.pool, lambda: world.now_s, recall=lambda: read)

    assert loaded(value.get) == "after"
