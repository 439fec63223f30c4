"""Work that a pool does, or tells of when it is shut down before."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dserverfs.base import pools
from tests.support.few_threads import no_more_threads
from tests.support.patience import LATE_S


def test_work_is_done_or_told_of_but_never_both_nor_neither() -> None:
    told: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert go_on.wait(LATE_S)
        told.append("done")

    pool = ThreadPoolExecutor(1)
    pools.submit(pool, work, dropped=lambda: told.append("dropped, though begun"))
    pools.submit(pool, work, dropped=lambda: told.append("dropped before its turn"))
    assert begun.wait(LATE_S)

    pool.shutdown(wait=False, cancel_futures=True)
    assert told == ["dropped before its turn"]
    pools.submit(pool, work, dropped=lambda: told.append("dropped at once"))
    go_on.set()
    pool.shutdown()

    assert told == ["dropped before its turn", "dropped at once", "done"]


@pytest.mark.parametrize("has_thread", [True, False])
def test_work_that_no_thread_can_be_had_for_is_dropped_or_done_and_never_both(
    has_thread: bool,
) -> None:
    """A pool that cannot start a thread has queued the work all the same."""
    told: list[str] = []
    begun, go_on = threading.Event(), threading.Event()
    pool = ThreadPoolExecutor(2)
    if has_thread:

        def work() -> None:
            begun.set()
            assert go_on.wait(LATE_S)

        pool.submit(work)
        assert begun.wait(LATE_S)

    with no_more_threads():
        pools.submit(pool, lambda: told.append("done"), dropped=lambda: told.append("dropped"))
    assert told == ["dropped"]
    go_on.set()
    pool.submit(lambda: told.append("the next")).result(LATE_S)
    pool.shutdown()

    assert told == ["dropped", "the next"]
