"""A system that has no more threads to give, as under a limit of processes."""

from __future__ import annotations

import _thread
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def no_more_threads(allowed: int = 0) -> Iterator[None]:
    """Let so many more threads of this process begin; then CPython says what it says there."""
    left = [None] * allowed

    def start(*arguments: Any, **options: Any) -> Any:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        return _thread.start_new_thread(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "_start_new_thread", start)
        yield
