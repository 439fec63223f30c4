"""Locks that requests about one thing take turns by, in whatever process they are answered.

Needs an app context.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from flask import current_app

# What is locked; each with keys of its own.
UPLOAD = "upload"  # by uuid
ITEM = "item"  # of an upload in parts, by URI and identifier
BLOCK_HASHES = "block hashes"  # by URI
CHANGE = "change"  # of metadata, by URI
RIGHTS = "rights"  # users, base URIs and permissions

WAIT_S = 50.0  # of the 60 s for which clients wait, at least
_EXTENSION = "dserverfs_locks"


class Locks(Protocol):
    """What makes the locks of an app: a file, or a database that has locks."""

    def holding(self, name: str, wait_s: float) -> AbstractContextManager[None]:
        """Raises Busy, with status 503, if it is not free in time."""


def install(extensions: dict[str, Any], locks: Locks) -> None:
    """Give an app its locks, among its extensions."""
    extensions[_EXTENSION] = locks


@contextmanager
def holding(kind: str, key: str = "", *, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold a lock for as long as the block. Raises Busy if it is not free in time."""
    locks: Locks = current_app.extensions[_EXTENSION]
    with locks.holding(f"{kind} {key}".rstrip(), wait_s):
        yield
