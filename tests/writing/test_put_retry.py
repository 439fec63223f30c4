"""A PUT is tried until it is stored, and what was sent is counted; with a store that is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from dserverfs.base.errors import (
    Cancelled,
    Conflict,
    DserverfsError,
    Garbled,
    ItemChanged,
    NotStored,
    ProtocolError,
    StorageRefused,
    Unreachable,
)
from dserverfs.base.progress import Progress
from dserverfs.remote.upload_urls import UploadUrl
from dserverfs.writing.upload.put_retry import ATTEMPTS, AnnouncedTarget, Attempts, Tally

CONTENT = b"content"
AWAY = Unreachable("the store is away")
EXPIRED = StorageRefused("403", code="AccessDenied")
OTHER_CONTENT = ["BadDigest", "Md5Mismatch", "InvalidOperation"]


class Place:
    """A target that says how often it was renewed."""

    def __init__(self) -> None:
        self.renewed = 0
        self.error: DserverfsError | None = None

    def url(self) -> UploadUrl:
        return UploadUrl(f"http://store/{self.renewed}", {"X-A": "b"})

    def renew(self) -> None:
        self.renewed += 1
        if self.error is not None:
            raise self.error


class Bench:
    """Attempts on a store that fails as it is told, and their tally."""

    def __init__(self, *failures: DserverfsError) -> None:
        self.failures = list(failures)
        self.urls: list[str] = []
        self.waits: list[float] = []
        self.seen: list[Progress] = []
        self.place = Place()
        self.stop = threading.Event()
        self.tally = Tally([len(CONTENT), 5], self.seen.append, self.stop)
        self.tally.wait = self.waits.append  # type: ignore[assignment,method-assign]
        storage: Any = SimpleNamespace(write=self._write)
        self.attempts = Attempts(storage, self.tally)

    def _write(
        self, url: str, headers: Mapping[str, str], content: bytes, on_progress: Any
    ) -> Mapping[str, str]:
        assert (headers, content) == ({"X-A": "b"}, CONTENT)
        self.urls.append(url.rpartition("/")[2])
        on_progress(3)
        if self.failures:
            raise self.failures.pop(0)
        on_progress(len(content) - 3)
        return {"ETag": "e"}

    def persist(self, **options: Any) -> Mapping[str, str]:
        return self.attempts.persist(self.place, CONTENT, **options)


@pytest.mark.parametrize("failed", range(ATTEMPTS))
def test_put_is_tried_until_it_is_stored(failed: int) -> None:
    bench = Bench(*[AWAY] * failed)

    assert bench.persist() == {"ETag": "e"}

    # After the third failure it may be elsewhere.
    assert bench.urls == ["0", "0", "0", "1", "1", "1"][: failed + 1]
    assert len(bench.waits) == max(failed - 1, 0), "the first is repeated at once"
    assert bench.seen[-1] == (len(CONTENT), len(CONTENT) + 5, 0, 2)
    assert {progress.bytes_done for progress in bench.seen} <= {0, 3, len(CONTENT)}


def test_store_that_stays_away_is_told_and_nothing_is_counted() -> None:
    bench = Bench(*[AWAY] * ATTEMPTS)

    with pytest.raises(Unreachable) as failure:
        bench.persist()

    assert failure.value is AWAY
    assert bench.failures == []
    assert bench.seen[-1] == (0, len(CONTENT) + 5, 0, 2)


@pytest.mark.parametrize("error", [AWAY, Conflict("registered meanwhile")])
def test_server_that_knows_no_other_place_is_no_reason_to_end_unless_it_says_so(
    error: DserverfsError,
) -> None:
    bench = Bench(*[AWAY] * 3)
    bench.place.error = error

    if error is AWAY:
        bench.persist()
    else:
        with pytest.raises(Conflict):
            bench.persist()
    assert len(bench.urls) == (4 if error is AWAY else 3)


def test_refused_url_is_renewed_once() -> None:
    bench = Bench(EXPIRED)
    bench.persist()
    assert bench.urls == ["0", "1"]

    bench.failures = [EXPIRED, EXPIRED]
    with pytest.raises(ProtocolError, match="signed just now"):
        bench.persist()
    assert bench.urls == ["0", "1", "1", "2"]
    assert bench.waits == []


def test_other_failures_are_not_tried_again() -> None:
    bench = Bench(NotStored("no such bucket"))

    with pytest.raises(NotStored):
        bench.persist()
    assert len(bench.urls) == 1


@pytest.mark.parametrize("code", OTHER_CONTENT)
def test_other_bytes_than_are_pinned_are_sent_again_if_the_file_is_as_it_was(code: str) -> None:
    bench = Bench(*[StorageRefused("400", code=code)] * ATTEMPTS)
    asked: list[bool] = []

    with pytest.raises(Garbled, match="though the file is as hashed"):
        bench.persist(on_other_content=lambda: asked.append(True))

    assert len(asked) == ATTEMPTS
    assert bench.place.renewed == 0
    assert len(bench.waits) == ATTEMPTS - 1, "no connection is to blame"


def test_file_that_changed_is_not_sent_again() -> None:
    bench = Bench(StorageRefused("400", code="BadDigest"))

    def has_changed() -> None:
        raise ItemChanged("a: changed")

    with pytest.raises(ItemChanged):
        bench.persist(on_other_content=has_changed)
    assert len(bench.urls) == 1


def test_what_is_no_item_is_not_counted() -> None:
    bench = Bench(AWAY)

    bench.persist(counted=False)

    assert bench.seen == []


def ask_to_stop(bench: Bench) -> None:
    bench.stop.set()


def end_for_a_failure(bench: Bench) -> None:
    bench.tally.end()


@pytest.mark.parametrize("end", [ask_to_stop, end_for_a_failure])
@pytest.mark.parametrize("counted", [True, False])
def test_what_is_to_end_ends_while_it_is_sent(end: Callable[[Bench], None], counted: bool) -> None:
    bench = Bench()
    end(bench)

    with pytest.raises(Cancelled):
        bench.persist(counted=counted)

    assert len(bench.urls) == 1


class Clock(threading.Event):
    """A stop that notes how long it is waited for, and is set after `waits` of them."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self._left = waits
        self.waited: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waited.append(timeout)
        self._left -= 1
        if not self._left:
            self.set()
        return self.is_set()


