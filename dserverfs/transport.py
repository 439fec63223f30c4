"""HTTP calls to one dserver, with its token.

Owns connections, time limits, retries and the translation of what went wrong
into `dserverfs.errors`. Knows no route: those are the resolver's. Item bytes
go another way, `dserverfs.storage`, which never sees the token.

Every call blocks the calling thread, at most until its deadline. Thread-safe.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
import requests.adapters
import requests.auth

from dserverfs import __version__
from dserverfs.errors import (
    Conflict,
    DeadlineExceeded,
    DserverfsError,
    NotAuthenticated,
    NotFound,
    PermissionDenied,
    ProtocolError,
    Unreachable,
    UsageError,
)

logger = logging.getLogger(__name__)

METADATA_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
ATTEMPTS = 4
FIRST_BACKOFF_S = 0.2
# Of dserver's answers, those that say "not now" (503 with Retry-After, proxies' 502 and 504).
RETRIED_STATUSES = frozenset({429, 502, 503, 504})
USER_AGENT = f"dserverfs/{__version__}"


class Deadline:
    """A moment after which an operation must have ended, by CLOCK_MONOTONIC."""

    def __init__(self, timeout_s: float) -> None:
        self._end = time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        """Return the seconds left; raises DeadlineExceeded when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the time for the operation is over")
        return left


def backoff_s(attempt: int) -> float:
    """Return how long to wait after failed attempt number `attempt` (0, 1, ...), with jitter."""
    return FIRST_BACKOFF_S * 4.0**attempt * random.uniform(0.5, 1.5)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


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
            raise NotAuthenticated(
                "no token: set DSERVER_TOKEN or DSERVER_TOKEN_FILE, or get one from the dserver"
            )
        if not token.isascii() or not token.isprintable() or " " in token:
            raise NotAuthenticated(f"{self.describe()} is malformed: not one line of ASCII")
        return token

    def describe(self) -> str:
        """Return where the token came from, for messages."""
        return f"the token in {self._path}" if self._path else "the token in DSERVER_TOKEN"

    def _read_locked(self, path: Path) -> None:
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                self._token = path.read_text("ascii").strip()
                self._stamp = stamp
        except (OSError, UnicodeDecodeError) as error:
            raise NotAuthenticated(f"token file {path}: cannot be read: {error}") from error


