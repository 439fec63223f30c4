"""Progress of a task over many items: the one form in which hashing and uploads report it.

Its fields are those of a mount's answers as well. Bytes go back when an item has to be
sent again. Reports come from the threads of the task, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias


class Progress(NamedTuple):
    bytes_done: int
    bytes_total: int
    items_done: int
    items_total: int


OnProgress: TypeAlias = Callable[[Progress], None]


def unwatched(progress: Progress) -> None:
    """Ignore the progress; for tasks that are not watched."""
