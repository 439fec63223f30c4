"""Threads that help with work which goes on without them where there can be no more.

Used where a thread saves time, or does later what may be left undone. A limit of processes
(`ulimit -u`, that of a cgroup) counts threads as well, and a machine of many users reaches it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


def started(work: Callable[[], None], *, name: str) -> threading.Thread | None:
    """Return a daemon thread that does `work`; None if the system has none to give just now."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        logger.debug("no thread for %s: %s; goes on without", name, error)
        return None
    return thread


def several_started(work: Callable[[], None], *, name: str, count: int) -> list[threading.Thread]:
    """Return up to `count` daemon threads that do the same work: as many as there can be."""
    threads: list[threading.Thread] = []
    while len(threads) < count:
        thread = started(work, name=f"{name}-{len(threads)}")
        if thread is None:
            break
        threads.append(thread)
    return threads
