"""Calls that may hang, and are given up: of paths in mounts, whose daemon may be stopped."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

R = TypeVar("R")


class GivenUp(Exception):
    """The call has not ended in its time, and may go on in a thread that is left behind."""


def within(timeout_s: float, call: Callable[[], R]) -> R:
    """Return what `call` returns; raises GivenUp after `timeout_s`, and what `call` raises.

    A thread that is left behind ends with its call, or when this process ends.
    """
    done: queue.SimpleQueue[Future[R]] = queue.SimpleQueue()

    def run() -> None:
        future: Future[R] = Future()
        try:
            future.set_result(call())
        except Exception as error:  # noqa: BLE001  # raised in the thread that waits
            future.set_exception(error)
        done.put(future)

    threading.Thread(target=run, name="may hang", daemon=True).start()
    try:
        return done.get(timeout=timeout_s).result()
    except queue.Empty:
        raise GivenUp(f"no answer within {timeout_s:g} s") from None
