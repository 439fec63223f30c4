"""Threads in which handlers wait: who waits for one thing holds up nobody who waits for another."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import trio
import trio.testing

from dserverfs.mount.waiting import Waiting
from dserverfs.tree.steps import Limit

MANY = 40  # more than any limit has threads


@pytest.mark.parametrize("busy", Limit)
def test_each_reason_to_wait_has_threads_of_its_own(busy: Limit) -> None:
    release = threading.Event()
    others = [limit for limit in Limit if limit is not busy]

    async def main() -> list[Limit]:
        waiting = Waiting()
        done = []
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(MANY):
                    nursery.start_soon(waiting.in_thread, release.wait, busy)
                await trio.testing.wait_all_tasks_blocked()
                for limit in others:
                    done.append(await waiting.in_thread(partial(Limit, limit.value), limit))
                release.set()
        return done

    try:
        assert trio.run(main) == others
    finally:
        release.set()
