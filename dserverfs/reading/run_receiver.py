"""What is fetched of an item's run, on its way to those who wait for its blocks.

Used by the reader, with itself as `takes`. For one thread.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from dserverfs.base.items import ItemContent
from dserverfs.base.retry import Deadline
from dserverfs.reading.cache.blocks import Block
from dserverfs.reading.ranges import Outdated, Unwanted

Waiting = list[tuple[int, Future[Block]]]  # block indices, ascending


class Takes(Protocol):
    """Who hands blocks out: the reader."""

    def times_dropped(self, content: ItemContent) -> int:
        """Return how often the item's bytes turned out wrong."""

    def leave_unwanted(self, content: ItemContent, waiting: Waiting) -> bool:
        """Take off `waiting` what was dropped since it was asked for; return whether any was."""

    def take(
        self,
        content: ItemContent,
        waiting: Waiting,
        data: bytes,
        dropped: int,
        deadline: Deadline,
    ) -> None:
        """Settle the first of `waiting` with what was fetched, and take it off."""


class RunReceiver:
    """Gives the blocks of a run to those who wait for them."""

    def __init__(
        self, takes: Takes, content: ItemContent, waiting: Waiting, deadline: Deadline
    ) -> None:
        self._takes = takes
        self._content = content
        self._waiting = waiting
        self._deadline = deadline
        self._dropped = 0

    def begin(self) -> None:
        self._dropped = self._takes.times_dropped(self._content)

    def check(self) -> None:
        if self._takes.times_dropped(self._content) != self._dropped:
            raise Outdated

    def receive(self, index: int, data: bytes) -> None:
        self._leave_unwanted()
        self._takes.take(self._content, self._waiting, data, self._dropped, self._deadline)
        self._leave_unwanted()

    def _leave_unwanted(self) -> None:
        if self._takes.leave_unwanted(self._content, self._waiting):
            raise Unwanted
