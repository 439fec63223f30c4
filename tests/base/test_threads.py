"""Threads that help: as many as the system gives, and no failure where it gives none."""

from __future__ import annotations

import threading

import pytest

from dserverfs.base import threads
from tests.support.few_threads import no_more_threads
from tests.support.patience import LATE_S


@pytest.mark.parametrize(("wanted", "allowed", "expected"), [(3, 9, 3), (3, 2, 2), (2, 0, 0)])
def test_as_many_threads_help_as_there_can_be(wanted: int, allowed: int, expected: int) -> None:
    done: list[str] = []

    with no_more_threads(allowed):
        helpers = threads.several_started(
            lambda: done.append(threading.current_thread().name), name="help", count=wanted
        )
    for helper in helpers:
        assert helper.daemon
        helper.join(LATE_S)

    assert sorted(done) == [f"help-{number}" for number in range(expected)]


@pytest.mark.parametrize("count", [0, -1])
def test_no_thread_helps_where_none_is_wanted(count: int) -> None:
    helpers = threads.several_started(lambda: pytest.fail("it helps"), name="help", count=count)

    assert helpers == []
