"""Work for a pool of threads that may be shut down before its turn comes.

Used where others wait for what the work is to tell them: a pool that is shut down drops
what it has not begun, and then nobody would tell them anything. Nor would a pool to which the
system gives no thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


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
