"""The one rule of what is tried again, and when."""

from __future__ import annotations

import pytest

from dserverfs.base import retry
from dserverfs.base.errors import (
    Busy,
    Conflict,
    DeadlineExceeded,
    DserverfsError,
    Frozen,
    Garbled,
    IntegrityError,
    NotAuthenticated,
    NotConnected,
    NotFound,
    NotStored,
    NotTheServer,
    PermissionDenied,
    ProtocolError,
    Stalled,
    StorageRefused,
    Unreachable,
    UnusableAnswer,
    UsageError,
)
from dserverfs.base.retry import (
    ATTEMPTS,
    MIN_BYTES_PER_S,
    Deadline,
    Retries,
    retry_after_s,
    wait_s,
)


class Clock:
    """A time that goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def failing(clock: Clock, error: DserverfsError, timeout_s: float = 30.0) -> int:
    """Return how many attempts there are at what always fails with `error`."""
    attempts = 0
    deadline = Deadline(timeout_s, clock_s=clock)

    def attempt(limit: Deadline) -> None:
        nonlocal attempts
        attempts += 1
        if isinstance(error, Stalled):
            clock.now_s += limit.wait_s()
        raise error

    with pytest.raises(DserverfsError) as failure:
        Retries(deadline, sleep=clock.sleep).run(attempt)
    assert failure.value is error or failure.value.__cause__ is error
    assert clock.now_s <= 1000.0 + timeout_s
    return attempts


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (Unreachable("cut off"), ATTEMPTS),
        (NotConnected("refused"), ATTEMPTS),
        (Busy("503"), ATTEMPTS),
        (Busy("503", retry_after_s=7200.0), ATTEMPTS),
        (Garbled("encoded"), ATTEMPTS),
        (UnusableAnswer("half"), ATTEMPTS - 1),
        (NotTheServer("302"), ATTEMPTS - 1),
        (Stalled("nothing came"), 2),  # 10 s and what is left of 30
        (StorageRefused("403"), 2),
        (DeadlineExceeded("over"), 1),
        (NotFound("404"), 1),
        (NotStored("404"), 1),
        (PermissionDenied("403"), 1),
        (NotAuthenticated("401"), 1),
        (ProtocolError("422"), 1),
        (IntegrityError("412"), 1),
        (Conflict("409"), 1),
        (Frozen("frozen"), 1),
        (UsageError("odd"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_what_lasts_fails_within_its_deadline_after_few_attempts(
    clock: Clock, error: DserverfsError, attempts: int
) -> None:
    assert failing(clock, error) == attempts


@pytest.mark.parametrize("left_s", [0.0, -1.0, 0.01])
def test_no_attempt_begins_when_the_time_is_over(left_s: float) -> None:
    assert wait_s(NotConnected("refused"), 0, left_s, attempts=4, jitter=1.0) is None


@pytest.mark.parametrize("error", [Unreachable("cut off"), Stalled("nothing came")])
def test_lost_connection_is_replaced_at_once_and_then_with_growing_waits(
    error: DserverfsError,
) -> None:
    waits = [wait_s(error, failures, 1e9, attempts=9, jitter=1.0) for failures in range(6)]

    assert waits == pytest.approx([0.0, 0.8, 3.2, 12.8, 15.0, 15.0])


@pytest.mark.parametrize(
    ("asked_s", "left_s", "expected"),
    [
        (0.0, 30.0, 0.2),
        (2.0, 30.0, 2.0),
        (7200.0, 30.0, 10.0),  # there is time for others after it
        (7200.0, float("inf"), 60.0),
    ],
)
def test_busy_server_is_asked_when_it_says_or_before_it_is_too_late(
    asked_s: float, left_s: float, expected: float
) -> None:
    error = Busy("503", retry_after_s=asked_s)

    assert wait_s(error, 0, left_s, attempts=4, jitter=1.0) == pytest.approx(expected)


def test_waits_differ_between_those_who_failed_together(clock: Clock) -> None:
    failing(clock, NotConnected("refused"))
    first = clock.waits
    clock.now_s, clock.waits = 1000.0, []
    failing(clock, NotConnected("refused"))

    assert first != clock.waits
    assert len(first) == ATTEMPTS - 1


def test_each_connection_may_say_nothing_for_longer_than_the_one_before() -> None:
    assert [retry.stall_s(10.0, failures) for failures in range(4)] == [10.0, 20.0, 30.0, 30.0]
    assert [retry.stall_s(60.0, failures) for failures in range(3)] == [60.0, 120.0, 120.0]


def test_what_gets_on_is_not_given_up(clock: Clock) -> None:
    retries = Retries(Deadline(30.0, clock_s=clock), sleep=clock.sleep)

    for _ in range(100):
        clock.now_s = 1000.0
        retries.again(Unreachable("cut off"))
        retries.again(StorageRefused("403"))
        retries.progressed()
        assert retries.failures == 0

    retries.again(StorageRefused("403"))
    with pytest.raises(ProtocolError, match="signed just now"):  # there was no progress between
        retries.again(StorageRefused("403"))


def test_deadline_of_an_attempt_is_that_of_its_operation(clock: Clock) -> None:
    deadline = Deadline(30.0, clock_s=clock)
    attempt = deadline.of_attempt(stall_s=5.0)

    assert attempt.wait_s() == 5.0
    assert Retries(attempt).limit().stall_s == 10.0, "it may be that of attempts itself"
    clock.now_s += 27.0
    assert attempt.wait_s() == 3.0
    attempt.extend(10.0)
    assert deadline.remaining_s() == 13.0
    attempt.extend(100.0)  # what comes fast is no licence to stop for long
    assert deadline.remaining_s() == 30.0
    clock.now_s += 30.0
    with pytest.raises(DeadlineExceeded):
        attempt.wait_s()
    deadline.restart()
    assert attempt.remaining_s() == 30.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "-7"}, 0),
        ({"Retry-After": "inf"}, 0),
        ({"Retry-After": "soon"}, 0),
        ({"Retry-After": "Sat, 21 Nov 2026 10:00:09 GMT"}, 4),
        ({"Retry-After": "Sat, 21 Nov 2026 10:00:09 GMT", "Date": "today"}, 4),
        ({"Retry-After": "Sat, 21 Nov 2020 10:00:09 GMT"}, 0),
        (
            {
                "Retry-After": "Sat, 21 Nov 2026 10:00:09 GMT",
                "Date": "Sat, 21 Nov 2026 10:00:00 GMT",
            },
            9,
        ),
    ],
)
def test_retry_after_in_both_its_forms(headers: dict[str, str], seconds: float) -> None:
    ours = 1_795_255_205.0  # 10:00:05 of that day

    assert retry_after_s(headers, lambda: ours) == seconds


def test_pauses_of_what_is_tried_for_ever_grow_up_to_a_limit() -> None:
    pause, pauses = 0.0, []
    for _ in range(20):
        pause = retry.pause_s(pause, 5.0, 600.0)
        pauses.append(pause)

    assert 4.0 <= pauses[0] <= 5.0
    assert 480.0 <= pauses[-1] <= 600.0


def test_connection_over_which_too_little_comes_has_stalled(clock: Clock) -> None:
    deadline = Deadline(1000.0, stall_s=10.0, clock_s=clock)
    waits = []
    for seconds, count in [(0.0, 0), (4.0, 0), (2.0, MIN_BYTES_PER_S), (1.0, 10**9)]:
        deadline.waited(seconds, count)
        waits.append(deadline.wait_s())
    assert waits == [10.0, 6.0, 5.0, 10.0]

    deadline.waited(9.5, 0)
    assert deadline.wait_s() == 0.5
    deadline.waited(0.5, 0)

    with pytest.raises(Stalled):
        deadline.wait_s()
    deadline.begin()
    assert deadline.wait_s() == 10.0


def test_time_is_over_at_its_end(clock: Clock) -> None:
    deadline = Deadline(5.0, clock_s=clock)
    clock.now_s += 4.75
    assert (deadline.left_s(), deadline.remaining_s()) == (0.25, 0.25)

    clock.now_s += 0.25

    assert deadline.left_s() == 0
    for ask in (deadline.remaining_s, deadline.wait_s, Retries(deadline).limit):
        with pytest.raises(DeadlineExceeded):
            ask()


def test_no_wait_lasts_to_the_end_of_the_time() -> None:
    error = NotConnected("refused")

    assert wait_s(error, 0, 0.2, attempts=4, jitter=1.0) is None
    assert wait_s(error, 0, 0.21, attempts=4, jitter=1.0) == 0.2
    assert wait_s(error, 1, 9.0, attempts=4, jitter=1.5) == pytest.approx(1.2)


@pytest.mark.parametrize("error", [UnusableAnswer("half"), NotTheServer("302")])
@pytest.mark.parametrize(("attempts", "made"), [(1, 1), (2, 2), (3, 2), (4, 3)])
def test_useless_answer_is_asked_for_less_often_but_once_more(
    clock: Clock, error: DserverfsError, attempts: int, made: int
) -> None:
    retries = Retries(Deadline(1000.0, clock_s=clock), attempts=attempts, sleep=clock.sleep)

    for _ in range(made - 1):
        retries.again(error)
    with pytest.raises(type(error)):
        retries.again(error)


def test_what_must_not_be_repeated_is_not(clock: Clock) -> None:
    deadline = Deadline(1000.0, clock_s=clock)
    retries = Retries(deadline, repeatable=retry.refused_url, sleep=clock.sleep)

    with pytest.raises(Unreachable):
        retries.again(Unreachable("cut off"))

    retries.again(StorageRefused("403"))
    assert clock.waits == []


def test_refused_url_is_renewed_again_after_another_failure(clock: Clock) -> None:
    retries = Retries(Deadline(1000.0, clock_s=clock), sleep=clock.sleep)

    for _ in range(2):
        retries.again(StorageRefused("403"))
        retries.again(Unreachable("cut off"))

    assert retries.failures == 2


def test_attempts_have_their_limits_and_failures_are_told(clock: Clock) -> None:
    limits: list[float] = []
    told: list[DserverfsError] = []
    error = Unreachable("cut off")

    def attempt(limit: Deadline) -> str:
        limits.append(limit.stall_s)
        if len(limits) < 3:
            raise error
        return "done"

    def run(**given: float) -> str:
        limits.clear()
        retries = Retries(Deadline(24.0, clock_s=clock), sleep=clock.sleep, **given)  # type: ignore[arg-type]
        return retries.run(attempt, on_failure=told.append)

    assert run() == "done"
    assert limits == [8.0, 16.0, 30.0]
    assert run(first_stall_s=1.0) == "done"
    assert limits == [1.0, 2.0, 4.0]
    assert told == [error] * 4


def test_pause_is_twice_the_last_one_with_a_little_chance() -> None:
    pauses = [retry.pause_s(10.0, 5.0, 600.0) for _ in range(50)]

    assert 16.0 <= min(pauses) < max(pauses) <= 20.0
