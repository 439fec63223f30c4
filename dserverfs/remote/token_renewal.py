"""The renewal of a token that `login` has kept, before it ends.

Used by TokenSource, which asks for it whenever a token is used. Servers that renew tokens:

    POST /auth/refresh          {"token"} -> {"token"}; ours, which looks at the header as
                                well, and upstream's plugin-oauth2
    POST /auth/oauth2/refresh   a newer plugin-oauth2

All processes of the user share the file: one renews, the others find the new token in it.
A failure is no failure of the request that the token was wanted for, and is tried again
later. On disk: the old token or the new one.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

from dserverfs.base import locks
from dserverfs.base.errors import (
    DserverfsError,
    NotAuthenticated,
    NotFound,
    NotTheServer,
    PermissionDenied,
    ProtocolError,
    Unsupported,
)
from dserverfs.remote import login, tokens
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.trust import Trust

logger = logging.getLogger(__name__)

RENEW_TIMEOUT_S = 10.0  # a request waits for it
AGAIN_S = 600.0  # after a failure
WITHOUT_BEGINNING_S = 86400.0  # before the end, where the token does not say when it began
_ROUTES = ("/auth/refresh", "/auth/oauth2/refresh")


class Renewal:
    """Exchanges the token in a file; thread-safe."""

    def __init__(self, base_url: str, path: Path, trust: Trust) -> None:
        self._base_url = base_url
        self._path = path
        self._trust = trust
        self._lock = threading.Lock()
        self._not_before_s = -math.inf  # on the monotonic clock

    def __call__(self, token: str) -> None:
        """Have a later token in the file, if this one has half of its life behind it."""
        if not is_due(token, time.time()) or time.monotonic() < self._not_before_s:
            return
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._not_before_s = time.monotonic() + AGAIN_S
            self._renew(token)
        finally:
            self._lock.release()

    def _renew(self, token: str) -> None:
        try:
            fd = locks.open_lock(self._path.parent.with_name("renewal.lock"))
        except OSError as error:  # a home that cannot be written
            logger.debug("the token is not renewed: %s", error)
            return
        try:
            if locks.try_lock(fd) and self._path.read_text("ascii").strip() == token:
                later = self._later(token)
                if later is not None:
                    login.keep_token(self._path, later)
                    logger.info("the token in %s was renewed", self._path)
        except (OSError, UnicodeDecodeError, DserverfsError) as error:
            logger.info("the token in %s is not renewed: %s", self._path, error)
        finally:
            os.close(fd)

    def _later(self, token: str) -> str | None:
        """Return the server's next token for the same user; None if it gives none."""
        transport = ServerTransport(
            self._base_url, tokens.TokenSource(token, None), trust=self._trust
        )
        try:
            for route in _ROUTES:
                try:
                    answer = transport.request(
                        "POST",
                        route,
                        json={"token": token},
                        timeout_s=RENEW_TIMEOUT_S,
                        attempts=1,
                    ).json()
                except (NotFound, NotTheServer) as error:
                    if error.status not in (404, 405):  # of a proxy, it is no route either
                        raise
                    continue
                except (NotAuthenticated, PermissionDenied, ProtocolError, Unsupported) as error:
                    logger.debug("%s: %s", route, error)
                    break
                return _checked(answer, token)
        finally:
            transport.close()
        self._not_before_s = math.inf  # it does not renew this one
        return None


def is_due(token: str, now_s: float) -> bool:
    """Return whether a token that is good has half of its life behind it."""
    end_s, begun_s = tokens.expires_at(token), tokens.issued_at(token)
    if end_s is None or end_s <= now_s:
        return False
    if begun_s is None or begun_s >= end_s:
        return end_s - now_s < WITHOUT_BEGINNING_S
    return now_s > (begun_s + end_s) / 2


def _checked(answer: Any, token: str) -> str | None:
    """Return the token in an answer if it is a later one of the same user."""
    later = answer.get("token") if isinstance(answer, dict) else None
    if not isinstance(later, str):
        raise ProtocolError("the answer to POST /auth/refresh has no token")
    source = tokens.TokenSource(later, None)
    if source.subject() != tokens.TokenSource(token, None).subject():
        raise ProtocolError("the answer to POST /auth/refresh is a token of another user")
    is_later = (tokens.expires_at(later) or 0.0) > (tokens.expires_at(token) or math.inf)
    return later if is_later else None
