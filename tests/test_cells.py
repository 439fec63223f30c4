"""Values that are loaded on demand and refreshed behind their readers' backs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from dserverfs.cells import RETRY_S, Cell, NotLoaded
from dserverfs.errors import NotAuthenticated, NotFound, PermissionDenied, Unreachable


class Inline(Executor):
    """Runs what is submitted when the test says so."""

    def __init__(self) -> None:
        self.queue: list[Callable[[], Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.queue.append(lambda: fn(*args, **kwargs))
        return Future()

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

    def cell(self) -> Cell[object]:
        return Cell(self.fetch, 60.0, self.pool, lambda: self.now_s)


@pytest.fixture
def world() -> World:
    return World()


def test_cell_says_what_to_load_and_then_answers(world: World) -> None:
    world.answers = ["one"]
    cell = world.cell()

    with pytest.raises(NotLoaded) as missing:
        cell.get()
    missing.value.load()

    assert cell.get() == "one"


def test_cell_is_loaded_once_by_all_who_found_it_missing(world: World) -> None:
    world.answers = ["one"]
    cell = world.cell()

    cell.load()
    cell.load()

    assert world.asked == 1


def test_old_value_is_served_while_a_new_one_is_fetched(world: World) -> None:
    world.answers = ["one", "two"]
    cell = world.cell()
    cell.load()
    world.now_s += 61

    assert cell.get() == "one"
    assert cell.get() == "one"
    assert len(world.pool.queue) == 1
    world.pool.run()

    assert cell.get() == "two"


@pytest.mark.parametrize("error", [Unreachable("away"), NotAuthenticated("expired")])
def test_value_is_kept_when_the_server_is_away_or_the_token_expired(
    world: World, error: Exception
) -> None:
    world.answers = ["one", error, "two"]
    cell = world.cell()
    cell.load()
    world.now_s += 61
    cell.get()
    world.pool.run()

    assert cell.get() == "one"
    assert not world.pool.queue
    world.now_s += RETRY_S
    cell.get()
    world.pool.run()

    assert cell.get() == "two"


@pytest.mark.parametrize("error", [PermissionDenied("no longer"), NotFound("gone")])
def test_value_is_dropped_when_the_server_says_no(world: World, error: Exception) -> None:
    world.answers = ["one", error]
    cell = world.cell()
    cell.load()
    world.now_s += 61
    cell.get()
    world.pool.run()

    with pytest.raises(NotLoaded):
        cell.get()


def test_failed_load_raises_and_is_tried_again(world: World) -> None:
    world.answers = [Unreachable("away"), "one"]
    cell = world.cell()

    with pytest.raises(Unreachable):
        cell.load()
    cell.load()

    assert cell.get() == "one"


def test_what_was_fetched_in_another_way_is_fresh_and_not_fetched_again(world: World) -> None:
    cell = world.cell()

    cell.keep("known")
    cell.load()

    assert cell.get() == "known"
    assert world.asked == 0
    assert not world.pool.queue
    world.now_s += 60
    assert cell.get() == "known"
    assert len(world.pool.queue) == 1
