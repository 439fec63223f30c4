"""Bearer tokens: their sources, and the claims in them.

Used by the transport and the client. The claims of a token are read unchecked: only the
server can check them. Thread-safe.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dserverfs.base.errors import NotAuthenticated, ProtocolError
from dserverfs.base.limits import parse_json
from dserverfs.base.printable import one_line

# A token file replaced by other means than renaming is empty for a moment.
_EMPTY_FILE_WAIT_S = 0.2


class TokenSource:
    """The bearer token: a fixed one, or a file that is read again when it changes."""

    def __init__(self, token: str | None, path: Path | None) -> None:
        self._token = token
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._lock = threading.Lock()

    def token(self) -> str:
        """Return the token; raises NotAuthenticated if there is none or it cannot be sent."""
        with self._lock:
            if self._path is not None:
                self._read_locked(self._path)
            token = self._token
        if not token:
            if self._path is not None:
                raise NotAuthenticated(f"token file {self._path}: is empty; get a new token")
            raise NotAuthenticated(
                "no token: run dserverfs login, or set DSERVER_TOKEN or DSERVER_TOKEN_FILE"
            )
        if not token.isascii() or not token.isprintable() or " " in token:
            raise NotAuthenticated(f"{self.describe()} is malformed: not one line of ASCII")
        return token

    def replaced(self, refused: str) -> bool:
        """Return whether there is another token now than the one that was refused."""
        with self._lock:
            self._stamp = None
        return self.token() != refused

    def subject(self) -> str | None:
        """Return whom the token is for, unchecked; None if that cannot be told."""
        subject = _claims(self.token()).get("sub")
        return subject if isinstance(subject, str) else None

    def describe(self) -> str:
        """Return where the token came from, for messages."""
        return f"the token in {self._path}" if self._path else "the token in DSERVER_TOKEN"

    def describe_claims(self) -> str:
        """Return whose the token is and whether it has expired, for messages; may be empty."""
        claims = _claims(self._token or "")
        said = []
        if isinstance(claims.get("sub"), str):
            said.append(f"of user {one_line(claims['sub'])}")
        expiry = claims.get("exp")
        if isinstance(expiry, (int, float)) and 0 < expiry < min(time.time(), 1e11):
            moment = datetime.datetime.fromtimestamp(expiry, datetime.timezone.utc)
            said.append(f"expired {moment:%Y-%m-%d %H:%M} UTC")
        return f" ({', '.join(said)})" if said else ""

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


def expires_at(token: str) -> float | None:
    """Return when a token says it expires, unchecked, in epoch seconds; None if it does not."""
    expiry = _claims(token).get("exp")
    return float(expiry) if isinstance(expiry, (int, float)) and 0 < expiry < 1e11 else None


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
