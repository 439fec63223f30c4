"""A system that has no more threads to give, as under a limit of processes."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

# What Thread.start calls, from Python 3.13 on and before.
_NAME = "_start_joinable_thread" if sys.version_info >= (3, 13) else "_start_new_thread"


@contextlib.contextmanager
def no_more_threads(allowed: int = 0) -> Iterator[None]:
    """Let so many more threads of this process begin; then CPython says what it says there."""
    left = [None] * allowed
    begin = getattr(threading, _NAME)

    def start(*arguments: Any, **options: Any) -> Any:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        return begin(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, _NAME, start)
        yield
