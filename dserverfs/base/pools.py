"""Work for a pool of threads that may be shut down before its turn comes.

Used where others wait for what the work is to tell them: a pool that is shut down drops
what it has not begun, and then nobody would tell them anything.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


def submit(
    pool: ThreadPoolExecutor, work: Callable[[], None], *, dropped: Callable[[], None]
) -> None:
    """Have `work` done by a thread of the pool, or `dropped` by whoever shuts it down before.

    `dropped` is called at once, in this thread, if the pool is shut down already.
    """

    def is_over(done: Future[None]) -> None:
        if done.cancelled():
            dropped()

    try:
        submitted = pool.submit(work)
    except RuntimeError:
        dropped()
        return
    submitted.add_done_callback(is_over)
