"""Work for a pool of threads that may be shut down before its turn comes.

Used where others wait for what the work is to tell them: a pool that is shut down drops
what it has not begun, and then nobody would tell them anything. Nor would a pool to which the
system gives no thread; there work that is waited for is done by the thread that waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from dserverfs.base.errors import Unreachable

_S = TypeVar("_S")
_T = TypeVar("_T")


def without_threads(what: str) -> Unreachable:
    """Return the error of work that nobody may wait for, and that had no thread."""
    return Unreachable(f"{what}: the system gives no more threads (ulimit -u); try again later")


def begun(pool: ThreadPoolExecutor, work: Callable[[], _T]) -> Future[_T]:
    """Return the result to be of `work`, as `pool.submit` does; blocks where there is no thread.

    Where the system gives the pool no more threads, this thread does the work, unless one of the
    pool has begun it.
    """
    result: Future[_T] = Future()
    turn = threading.Lock()

    def do() -> None:
        if not turn.acquire(blocking=False):
            return
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is told whoever waits for the result
            result.set_exception(error)

    def is_over(done: Future[None]) -> None:
        if done.cancelled():
            result.cancel()

    try:
        pool.submit(do).add_done_callback(is_over)
    except RuntimeError:
        do()
    return result


def each(pool: ThreadPoolExecutor, work: Callable[[_S], _T], some: Iterable[_S]) -> Iterator[_T]:
    """Yield the result of each in order, as `pool.map` does; blocks where there is no thread.

    What is not begun when one has failed is not done.
    """
    is_given_up = threading.Event()

    def do(one: _S) -> _T:
        if is_given_up.is_set():
            raise CancelledError
        return work(one)

    results = [begun(pool, partial(do, one)) for one in some]
    try:
        for result in results:
            yield result.result()
    finally:
        is_given_up.set()


def submit(
    pool: ThreadPoolExecutor, work: Callable[[], None], *, dropped: Callable[[], None]
) -> None:
    """Have `work` done by a thread of the pool, or `dropped` by whoever shuts it down before.

    `dropped` is called at once, in this thread, if the pool is shut down already, or can have
    no thread. One of the two is called, and once.
    """
    turn = threading.Lock()  # of the one that comes first

    def once(call: Callable[[], None]) -> None:
        if turn.acquire(blocking=False):
            call()

    def is_over(done: Future[None]) -> None:
        if done.cancelled():
            once(dropped)

    try:
        submitted = pool.submit(once, work)
    except RuntimeError:
        once(dropped)  # a pool without a thread has it in its queue all the same
        return
    submitted.add_done_callback(is_over)
