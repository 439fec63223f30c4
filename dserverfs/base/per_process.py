"""Values that a process makes once for each key, closes at its end, and never inherits.

Used by the doors that programs enter by import: they have no moment at which everything is to
be closed, and they may fork. A child begins without: connections, threads and locks are its
parent's. Thread-safe.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

from dserverfs.base.errors import Cancelled


class Closable(Protocol):
    """Something that holds threads or connections."""

    def close(self) -> None:
        """Let them go."""


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Closable)

_is_ending = False
_all: weakref.WeakSet[PerProcess[Any, Any]] = weakref.WeakSet()


class PerProcess(Generic[K, V]):
    """Values by key; made when first asked for."""

    def __init__(self, make: Callable[[K], V]) -> None:
        """`make` is called with the key while others wait: it should send no request."""
        self._make = make
        self._lock = threading.Lock()
        self._values: dict[K, V] = {}
        _all.add(self)

    def get(self, key: K) -> V:
        """Return the value of `key`; raises what making it raises, and Cancelled at the end."""
        with self._lock:
            if _is_ending:  # no thread begins any more
                raise Cancelled("the process is ending: nothing more is read or written")
            if key not in self._values:
                self._values[key] = self._make(key)
            return self._values[key]

    def close(self) -> None:
        """Close all values; those that are asked for later are made anew."""
        with self._lock:
            values = list(self._values.values())
            self._values.clear()
        for value in values:
            value.close()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._values.clear()


def _end() -> None:
    global _is_ending
    _is_ending = True
    for values in list(_all):
        values.close()


def _forget_all() -> None:
    for values in list(_all):
        values._forget()


# Before Python waits for the threads of executors, which it does before it calls atexit's
# functions: a fetch ahead, or an upload after Ctrl-C, must not delay the end.
getattr(threading, "_register_atexit", atexit.register)(_end)
os.register_at_fork(after_in_child=_forget_all)
