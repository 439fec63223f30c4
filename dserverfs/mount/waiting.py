"""How long a handler waits in the event loop for what others load, fetch or write."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import NamedTuple, TypeVar, cast

import trio

from dserverfs.base.hashes import Buffer
from dserverfs.catalogue.refreshed import Load, NotLoaded
from dserverfs.reading.cache.blocks import Block
from dserverfs.reading.open_item import OpenItem
from dserverfs.tree.steps import Limit, Steps, TookTooLong, Unloaded, WouldBlock

METADATA_TIMEOUT_S = 30.0
LOAD_TIMEOUT_S = 120.0  # for a manifest, as long as it arrives
METADATA_THREADS = 24
# Of each kind: disk, what is written, changes that the server is told of, freezes.
OTHER_THREADS = 8

R = TypeVar("R")
T = TypeVar("T")


class _Pool(NamedTuple):
    """Threads that wait for the same, and how long each may."""

    limiter: trio.CapacityLimiter
    timeout_s: float


class Waiting:
    """The threads of one mount, in which what would block the event loop is done."""

    def __init__(self) -> None:
        # Limits of their own, so that stalled reads do not delay `ls`.
        self._metadata = trio.CapacityLimiter(METADATA_THREADS)
        self._pools: Mapping[Limit, _Pool] = {
            Limit.DISK: _Pool(trio.CapacityLimiter(OTHER_THREADS), 120.0),
            Limit.WRITE: _Pool(trio.CapacityLimiter(OTHER_THREADS), 120.0),
            # Twice what one request to the server may take.
            Limit.EDIT: _Pool(trio.CapacityLimiter(OTHER_THREADS), 60.0),
            # Apart from writes, which many freezes of a slow store would hold up.
            Limit.FREEZE: _Pool(trio.CapacityLimiter(OTHER_THREADS), 25.0),
        }

    async def answer(self, ask: Callable[[], R]) -> R:
        """Return what `ask` returns, loading what it lacks."""
        try:
            return ask()  # nearly always; entering a cancel scope costs as much as a look-up
        except NotLoaded as missing:
            return await loaded(ask, missing, self._metadata)

    async def finish(self, steps: Steps[R]) -> R:
        """Return what steps return, making each of their calls in a thread."""
        try:
            step = next(steps)
        except StopIteration as ended:  # nearly always
            return cast("R", ended.value)
        return await self._go_on(steps, step)

    async def _go_on(self, steps: Steps[R], step: WouldBlock | Unloaded) -> R:
        with contextlib.closing(steps):
            try:
                while True:
                    try:
                        if isinstance(step, Unloaded):
                            result = await loaded(step.ask, step.missing, self._metadata)
                        else:
                            result = await self.in_thread(step.call, step.limit)
                    except trio.TooSlowError:
                        step = steps.throw(TookTooLong("took too long"))
                    except Exception as error:  # noqa: BLE001 - the steps' to handle
                        step = steps.throw(error)
                    else:
                        step = steps.send(result)
            except StopIteration as ended:
                return cast("R", ended.value)

    async def in_thread(self, call: Callable[[], R], limit: Limit) -> R:
        """Return what `call` returns; raises TooSlowError if it takes too long, and goes on."""
        limiter, timeout_s = self._pools[limit]
        with trio.fail_after(timeout_s):
            return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)

    async def read(self, item: OpenItem, offset: int, size: int, timeout_s: float) -> Buffer:
        """Return bytes of an item, of which some have to be fetched or looked for.

        Raises TooSlowError after `timeout_s`.
        """
        wanted = item.request_blocks(offset, size)
        is_here = not any(isinstance(entry, Future) for entry in wanted)
        if is_here and item.verification_pending() is None:
            # A cancel scope costs as much as the rest of a read.
            data = item.cut_nowait(cast("list[Block]", wanted), offset, size)
            if data is not None:
                return data
        try:
            with trio.fail_after(timeout_s):
                while True:
                    blocks = [
                        await result(entry) if isinstance(entry, Future) else entry
                        for entry in item.request_blocks(offset, size)
                    ]
                    pending = item.verification_pending()
                    if pending is None:
                        break
                    await result(pending)
                data = item.cut_nowait(blocks, offset, size)
                if data is None:
                    data = await self.in_thread(lambda: item.cut(blocks, offset, size), Limit.DISK)
                return data
        except trio.TooSlowError:
            # The kernel asks once more for what failed, and must not wait as long again.
            item.give_up(offset, size)
            raise


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