def test_wait_is_in_short_pieces_and_ends_with_the_stop() -> None:
    clock = Clock(waits=9)
    Tally([], stop=clock).wait(0.25)
    assert clock.waited == pytest.approx([0.1, 0.1, 0.05])

    stopped = Clock(waits=2)
    with pytest.raises(Cancelled):
        Tally([], stop=stopped).wait(1000.0)
    assert len(stopped.waited) == 2

    broken = Tally([], stop=(never := Clock(waits=9)))
    broken.end()
    with pytest.raises(Cancelled):
        broken.wait(1000.0)
    assert never.waited == []


def test_items_and_bytes_are_counted_to_the_end() -> None:
    seen: list[Progress] = []
    tally = Tally([7, 0, 5], seen.append)

    tally.add_sent(0)
    tally.take_back(0)
    tally.add_sent(7)
    tally.add_item()
    tally.add_item()
    tally.add_item(5)

    assert seen == [(7, 12, 0, 3), (7, 12, 1, 3), (7, 12, 2, 3), (12, 12, 3, 3)]


def test_announcement_is_renewed_for_the_urls_that_were_refused() -> None:
    announced = iter(["first", "second"])
    refused: list[object] = []
    announcement: Any = SimpleNamespace(urls=lambda: next(announced), renewed=refused.append)
    target = AnnouncedTarget(announcement, lambda urls: UploadUrl(f"{urls}/item", {}))

    target.renew()
    assert refused == []
    assert target.url().url == "first/item"
    target.renew()
    assert target.url().url == "second/item"
    target.renew()

    assert refused == ["first", "second"]
