"""How long a handler waits in the event loop for what others load or fetch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import trio

from dserverfs.catalogue.refreshed import Load, NotLoaded

METADATA_TIMEOUT_S = 30.0
LOAD_TIMEOUT_S = 120.0  # for a manifest, as long as it arrives

R = TypeVar("R")
T = TypeVar("T")


async def loaded(call: Callable[[], R], missing: NotLoaded, limit: trio.CapacityLimiter) -> R:
    """Return what `call` returns, loading what it lacks; `missing` is what it said.

    Raises TooSlowError after METADATA_TIMEOUT_S; what is loaded with `begin` may take
    LOAD_TIMEOUT_S if it gets on. That goes on without us: who asks again waits less.
    """
    with trio.fail_after(METADATA_TIMEOUT_S + LOAD_TIMEOUT_S):
        while True:
            if missing.begin is None:
                with trio.fail_after(METADATA_TIMEOUT_S):
                    await trio.to_thread.run_sync(
                        missing.load, abandon_on_cancel=True, limiter=limit
                    )
            else:
                with trio.fail_after(LOAD_TIMEOUT_S):
                    await _ended(missing.begin())
            try:
                return call()
            except NotLoaded as error:
                missing = error


async def _ended(load: Load) -> None:
    """Wait for a load as long as it gets on; raises TooSlowError, and what loading raises."""
    before = None
    while (now := load.progress()) != before:
        before = now
        with trio.move_on_after(METADATA_TIMEOUT_S):
            await result(load.future)
            return
    raise trio.TooSlowError


async def result(future: Future[T]) -> T:
    """Wait for a future in the event loop, without a thread."""
    if not future.done():
        token = trio.lowlevel.current_trio_token()
        done = trio.Event()

        def wake(_: Future[T]) -> None:
            try:
                token.run_sync_soon(done.set)
            except trio.RunFinishedError:  # the daemon ended while a fetch was under way
                pass

        future.add_done_callback(wake)
        await done.wait()
    return future.result()
