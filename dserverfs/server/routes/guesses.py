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
from sqlalchemy import delete, insert, select

from dserverfs.server.database.links import hash_of
from dserverfs.server.database.tables import guess as guess_table

WINDOW_S = 600.0
MAX_OF_PAIR = 10
MAX_OF_ONE = 100
# Longer than the window: the clock of another host may be behind.
_KEPT_S = 3600.0


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
        user_hash = hash_of(username)
        if wait_s := _wait_s(now, user_hash, address):  # without a write, however many are refused
            return Guess(wait_s)
        guess = Guess(0.0, secrets.token_hex(16))
        run = sql_db.session.execute
        run(delete(guess_table).where(guess_table.c.made_at < now - _KEPT_S))
        row = {"id": guess.id, "user_hash": user_hash, "address": address, "made_at": now}
        run(insert(guess_table).values(row))
        sql_db.session.commit()
        if wait_s := _wait_s(
            now, user_hash, address, beside=guess.id
        ):  # others were made at the same time
            self.was_right(guess)
            return Guess(wait_s)
        return guess

    def was_right(self, guess: Guess) -> None:
        """Do not count a guess that was begun."""
        sql_db.session.execute(delete(guess_table).where(guess_table.c.id == guess.id))
        sql_db.session.commit()


def _wait_s(now: float, user_hash: str, address: str, *, beside: str = "") -> float:
    """Return until when as many others were made as a limit allows; 0 if not so many were.

    What was made later than now, by another host's clock, counts as made now.
    """
    kept = guess_table.c
    by_user, at_address = kept.user_hash == user_hash, kept.address == address
    start = now - WINDOW_S
    wait_s = 0.0
    for conditions, limit in (
        ((by_user, at_address), MAX_OF_PAIR),
        ((at_address,), MAX_OF_ONE),
        ((by_user,), MAX_OF_ONE),
    ):
        others = (*conditions, kept.made_at > start, kept.id != beside)
        last = select(kept.made_at).where(*others).order_by(kept.made_at.desc())
        made_at = sql_db.session.execute(last.limit(1).offset(limit - 1)).scalar()
        if made_at is not None:
            wait_s = max(wait_s, min(float(made_at), now) - start)
    return wait_s
