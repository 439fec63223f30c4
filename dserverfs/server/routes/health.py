"""Routes that say whether the server is alive, and whether it can do its work.

    GET /health         -> {"status": "alive"}: this process answers; needs no token
    GET /health/ready   -> {"status": "ready"}, or 503 with {"status": "not ready", "failing"}

For /health/ready the database is asked, and each store, once a second at most. What does not
answer within CHECK_S is named in the log; in the answer to everybody as "database" or "store",
and to who sends the token of /metrics with the reason and the bucket, which others are not to
know.

    "failing": {"s3://lab": "the store does not answer (ConnectTimeoutError)"}, "warnings": [...]

A question that hangs is not asked a second time beside itself, so that nothing piles up. Safe to
share between threads; each process has its own.
"""

from __future__ import annotations

import email.utils
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, TimeoutError
from http import HTTPStatus
from typing import Any, NamedTuple

from dservercore.extensions import sql_db
from flask import Response
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from dserverfs.base.errors import DserverfsError
from dserverfs.server.routes import operator
from dserverfs.server.routes.answers import answer
from dserverfs.server.routes.routing import Asked
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.signing import bucket_of
from dserverfs.server.store.stores import Stores

CHECK_S = 3.0
MAX_SKEW_S = 60.0  # S3 refuses what is signed by a clock that is 15 minutes wrong
_KEPT_S = 1.0
DATABASE = "database"

_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """What does not work, by its name, and what may not work for long."""

    failing: Mapping[str, str]
    warnings: tuple[str, ...]


class Health:
    """The handlers of one app."""

    def __init__(self, stores: Stores, token: str) -> None:
        """`token` is the operator's, see `operator`."""
        self._stores = stores
        self._token = token
        self._lock = threading.Lock()
        self._asking: dict[str, Future[Any]] = {}
        self._found = Found({}, ())
        self._looked_s = float("-inf")

    def get_alive(self, asked: Asked) -> Mapping[str, Any]:
        """Say that this process answers."""
        return {"status": "alive"}

    def get_ready(self, asked: Asked) -> Response:
        """Say what does not work."""
        failing, warnings = self._look_again(sql_db.engine)
        status = HTTPStatus.SERVICE_UNAVAILABLE if failing else HTTPStatus.OK
        body: dict[str, Any] = {"status": "not ready" if failing else "ready"}
        if operator.is_asking(self._token):
            body |= {"failing": failing} if failing else {}
            body |= {"warnings": warnings} if warnings else {}
        elif failing:
            kinds = {name if name == DATABASE else "store" for name in failing}
            body["failing"] = sorted(kinds)
        return answer(body, status)

    def look(self, engine: Engine) -> Found:
        """Ask the database, and the stores of all base URIs that it has."""
        try:
            base_uris = self._ask(DATABASE, lambda: _base_uris(engine)).result(CHECK_S)
        except (TimeoutError, SQLAlchemyError, DserverfsError, OSError) as error:
            return Found({DATABASE: _reason(error)}, ())
        return self.look_at_stores(base_uris)

    def look_at_stores(self, base_uris: Iterable[str]) -> Found:
        """Ask each store for one bucket; a base URI without a store has nothing to ask."""
        end_s = time.monotonic() + CHECK_S
        failing, warnings = {}, []
        for name, question in [(name, self._ask(name, ask)) for name, ask in self._of(base_uris)]:
            try:
                skew_s = question.result(max(0.0, end_s - time.monotonic()))
            except (TimeoutError, DserverfsError) as error:
                failing[name] = _reason(error)
                continue
            if abs(skew_s) > MAX_SKEW_S:
                way = "ahead of" if skew_s > 0 else "behind"
                warnings.append(
                    f"the clock of this machine is {abs(skew_s):.0f} s {way} that of the store of"
                    f" {name}: let both follow a time server"
                )
        return Found(failing, tuple(warnings))

    def _look_again(self, engine: Engine) -> Found:
        """Return what `look` found last, if that was a moment ago; log what is new in it."""
        with self._lock:
            if time.monotonic() - self._looked_s < _KEPT_S:
                return self._found
        found = self.look(engine)
        with self._lock:
            before, self._found = self._found, found
            self._looked_s = time.monotonic()
        for name in found.failing.keys() - before.failing.keys():
            _log.warning("not ready: %s: %s", name, found.failing[name])
        for name in before.failing.keys() - found.failing.keys():
            _log.info("%s answers again", name)
        if bool(found.warnings) and not before.warnings:
            _log.warning("%s", found.warnings[0])
        return found

    def _of(self, base_uris: Iterable[str]) -> list[tuple[str, Callable[[], float]]]:
        """Return a question for each store, by the name of one base URI in it."""
        by_endpoint: dict[tuple[str, str], tuple[str, ObjectStore]] = {}
        for base_uri in base_uris:
            try:
                store = self._stores.of(base_uri)
            except DserverfsError:  # for no store, half of its settings: its users are told
                continue
            where = (store.storage.endpoint, store.storage.access_key)
            by_endpoint.setdefault(where, (base_uri, store))
        return [(name, _question(name, store)) for name, store in by_endpoint.values()]

    def _ask(self, name: str, call: Callable[[], Any]) -> Future[Any]:
        """Return the answer to come; of a question that still hangs, if it does."""
        with self._lock:
            asking = self._asking.get(name)
            if asking is not None and not asking.done():
                return asking
            self._asking[name] = asking = Future()
        threading.Thread(target=_fulfil, args=(asking, call), name="ready", daemon=True).start()
        return asking


def _fulfil(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        future.set_result(call())
    except Exception as error:  # noqa: BLE001  # top of a thread; raised where it is waited for
        future.set_exception(error)


def _base_uris(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        found = connection.execute(text("SELECT base_uri FROM base_uri ORDER BY base_uri"))
        return [str(row[0]) for row in found]


def _question(base_uri: str, store: ObjectStore) -> Callable[[], float]:
    def ask() -> float:
        """Return by how many seconds this machine's clock is ahead of the store's."""
        said = store.date(bucket_of(base_uri))
        try:
            date_s = email.utils.parsedate_to_datetime(said).timestamp()
        except (TypeError, ValueError):
            return 0.0
        return time.time() - date_s

    return ask


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {CHECK_S:g} s"
    if isinstance(error, SQLAlchemyError):
        cause = getattr(error, "orig", None) or error
        return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    return str(error)
