"""What a failure of the database means: in one line, without statement and values."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

RETRY_AFTER_S = 5
_LOG_AGAIN_S = 60.0
# By PostgreSQL's SQLSTATE, or the first two letters of it.
_BY_STATE = {
    "25006": "is read-only",
    "53": "is out of disk, memory or connections",
    "55P03": "is busy: another request has what this one needs",
    "57014": "took too long",
    "40": "is busy: two requests were in each other's way",
    "42501": "refuses: a right is missing",
    "42P01": "lacks a table: it is not the one that this server began with",
}
_BY_SQLITE_TEXT = {
    "readonly": "is read-only",
    "full": "is out of disk",
    "locked": "is busy: another request has what this one needs",
}

_log = logging.getLogger(__name__)


def meaning(error: SQLAlchemyError) -> str:
    """Return what is wrong with the database, as the end of a sentence that begins with it."""
    if isinstance(error, PoolTimeoutError):
        return "is busy: all connections to it are in use"
    original = error.orig if isinstance(error, DBAPIError) else None
    state = getattr(original, "sqlstate", None) or ""
    for key in (state, state[:2]):
        if key in _BY_STATE:
            return _BY_STATE[key]
    for word, words in _BY_SQLITE_TEXT.items():
        if original is not None and not state and word in str(original):
            return words
    return "does not answer"


class TroubleLog:
    """Logs each kind of trouble once a minute, however many requests have it."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._logged_s: dict[str, float] = {}

    def tell(self, error: SQLAlchemyError) -> None:
        what = meaning(error)
        now_s = self._clock_s()
        with self._lock:
            logged_s = self._logged_s.get(what)
            if logged_s is not None and now_s - logged_s < _LOG_AGAIN_S:
                return
            self._logged_s[what] = now_s
        original = error.orig if isinstance(error, DBAPIError) else error
        said = " ".join(str(original).split())
        _log.warning("the database %s; requests are answered with 503: %s", what, said)
