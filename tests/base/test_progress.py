"""The rate of a task, and how long the rest of it takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dserverfs.base.progress import WINDOW_S, Meter, Phases, Progress


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_rate_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    meter = Meter(clock)
    number = 0

    for step in range(100):  # slow in the beginning
        number += 1 if step < 50 else 10
        meter.note(number)
        clock.now_s += 1

    assert meter.per_s() == pytest.approx(10, rel=0.1)
    assert meter.left_s(50) == pytest.approx(5, rel=0.1)


def test_rate_is_not_known_at_once_and_nothing_when_it_stands_still() -> None:
    clock = Clock()
    meter = Meter(clock)
    assert meter.per_s() is None
    meter.note(0)
    clock.now_s += 0.5
    meter.note(5_000)
    assert meter.per_s() is None
    assert meter.left_s(1) is None
    clock.now_s += 0.5
    meter.note(10_000)
    assert meter.per_s() == 10_000

    clock.now_s += WINDOW_S + 1

    assert meter.per_s() == 0
    assert meter.left_s(1) is None


@given(steps=st.lists(st.tuples(st.integers(-1000, 1000), st.floats(0, 60)), max_size=50))
def test_rate_is_never_negative_nor_more_than_what_came(steps: list[tuple[int, float]]) -> None:
    """Bytes go back when an item is sent again."""
    clock = Clock()
    meter = Meter(clock)
    number = 0
    for more, pause_s in steps:
        number += more
        meter.note(number)
        clock.now_s += pause_s
        rate = meter.per_s()
        assert rate is None or 0 <= rate <= 1000 * len(steps)


def test_each_phase_has_a_rate_of_its_own() -> None:
    clock = Clock()
    phases = Phases(clock)
    assert phases.doing() is None
    for done in (0, 100):
        phases.note("hashing", Progress(done, 100, 0, 1))
        clock.now_s += 1

    hashing = phases.doing()
    phases.note("uploading", Progress(0, 100, 0, 1))
    uploading = phases.doing()

    assert hashing is not None
    assert (hashing.phase, hashing.bytes_per_s, hashing.left_s) == ("hashing", 50, 0)
    assert uploading is not None
    assert (uploading.phase, uploading.bytes_per_s, uploading.left_s) == ("uploading", None, None)
