"""A watch on the event loop: each stall in the log, with what the loop was doing.

Every request of a mount passes the event loop, so whatever holds it up holds up all of them.
Off unless the settings ask for it: it is for those who look for the reason of a mount that
stutters, and for the tests. One thread; the loop is woken a few dozen times in a second.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import trio

logger = logging.getLogger(__name__)

_STACK_FRAMES = 12


@contextlib.contextmanager
def stalls_logged(limit_s: float | None) -> Iterator[None]:
    """Log what keeps this event loop from its next task for longer than `limit_s`.

    To be entered in the event loop. None: nothing is watched.
    """
    if limit_s is None:
        yield
        return
    token = trio.lowlevel.current_trio_token()
    is_over = threading.Event()
    watch = threading.Thread(
        target=_watch,
        args=(limit_s, token.run_sync_soon, threading.get_ident(), is_over),
        name="stalls",
        daemon=True,
    )
    watch.start()
    try:
        yield
    finally:
        is_over.set()


def _watch(
    limit_s: float,
    run_soon: Callable[[Callable[[], None]], None],
    loop_thread: int,
    is_over: threading.Event,
) -> None:
    clock = time.pthread_getcpuclockid(loop_thread)
    while not is_over.wait(limit_s / 2):
        turned = threading.Event()
        asked_s, worked_s = time.monotonic(), time.clock_gettime(clock)
        try:
            run_soon(turned.set)
        except trio.RunFinishedError:
            return
        if turned.wait(limit_s):
            continue
        frame = sys._current_frames().get(loop_thread)
        stack = "".join(traceback.format_stack(frame)[-_STACK_FRAMES:]) if frame is not None else ""
        while not turned.wait(1.0) and not is_over.is_set():
            pass
        if is_over.is_set():
            return
        # Less processor time than that: it waited for the disk, or others had the processor.
        logger.warning(
            "the event loop stalled for %.0f ms, with %.0f ms of processor time, in\n%s",
            (time.monotonic() - asked_s) * 1000,
            (time.clock_gettime(clock) - worked_s) * 1000,
            stack,
        )
