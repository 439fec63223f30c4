"""HTTP calls to one dserver, with its token.

Owns connections, time limits and the translation of what went wrong into
`dserverfs.base.errors`; `dserverfs.base.retry` says what of it is asked again. Knows no route:
those are the resolver's. Item bytes go another way, `dserverfs.remote.objects`, which
never sees the token.

Every call blocks the calling thread, at most until its deadline. Thread-safe.
"""

from __future__ import annotations

import contextlib
import http.client
import json as json_text
import logging
import re
import urllib.parse
from collections.abc import Callable, Generator, Mapping
from typing import Any

import urllib3

from dserverfs import __version__
from dserverfs.base.errors import (
    Busy,
    Conflict,
    DserverfsError,
    NotAuthenticated,
    NotConnected,
    NotFound,
    NotTheServer,
    PermissionDenied,
    ProtocolError,
    Stalled,
    Unreachable,
    Unsupported,
    UnusableAnswer,
    UsageError,
)
from dserverfs.base.limits import (
    MAX_ERROR_BYTES,
    MAX_METADATA_BYTES,
    MAX_SMALL_ANSWER_BYTES,
    parse_json,
)
from dserverfs.base.loopback import is_loopback
from dserverfs.base.printable import one_line, public_url
from dserverfs.base.retry import BUSY_STATUSES, Deadline, Retries, anything, retry_after_s
from dserverfs.remote import error_answers
from dserverfs.remote.answers import Answer
from dserverfs.remote.certificate_faults import certificate_fault
from dserverfs.remote.connections import Connections
from dserverfs.remote.contact import Contact
from dserverfs.remote.json_body import JsonBody
from dserverfs.remote.tokens import TokenSource
from dserverfs.remote.trust import Trust, proxy_for

logger = logging.getLogger(__name__)

METADATA_TIMEOUT_S = 30.0
# Of a dserver they say what it has and who may see it; of a proxy before it, nothing.
_ABOUT_WHAT_WAS_ASKED = frozenset({403, 404, 405, 410})
# What nginx, Apache, and servers in Go say to plain HTTP on their port for https.
_PLAIN_TO_TLS = re.compile(
    "HTTP request was sent to HTTPS|speaking plain HTTP to an SSL|HTTP request to an HTTPS server"
)
_PIECE_BYTES = 64 * 1024
USER_AGENT = f"dserverfs/{__version__}"
_HEADERS = {
    "User-Agent": USER_AGENT,
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
}
# By what JSON begins with: what it then ends with; numbers, true, false and null.
_ENDS = {b"{": b"}", b"[": b"]", b'"': b'"'}
_PARSED_BYTES = 1024 * 1024  # the caller parses it once more: 10 ms
_SCALARS = frozenset(bytes([letter]) for letter in b"-0123456789tfnNI")


