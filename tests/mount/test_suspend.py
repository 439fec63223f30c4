"""A machine that was suspended for a night: what became old is asked for anew, nobody timed out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from dserverfs.base.clock import boottime_s
from dserverfs.base.model import BackendURI, Identifier
from dserverfs.base.retry import Deadline
from dserverfs.catalogue.refreshed import NotLoaded, RefreshedValue, loaded
from dserverfs.remote.signed_urls import SignedURL, UrlBook

NIGHT_S = 8 * 3600.0


class Suspended:
    """Makes the clock that counts suspend jump, and the other one not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._slept_s = 0.0
        real = time.clock_gettime

        def clock_gettime(clock: int) -> float:
            return real(clock) + (self._slept_s if clock == time.CLOCK_BOOTTIME else 0.0)

        monkeypatch.setattr(time, "clock_gettime", clock_gettime)

    def sleep(self, seconds: float) -> None:
        self._slept_s += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Suspended:
    return Suspended(monkeypatch)


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_listing_of_the_evening_is_refreshed_in_the_morning(
    machine: Suspended, background: ThreadPoolExecutor
) -> None:
    answers = iter(["evening", "morning"])
    value = RefreshedValue(lambda: next(answers), 60.0, background)
    with pytest.raises(NotLoaded) as missing:
        value.get()
    missing.value.load()
    assert value.get() == "evening"

    machine.sleep(NIGHT_S)

    assert loaded(value.get) == "morning"


def test_url_of_the_evening_is_not_used_in_the_morning(machine: Suspended) -> None:
    book = UrlBook()
    dataset, item = BackendURI("s3://b/u"), Identifier("i")
    urls = iter(["evening", "morning"])

    def ask() -> dict[Identifier, SignedURL]:
        return {item: SignedURL(next(urls), boottime_s() + 3600)}

    assert book.get(dataset, item, ask).url == "evening"
    assert book.get(dataset, item, ask).url == "evening"

    machine.sleep(NIGHT_S)

    assert book.get(dataset, item, ask).url == "morning"


def test_read_that_was_under_way_goes_on(machine: Suspended) -> None:
    deadline = Deadline(30.0)

    machine.sleep(NIGHT_S)

    assert deadline.remaining_s() > 0
