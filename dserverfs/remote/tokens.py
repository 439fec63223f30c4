"""Bearer tokens: their sources, and the claims in them.

Used by the transport and the client. The claims of a token are read unchecked: only the
server can check them. Thread-safe.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dserverfs.base.errors import NotAuthenticated, ProtocolError
from dserverfs.base.limits import parse_json
from dserverfs.base.printable import one_line
from dserverfs.remote.token_command import token_of

logger = logging.getLogger(__name__)

COMMAND_MARGIN_S = 60.0
COMMAND_PAUSE_S = 10.0  # between two runs, lest each of many requests starts one
LAST_S = 86400.0
# A token file replaced by other means than renaming is empty for a moment.
_EMPTY_FILE_WAIT_S = 0.2


class TokenSource:
    """The bearer token: a fixed one, a file that is read again when it changes, or a command.

    `renew` is called with a token of the file that is about to be used; it may put a later one
    into the file. `tell_end` is called with where the token is, and the token that is used. A
    command is run when its token ends within COMMAND_MARGIN_S or is refused. `why_none` says why
    there is none, where something else is wrong than that nothing is set.
    """

    def __init__(
        self,
        token: str | None,
        path: Path | None,
        *,
        command: Sequence[str] | None = None,
        renew: Callable[[str], None] | None = None,
        tell_end: Callable[[str, str], None] | None = None,
        why_none: str | None = None,
    ) -> None:
        self._token = token
        self._path = path
        self._command = command
        self._renew = renew
        self._tell_end = tell_end
        self._why_none = why_none
        self._stamp: tuple[int, int, int] | None = None
        self._not_before_s = -math.inf  # when the command may be run, on the monotonic clock
        self._failure: str | None = None  # of its last run
        self._lock = threading.Lock()

    def token(self) -> str:
        """Return the token; raises NotAuthenticated if there is none or it cannot be sent."""
        token = self._current()
        if self._renew is not None:
            self._renew(token)
            token = self._current()
        if self._tell_end is not None:
            self._tell_end(self.describe(), token)
        return token

    def _current(self) -> str:
        with self._lock:
            if self._path is not None:
                self._read_locked(self._path)
            elif self._command is not None:
                self._run_locked(self._command)
            token = self._token
        if not token:
            if self._path is not None:
                raise NotAuthenticated(f"token file {self._path}: is empty; get a new token")
            raise NotAuthenticated(
                self._why_none
                or "no token: run dserverfs login, or set DSERVER_TOKEN or DSERVER_TOKEN_FILE"
            )
        if not token.isascii() or not token.isprintable() or " " in token:
            raise NotAuthenticated(f"{self.describe()} is malformed: not one line of ASCII")
        return token

    def replaced(self, refused: str) -> bool:
        """Return whether there is another token now than the one that was refused."""
        with self._lock:
            self._stamp = None
            if self._command is not None and self._token == refused and self._may_run_locked():
                self._token = None
        return self.token() != refused

    def subject(self) -> str | None:
        """Return whom the token is for, unchecked; None if that cannot be told."""
        subject = _claims(self.token()).get("sub")
        return subject if isinstance(subject, str) else None

    def describe(self) -> str:
        """Return where the token came from, for messages."""
        if self._command is not None:
            return "the token of DSERVER_TOKEN_COMMAND"
        return f"the token in {self._path}" if self._path else "the token in DSERVER_TOKEN"

    def describe_claims(self) -> str:
        """Return whose the token is and whether it has expired, for messages; may be empty."""
        claims = _claims(self._token or "")
        said = []
        if isinstance(claims.get("sub"), str):
            said.append(f"of user {one_line(claims['sub'])}")
        expiry = _moment(claims, "exp")
        if expiry is not None and expiry < time.time():
            said.append(f"expired {_date(expiry)}")
        return f" ({', '.join(said)})" if said else ""

    def _may_run_locked(self) -> bool:
        return time.monotonic() >= self._not_before_s

    def _run_locked(self, command: Sequence[str]) -> None:
        """Have a token of the command that is good for a while; raises NotAuthenticated."""
        end_s = math.inf if self._token is None else expires_at(self._token) or math.inf
        if self._token is not None and end_s - time.time() > COMMAND_MARGIN_S:
            return
        if self._may_run_locked():
            try:
                self._token, self._failure = token_of(command), None
                return
            except NotAuthenticated as error:
                self._failure = str(error)
            finally:
                self._not_before_s = time.monotonic() + COMMAND_PAUSE_S
        if self._failure is not None and (self._token is None or end_s <= time.time()):
            raise NotAuthenticated(self._failure)

    def _read_locked(self, path: Path) -> None:
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._stamp:
                return
            token = path.read_text("ascii").strip()
            if not token:
                time.sleep(_EMPTY_FILE_WAIT_S)
                status = path.stat()
                stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
                token = path.read_text("ascii").strip()
            self._token = token
            self._stamp = stamp
        except (OSError, UnicodeDecodeError) as error:
            raise NotAuthenticated(f"token file {path}: cannot be read: {error}") from error


class LastDay:
    """Says once that the last day of a token has begun, or the last quarter of a short one."""

    def __init__(self) -> None:
        self._is_told = False

    def __call__(self, where: str, token: str) -> None:
        end_s, begun_s = expires_at(token), issued_at(token)
        if self._is_told or end_s is None:
            return
        left_s = end_s - time.time()
        life_s = math.inf if begun_s is None else end_s - begun_s
        if 0 < left_s < min(LAST_S, life_s / 4):
            self._is_told = True
            logger.warning("%s ends %s: get a new one", where, _date(end_s))


def expires_at(token: str) -> float | None:
    """Return when a token says it expires, unchecked, in epoch seconds; None if it does not."""
    return _moment(_claims(token), "exp")


def issued_at(token: str) -> float | None:
    """Return when a token says it was made, unchecked, in epoch seconds; None if it does not."""
    return _moment(_claims(token), "iat")


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    moment = claims.get(name)
    return float(moment) if isinstance(moment, (int, float)) and 0 < moment < 1e11 else None


def _date(moment_s: float) -> str:
    moment = datetime.datetime.fromtimestamp(moment_s, datetime.timezone.utc)
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _claims(token: str) -> Mapping[str, Any]:
    """Return what a JWT says, unchecked; nothing if it is none."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        text = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = parse_json(text, "the token")
    except (binascii.Error, ValueError, ProtocolError):
        return {}
    return claims if isinstance(claims, dict) else {}