class ServerTransport:
    """Calls to one dserver."""

    def __init__(
        self,
        base_url: str,
        tokens: TokenSource,
        *,
        trust: Trust | None = None,
        max_connections: int = 16,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.contact = Contact()
        self._tokens = tokens
        parts = urllib.parse.urlsplit(self.base_url)
        self._plain = parts.scheme == "http" and not is_loopback(parts.hostname or "")
        self._proxy = proxy_for(self.base_url)
        self._connections = Connections(trust, max_idle=max_connections)

    def subject(self) -> str | None:
        """Return whom the token is for, unchecked; raises NotAuthenticated if there is none."""
        return self._tokens.subject()

    def get(self, path: str, *, params: Mapping[str, Any] | None = None) -> Answer:
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
        attempts: int | None = None,
        repeatable: Callable[[DserverfsError], bool] = anything,
        max_bytes: int = MAX_SMALL_ANSWER_BYTES,
    ) -> Answer:
        """Return the 2xx answer to a call that can be repeated; raises what the status means.

        Tried again by the rules of `retry` until `timeout_s` is over, after the
        failures that are `repeatable`. Raises ProtocolError for an answer of more
        than `max_bytes`.
        """
        retries = Retries(
            Deadline(timeout_s),
            what=f"{method} {path}",
            attempts=attempts,
            repeatable=repeatable,
        )

        def attempt(limit: Deadline) -> Answer:
            response = self._answered(
                method,
                path,
                limit,
                params=params,
                json=json,
                authenticated=authenticated,
                max_bytes=max_bytes,
            )
            _require_json(response)
            return response

        return retries.run(attempt)

    def request_once(self, method: str, path: str, limit: Deadline, *, json: Any = None) -> Answer:
        """Return the 2xx answer to one call, which the caller repeats if that does no harm."""
        response = self._answered(method, path, limit, json=json)
        _require_json(response)
        return response

    def stream(self, path: str, limit: Deadline, body: JsonBody | None = None) -> Answer:
        """Return a 2xx answer to one GET, its body left to `read_pieces`, within `limit`.

        With `body`, to one POST of that.
        """
        method = "GET" if body is None else "POST"
        return self._answered(method, path, limit, body=body, max_bytes=None)

    def _answered(
        self,
        method: str,
        path: str,
        limit: Deadline,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        body: JsonBody | None = None,
        authenticated: bool = True,
        max_bytes: int | None = MAX_SMALL_ANSWER_BYTES,
    ) -> Answer:
        """Return the 2xx answer to one call; its body is unread without `max_bytes`.

        Asks once more if the token was replaced by then. Tells the contact how it went.
        """
        limit = self.contact.limit(limit)
        url = f"{self.base_url}{path}"
        if params:
            url += f"?{urllib.parse.urlencode(params)}"
        content = body if json is None else json_text.dumps(json, allow_nan=False).encode()
        refused: str | None = None
        while True:
            token = self._tokens.token() if authenticated else None
            self._warn_if_plain(token)
            try:
                response = self._asked(method, url, token, content, limit)
                if not 200 <= response.status < 300:
                    response.content = self._beginning(response, limit)
                elif max_bytes is not None:
                    pieces = self.read_pieces(response, limit, max_bytes=max_bytes)
                    response.content = b"".join(pieces)
            except DserverfsError as error:
                self.contact.failed(error)
                raise
            self.contact.answered()
            failure = self._failure(response, method, path, token)
            if failure is None:
                return response
            if not isinstance(failure, NotAuthenticated) or token is None or refused is not None:
                raise failure
            refused = token
            if not self._tokens.replaced(token):
                raise failure
            logger.debug("%s %s: asked again with another token", method, path)

    def _asked(
        self,
        method: str,
        url: str,
        token: str | None,
        content: JsonBody | bytes | None,
        limit: Deadline,
    ) -> Answer:
        """Return the answer to one request, its body unread."""
        headers = dict(_HEADERS)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if content is not None:
            headers["Content-Type"] = "application/json"
            headers["Content-Length"] = str(len(content))
        if isinstance(content, JsonBody):
            content.rewind()
        try:
            response = self._connections.request(method, url, headers, limit, body=content)
        except (urllib3.exceptions.HTTPError, OSError, UnicodeError) as error:
            raise self._no_answer(error) from error
        return Answer(url, response.status, response.reason or "", response.headers, b"", response)

    def read_pieces(
        self,
        response: Answer,
        deadline: Deadline,
        *,
        max_bytes: int,
    ) -> Generator[bytes, None, None]:
        """Yield the body as it arrives and close the response; bounded in size and time.

        `deadline` is that of the request, or shares its end. Raises Unreachable if it
        breaks off, DeadlineExceeded, and ProtocolError if it is larger than `max_bytes`.
        """
        total = 0
        body = response.body
        assert body is not None
        try:
            # Not `read`, which waits for a full piece however slowly it comes.
            while piece := body.read1(_PIECE_BYTES, decode_content=True):
                total += len(piece)
                if total > max_bytes:
                    raise ProtocolError(
                        f"{_where(response)}: the answer is larger than {max_bytes} bytes"
                    )
                yield piece
                deadline.remaining_s()
        except (urllib3.exceptions.TimeoutError, TimeoutError) as error:
            self._connections.begin_anew(response.url)
            raise Stalled(f"{_where(response)}: does not answer in time") from error
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            self._connections.begin_anew(response.url)
            raise Unreachable(f"{_where(response)}: the answer was cut off") from error
        finally:
            body.close()

    def _beginning(self, response: Answer, limit: Deadline) -> bytes:
        """Return the beginning of an error's body, which may say why."""
        body = b""
        with contextlib.closing(
            self.read_pieces(response, limit, max_bytes=MAX_METADATA_BYTES)
        ) as pieces:
            while len(body) < MAX_ERROR_BYTES and (piece := next(pieces, b"")):
                body += piece
        return body[:MAX_ERROR_BYTES]

    def close(self) -> None:
        self._connections.close()

    def _warn_if_plain(self, token: str | None) -> None:
        if token is not None and self._plain:
            self._plain = False
            logger.warning(
                "%s: the token is sent unencrypted; if the server speaks https, set"
                " DSERVER_PROTOCOL=https",
                self.base_url,
            )

    def _failure(
        self, response: Answer, method: str, path: str, token: str | None
    ) -> DserverfsError | None:
        status = response.status
        if 200 <= status < 300:
            return None
        if 300 <= status < 400:
            return self._redirected(response, path)
        said = error_answers.message_of(response)
        if token is not None:
            said = said.replace(token, "...")
        what = f"{method} {self.base_url}{path}: {status} {said}"
        # flask-jwt-extended: 422 with `msg` for a token it cannot parse, 401 for an expired one.
        if status == 401 or (status == 422 and error_answers.is_about_the_token(response)):
            if token is None:
                return NotAuthenticated(f"{what}, where no token was sent", status=status)
            return NotAuthenticated(
                f"{self.base_url} refuses {self._tokens.describe()}"
                f"{self._tokens.describe_claims()}: {said}; get a new one"
                + (
                    ""
                    if error_answers.is_about_the_token(response)
                    else ", if the server knows its user"
                ),
                status=status,
            )
        if status in _ABOUT_WHAT_WAS_ASKED and not error_answers.is_the_servers_own(response):
            return NotTheServer(f"{what}, not the server's own: a proxy's?", status=status)
        if status == 403:
            return PermissionDenied(what, status=status)
        if status in (404, 405, 410):
            return NotFound(what, status=status)
        if status == 409:
            return Conflict(what, status=status)
        if status == 501:
            return Unsupported(what, status=status)
        if status in BUSY_STATUSES:
            return Busy(what, status=status, retry_after_s=retry_after_s(response.headers))
        if _PLAIN_TO_TLS.search(response.text):
            return UsageError(f"{self.base_url} speaks https: set DSERVER_PROTOCOL=https")
        if status >= 500:
            return UnusableAnswer(what, status=status)
        return ProtocolError(what, status=status)

    def _redirected(self, response: Answer, path: str) -> DserverfsError:
        """Return the error that says where the server may be; no token is sent there."""
        here = urllib.parse.urlsplit(self.base_url)
        location = urllib.parse.urljoin(response.url, response.headers.get("Location", ""))
        there = urllib.parse.urlsplit(location)
        target = public_url(location)
        what = f"{self.base_url} answers {response.status}, look at {target}"
        asked = urllib.parse.unquote(path)
        elsewhere = location not in (response.url, "")
        hint = "is this a dserver, or a proxy that wants a login?"
        if elsewhere and urllib.parse.unquote(there.path).endswith(asked):
            base = target[: len(target) - len(path)] if target.endswith(path) else target
            hint = f"set DSERVER_URL_{here.netloc}={base}"
            if there.hostname == here.hostname and (here.scheme, there.scheme) == ("http", "https"):
                hint = "set DSERVER_PROTOCOL=https"
        return NotTheServer(f"{what}: {hint}", status=response.status)

    def _no_answer(self, error: Exception) -> DserverfsError:
        reason = error_answers.root_cause(error)
        if isinstance(error, urllib3.exceptions.SSLError):
            if "WRONG_VERSION_NUMBER" in reason or "record layer failure" in reason.lower():
                return UsageError(
                    f"{self.base_url} does not speak https: set DSERVER_PROTOCOL=http, or name it"
                    " as http://..."
                )
            if fault := certificate_fault(reason):
                return UsageError(f"{self.base_url}: its certificate is not accepted: {fault}")
        if isinstance(error, (urllib3.exceptions.LocationValueError, UnicodeError)):
            return UsageError(f"{self.base_url}: {one_line(str(error))}")
        way = ""
        if self._proxy is not None:
            way = f" by way of the proxy {self._proxy.rpartition('@')[2].rpartition('/')[2]}"
        is_new = isinstance(error, urllib3.exceptions.NewConnectionError)  # a timeout to urllib3
        if not is_new and isinstance(error, (urllib3.exceptions.TimeoutError, TimeoutError)):
            hint = ""
            if self.base_url.startswith("https:"):
                hint = "; if it speaks plain http, set DSERVER_PROTOCOL=http"
            return Stalled(f"{self.base_url} does not answer in time{way}{hint}")
        kind = NotConnected if is_new else Unreachable
        question = "is the server running there?"
        if not is_new and self.base_url.startswith("http:"):  # something listens
            question = "is a dserver there? If it speaks https, set DSERVER_PROTOCOL=https"
        return kind(f"{self.base_url} cannot be reached{way}: {reason}; {question}")


def _require_json(response: Answer) -> None:
    """Raise UnusableAnswer unless the body is JSON: it may be a proxy's page, or cut in half."""
    if response.content.strip() and not may_be_json(response.content):
        raise UnusableAnswer(f"{_where(response)}: the answer is not JSON; is this a dserver?")


def may_be_json(content: bytes) -> bool:
    """Return whether `content` is JSON; if it is large, whether it begins and ends like it."""
    if len(content) <= _PARSED_BYTES:
        try:
            parse_json(content, "the answer")
        except ProtocolError:
            return False
        return True
    content = content.strip()
    ends = _ENDS.get(content[:1])
    return content[:1] in _SCALARS if ends is None else content[-1:] == ends


def _where(response: Answer) -> str:
    return public_url(response.url)
