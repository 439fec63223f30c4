"""Limits of guessing passwords: wrong ones are counted, right ones are not.

    (user, address)  10 in 10 minutes
    address          100, for it can try one password with many names
    user             100, for there can be many addresses

Beyond a limit a guess is refused without a look at the password. Counted in the database, for
all processes and beyond a restart. A guess is entered before it is counted, so of several that
are made at once each sees the others. Of a name only its hash is kept: people type a password
there, too. There are no more rows than an hour has guesses, each of which costs 50 ms.

Needs an app context; commits.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

from dservercore.extensions import sql_db

from dserverfs.server.database import sql
from dserverfs.server.database.links import hash_of

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS dserverfs_guess (
        id TEXT PRIMARY KEY,
        user_hash TEXT NOT NULL,
        address TEXT NOT NULL,
        made_at REAL NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS dserverfs_guess_user ON dserverfs_guess (user_hash, made_at)",
    "CREATE INDEX IF NOT EXISTS dserverfs_guess_address ON dserverfs_guess (address, made_at)",
    "CREATE INDEX IF NOT EXISTS dserverfs_guess_made_at ON dserverfs_guess (made_at)",
)
WINDOW_S = 600.0
MAX_OF_PAIR = 10
MAX_OF_ONE = 100
# Longer than the window: the clock of another host may be behind.
_KEPT_S = 3600.0
_LIMITS = (
    ("user_hash = :user_hash AND address = :address", MAX_OF_PAIR),
    ("address = :address", MAX_OF_ONE),
    ("user_hash = :user_hash", MAX_OF_ONE),
)


class Guess(NamedTuple):
    wait_s: float  # for which it is refused; 0: it is made
    id: str = ""


class Guesses:
    """The wrong passwords of the last ten minutes."""

    def __init__(self, clock_s: Callable[[], float] = time.time) -> None:
        self._clock_s = clock_s

    def begin(self, username: str, address: str) -> Guess:
        """Return the guess, which counts as wrong for now, or for how long it is refused."""
        now = self._clock_s()
        who = {"user_hash": hash_of(username), "address": address}
        if wait_s := _wait_s(now, who):  # without a write, however many are refused
            return Guess(wait_s)
        guess = Guess(0.0, secrets.token_hex(16))
        sql.execute("DELETE FROM dserverfs_guess WHERE made_at < :end", end=now - _KEPT_S)
        sql.insert("dserverfs_guess", id=guess.id, made_at=now, **who)
        sql_db.session.commit()
        if wait_s := _wait_s(now, who, beside=guess.id):  # others were made at the same time
            self.was_right(guess)
            return Guess(wait_s)
        return guess

    def was_right(self, guess: Guess) -> None:
        """Do not count a guess that was begun."""
        sql.execute("DELETE FROM dserverfs_guess WHERE id = :id", id=guess.id)
        sql_db.session.commit()


def _wait_s(now: float, who: dict[str, str], *, beside: str = "") -> float:
    """Return until when as many others were made as a limit allows; 0 if not so many were.

    What was made later than now, by another host's clock, counts as made now.
    """
    wait_s = 0.0
    for condition, limit in _LIMITS:
        statement = (
            f"SELECT made_at FROM dserverfs_guess WHERE {condition} AND made_at > :start"
            " AND id <> :beside ORDER BY made_at DESC LIMIT 1 OFFSET :before"
        )
        start = now - WINDOW_S
        made_at = sql.value(statement, start=start, beside=beside, before=limit - 1, **who)
        if made_at is not None:
            wait_s = max(wait_s, min(float(made_at), now) - start)
    return wait_s