class _BearerAuth(requests.auth.AuthBase):
    """Add the token; also keeps requests from taking credentials out of ~/.netrc."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._source.token()}"
        return request


class _NoAuth(requests.auth.AuthBase):
    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class ServerTransport:
    """Calls to one dserver."""

    def __init__(self, base_url: str, tokens: TokenSource, *, max_connections: int = 16) -> None:
        self.base_url = base_url.rstrip("/")
        self._tokens = tokens
        self._session = requests.Session()
        self._session.trust_env = False
        host = urllib.parse.urlsplit(self.base_url).hostname or ""
        if not is_loopback(host):
            self._session.proxies.update(urllib.request.getproxies())
        self._session.headers["User-Agent"] = USER_AGENT
        self._session.headers["Accept"] = "application/json"
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=max_connections)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        self._auth = _BearerAuth(tokens)

    def get(self, path: str, *, params: Mapping[str, Any] | None = None) -> requests.Response:
        return self.request("GET", path, params=params)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        timeout_s: float = METADATA_TIMEOUT_S,
        authenticated: bool = True,
        stream: bool = False,
    ) -> requests.Response:
        """Return the 2xx answer to an idempotent call; raises what the status means.

        Tried again, until `timeout_s` is over, when no connection could be made
        or the answer was one of RETRIED_STATUSES; once more, with the token read
        anew, after a refusal of the token.
        """
        deadline = Deadline(timeout_s)
        attempt = 0
        while True:
            try:
                response = self._session.request(
                    method,
                    f"{self.base_url}{path}",
                    params=params,
                    json=json,
                    auth=self._auth if authenticated else _NoAuth(),
                    timeout=(
                        min(CONNECT_TIMEOUT_S, deadline.remaining_s()),
                        deadline.remaining_s(),
                    ),
                    allow_redirects=False,
                    stream=stream,
                )
                failure: DserverfsError | None = self._failure(response, method, path)
                if failure is None:
                    return response
                retry_after_s = _retry_after_s(response)
                retried = response.status_code in RETRIED_STATUSES
                response.close()
            except requests.RequestException as error:
                failure = self._no_answer(error)
                retried = type(failure) is Unreachable
                retry_after_s = 0.0
            wait_s = max(backoff_s(attempt), retry_after_s)
            attempt += 1
            if not retried or attempt >= ATTEMPTS or not _sleep_within(deadline, wait_s):
                raise failure
            logger.debug("%s %s: attempt %d failed: %s", method, path, attempt, failure)

    def close(self) -> None:
        self._session.close()

    def _failure(
        self, response: requests.Response, method: str, path: str
    ) -> DserverfsError | None:
        status = response.status_code
        if 200 <= status < 300:
            return None
        said = _server_message(response)
        what = f"{method} {self.base_url}{path}: {status} {said}"
        # flask-jwt-extended: 422 with `msg` for a token it cannot parse, 401 for an expired one.
        if status == 401 or (status == 422 and _is_token_error(response)):
            return NotAuthenticated(
                f"{self.base_url} refuses {self._tokens.describe()}: {said}; get a new one",
                status=status,
            )
        if status == 403:
            return PermissionDenied(what, status=status)
        if status in (404, 405, 410):
            return NotFound(what, status=status)
        if status == 409:
            return Conflict(what, status=status)
        if status in RETRIED_STATUSES:
            return Unreachable(what, status=status)
        if "HTTP request was sent to HTTPS" in response.text:
            return UsageError(f"{self.base_url} speaks https: set DSERVER_PROTOCOL=https")
        return ProtocolError(what, status=status)

    def _no_answer(self, error: requests.RequestException) -> DserverfsError:
        if isinstance(error, requests.exceptions.SSLError):
            reason = _root_cause(error)
            if "WRONG_VERSION_NUMBER" in reason or "record layer failure" in reason.lower():
                return UsageError(
                    f"{self.base_url} does not speak https: set DSERVER_PROTOCOL=http"
                )
            return UsageError(f"{self.base_url}: its certificate is not accepted: {reason}")
        if isinstance(error, requests.exceptions.InvalidURL):
            return UsageError(f"{self.base_url}: {error}")
        if isinstance(error, requests.Timeout):
            hint = ""
            if self.base_url.startswith("https:"):
                hint = "; if it speaks plain http, set DSERVER_PROTOCOL=http"
            return DeadlineExceeded(f"{self.base_url} does not answer in time{hint}")
        return Unreachable(
            f"{self.base_url} cannot be reached: {_root_cause(error)}; is the server running there?"
        )


def _sleep_within(deadline: Deadline, wait_s: float) -> bool:
    try:
        if deadline.remaining_s() <= wait_s:
            return False
    except DeadlineExceeded:
        return False
    time.sleep(wait_s)
    return True


def _retry_after_s(response: requests.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("Retry-After", 0)))
    except ValueError:  # the date form; the backoff serves
        return 0.0


def _is_token_error(response: requests.Response) -> bool:
    try:
        data = response.json()
    except ValueError:
        return False
    return isinstance(data, dict) and "msg" in data


def _server_message(response: requests.Response) -> str:
    """Return what the server said, one short line, whichever of its forms it used."""
    try:
        data = response.json()
    except ValueError:
        return response.reason or "no reason given"
    if isinstance(data, dict):
        for key in ("msg", "message", "errors", "error", "status"):
            if data.get(key):
                return " ".join(str(data[key]).split())[:300]
    return response.reason or "no reason given"


def _root_cause(error: BaseException) -> str:
    """Return the innermost reason, without urllib3's object addresses and URLs."""
    seen: BaseException = error
    while True:
        inner = seen.__cause__ or seen.__context__
        reason = getattr(seen, "reason", None)
        if isinstance(reason, BaseException):
            inner = reason
        if inner is None:
            break
        seen = inner
    if isinstance(seen, OSError) and seen.strerror:
        return seen.strerror
    return " ".join(str(seen).split())[:200] or type(seen).__name__
