"""Passwords of users, checked for all routes that take one, within the limits of guessing."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import NamedTuple

from flask import g, request

from dserverfs.base.limits import is_text
from dserverfs.server.database import passwords
from dserverfs.server.routes.guesses import Guesses


class Refusal(NamedTuple):
    status: HTTPStatus
    message: str
    wait_s: int = 0  # before another try


class Logins:
    """Those of one app; wrong guesses are counted with those of all processes."""

    def __init__(self) -> None:
        self._guesses = Guesses()

    def refusal(self, username: str, password: str) -> Refusal | None:
        """Return why the user who asks is not logged in; None if the password is right."""
        if not is_text(username + password):
            return Refusal(
                HTTPStatus.BAD_REQUEST, "username or password has text that UTF-8 cannot hold"
            )
        address = request.remote_addr or ""
        guess = self._guesses.begin(username, address)
        if wait_s := math.ceil(guess.wait_s):
            return Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"too many wrong passwords; try again in {wait_s} s",
                wait_s,
            )
        if not passwords.is_right(username, password):
            return Refusal(HTTPStatus.UNAUTHORIZED, "wrong username or password")
        self._guesses.was_right(guess)
        g.username = username  # for the access log
        return None
