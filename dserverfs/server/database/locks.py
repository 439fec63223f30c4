"""Locks that requests about one thing take turns by, in all servers of one database.

With SQLite these are the processes of one machine, by a file of the data directory. With
PostgreSQL it is any process on any host, by its advisory locks. Needs an app context.

    holding             for as long as a block, over any number of transactions
    holding_if_free     the same, without a wait
    hold_until_commit   for the rest of the session's transaction

A lock of PostgreSQL belongs to a connection: it ends with the process, with the host (by
TCP's keepalive, after 25 s), and with the database. `Held.require` says whether it still
does; ask before what must not be done without it. The connections of locks are not those of
sessions: who waits for a lock keeps nobody from the connection that it needs to let it go.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flask import current_app
from sqlalchemy import Connection, Engine, bindparam, func, select, text, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from dserverfs.base.errors import Busy
from dserverfs.server.database import sql
from dserverfs.server.database.file_locks import FileLocks
from dserverfs.server.database.tables import POSTGRESQL, change

# What is locked; each with keys of its own.
UPLOAD = "upload"  # by uuid
ITEM = "item"  # of an upload in parts, by URI and identifier
BLOCK_HASHES = "block hashes"  # by URI
CHANGE = "change"  # of metadata, by URI
DATASET = "dataset"  # its rows, by URI
RIGHTS = "rights"  # users, base URIs and permissions

WAIT_S = 50.0  # of the 60 s for which clients wait, at least
_RETRY_AFTER_S = 5.0
_EXTENSION = "dserverfs_locks"
_LOCK_TIMEOUT = "55P03"


class Held:
    """A lock that is held."""

    def __init__(self, connection: Connection | None) -> None:
        self._connection = connection

    def require(self) -> None:
        """Raise Busy if the lock was lost with its connection."""
        if self._connection is None:
            return
        try:
            self._connection.execute(text("SELECT 1"))
        except SQLAlchemyError as error:
            raise Busy(
                "the connection to the database was lost; try again", retry_after_s=_RETRY_AFTER_S
            ) from error


class Locks:
    """The locks of one app: of PostgreSQL, by connections with autocommit, or of a file."""

    def __init__(self, elsewhere: Engine | FileLocks) -> None:
        self._elsewhere = elsewhere
        self._here = KeyedLocks()

    @contextmanager
    def holding(self, name: str, wait_s: float) -> Iterator[Held]:
        """Raises Busy if it is not free in time."""
        end_s = time.monotonic() + wait_s
        # Of the threads of a process one at a time waits elsewhere for a lock.
        with self._here.holding(name, wait_s):
            wait_s = max(0.0, end_s - time.monotonic())
            if isinstance(self._elsewhere, FileLocks):
                with self._elsewhere.holding(name, wait_s):
                    yield Held(None)
                return
            with self._elsewhere.connect() as connection:
                try:
                    _acquire(connection, name, wait_s)
                    yield Held(connection)
                finally:
                    _release(connection, name)

    def dispose(self) -> None:
        if isinstance(self._elsewhere, Engine):
            self._elsewhere.dispose()


def install(extensions: dict[str, Any], locks: Locks) -> None:
    """Give an app its locks, among its extensions."""
    extensions[_EXTENSION] = locks


def of(extensions: Mapping[str, Any]) -> Locks:
    """Return the locks of an app, out of its extensions."""
    found: Locks = extensions[_EXTENSION]
    return found


@contextmanager
def holding(kind: str, key: str = "", *, wait_s: float = WAIT_S) -> Iterator[Held]:
    """Hold a lock for as long as the block. Raises Busy if it is not free in time."""
    with of(current_app.extensions).holding(_name(kind, key), wait_s) as held:
        yield held


@contextmanager
def holding_if_free(kind: str, key: str = "") -> Iterator[bool]:
    """Hold a lock that nobody has; give whether it is held."""
    try:
        lock = holding(kind, key, wait_s=0.0)
        lock.__enter__()
    except Busy:
        yield False
        return
    try:
        yield True
    finally:
        lock.__exit__(None, None, None)


def hold_until_commit(kind: str, key: str = "") -> None:
    """Hold a lock until the session's transaction ends; waits as long as the database says."""
    if sql.dialect_name() == POSTGRESQL:
        sql.execute(select(func.pg_advisory_xact_lock(number_of(_name(kind, key)))))
    else:
        # SQLite has one writer at a time: from here on it is this transaction.
        sql.execute(update(change).where(change.c.uri == "").values(unsure=change.c.unsure))


def number_of(name: str) -> int:
    """Return the number by which PostgreSQL knows a lock: 64 bits, with a sign."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _name(kind: str, key: str) -> str:
    return f"{kind} {key}"


def _acquire(connection: Connection, name: str, wait_s: float) -> None:
    number = number_of(name)
    if connection.scalar(select(func.pg_try_advisory_lock(number))):
        return
    if wait_s > 0:
        milliseconds = str(int(wait_s * 1000))
        connection.execute(_SET_TIMEOUT, {"value": milliseconds})
        try:
            connection.execute(select(func.pg_advisory_lock(number)))
            return
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_TIMEOUT:
                raise
    raise _busy(name)


def _release(connection: Connection, name: str) -> None:
    """Let go, if it is held; a connection that may still have it is closed, which lets it go."""
    try:
        released = connection.scalar(select(func.pg_advisory_unlock(number_of(name))))
    except SQLAlchemyError:
        released = False
    if not released:
        connection.invalidate()


_SET_TIMEOUT = text("SELECT set_config('lock_timeout', :value, false)").bindparams(
    bindparam("value")
)


def _busy(name: str) -> Busy:
    kind, _, key = name.rpartition(" ")
    return Busy(
        f"another request is at work on {kind} {key}".rstrip() + "; try again",
        retry_after_s=_RETRY_AFTER_S,
    )


class KeyedLocks:
    """A lock for each key that is in use: threads of this process take turns."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        # With the number of those that want it.
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def holding(self, key: str, wait_s: float) -> Iterator[None]:
        """Raises Busy if it is not free in time."""
        with self._guard:
            lock, wanted = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = (lock, wanted + 1)
        try:
            if not lock.acquire(timeout=wait_s):
                raise _busy(key)
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._guard:
                lock, wanted = self._locks[key]
                if wanted == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = (lock, wanted - 1)
