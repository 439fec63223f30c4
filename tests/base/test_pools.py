"""Work that a pool does, or tells of when it is shut down before."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from dserverfs.base import pools
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
