"""Bytes from the object store, through signed URLs.

Used by the reader (ranges of items) and the resolver (small metadata objects).
Never sees a token, never logs a URL's query. urllib3's pool, on which requests
is built, because 5,000 GETs of 4 KiB take 3.0 s with requests and 1.6 s with it.

Every call is one attempt (`retry` says when there is another) and blocks: no wait
on the network is longer than its deadline's `stall_s`, and the whole exchange ends
with the deadline however slowly it trickles. Thread-safe.
"""

from __future__ import annotations

import http.client
import re
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from typing import NamedTuple

import urllib3

from dserverfs.base.errors import (
    Busy,
    DserverfsError,
    Garbled,
    IntegrityError,
    NotConnected,
    NotStored,
    NotTheServer,
    ProtocolError,
    Stalled,
    StorageRefused,
    Unreachable,
)
from dserverfs.base.printable import one_line, public_url
from dserverfs.base.retry import BUSY_STATUSES, STALL_S, Deadline, retry_after_s
from dserverfs.remote.body import PIECE_BYTES, Body
from dserverfs.remote.bounded_sockets import CONNECT_TIMEOUT_S, within
from dserverfs.remote.dserver_http import USER_AGENT
from dserverfs.remote.outgoing import FilePart, Line, Pulse, Way, open_way
from dserverfs.remote.trust import Trust, pool_manager, proxy_for

MAX_OBJECT_BYTES = 64 * 1024 * 1024
_SMALL_BODY_BYTES = 4096
# Sizes of at most 64 bits: int() refuses thousands of digits.
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)\Z")
_TOTAL = re.compile(r"/(\d{1,19})\Z")
_LENGTH = re.compile(r"[0-9]{1,19}\Z")
# Answered with 400, by a store that got tired of waiting for the body.
_TRANSIENT_CODES = frozenset({"RequestTimeout", "IncompleteBody"})
_XML_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")


class ByteRange(NamedTuple):
    """Bytes [start, start+length) of an item of `item_size` bytes."""

    start: int
    length: int
    item_size: int


class StoredObject(NamedTuple):
    """What a store says of an object."""

    size_in_bytes: int
    etag: str  # of S3 often its MD5 in hex digits; "" if it says none


class Storage:
    """GETs on signed URLs over kept connections."""

    def __init__(
        self,
        trust: Trust | None = None,
        *,
        max_connections: int = 32,
        stall_timeout_s: float = STALL_S,
    ) -> None:
        """Of each host at most `max_connections` are kept while idle; a PUT may stall so long."""
        self._stall_timeout_s = stall_timeout_s
        self._trust = trust or Trust()
        self._max_connections = max_connections
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, str | None], urllib3.PoolManager] = {}  # by scheme, proxy
        self._proxies: dict[str, str | None] = {}  # by scheme and host

    def read_object(self, url: str, deadline: Deadline) -> bytes:
        """Return a whole small object; raises as `read_range` does."""
        response = self._get(url, {}, deadline)
        try:
            if response.status != 200:
                raise _refusal(response, url)
            _check_encoding(response, url)
            body = Body(response, deadline)
            content = bytearray()
            while piece := body.read_some(PIECE_BYTES):
                content += piece
                if len(content) > MAX_OBJECT_BYTES:
                    raise ProtocolError(f"{public_url(url)}: larger than any metadata should be")
            promised = response.headers.get("Content-Length")
            if promised is not None and promised != str(len(content)):
                raise Unreachable(f"{public_url(url)}: the body ended too soon")
            body.finish()
            return bytes(content)
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            raise self._failure(error, url) from error
        finally:
            _give_back(response)

    def look(self, url: str, deadline: Deadline) -> StoredObject:
        """Return what the object is, by asking for its first byte; raises as `read_range` does.

        A signed URL for GET allows no HEAD.
        """
        response = self._get(url, {"Range": "bytes=0-0"}, deadline)
        etag = response.headers.get("ETag", "").strip('"').lower()
        try:
            # Of an empty object no byte can be asked for: 416.
            match = _TOTAL.search(response.headers.get("Content-Range", ""))
            if response.status in (206, 416) and match is not None:
                response.read(_SMALL_BODY_BYTES)  # read to its end, the connection is kept
                return StoredObject(int(match.group(1)), etag)
            if response.status == 416:
                return StoredObject(0, etag)
            if response.status != 200:
                raise _refusal(response, url)
            _check_encoding(response, url)
            length = response.headers.get("Content-Length", "")
            if _LENGTH.match(length) is None:
                raise ProtocolError(f"{public_url(url)}: the store does not say how large it is")
            return StoredObject(int(length), etag)
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            raise self._failure(error, url) from error
        finally:
            _give_back(response)

    def read_range(
        self,
        url: str,
        wanted: ByteRange,
        *,
        block_size: int,
        etag: str | None,
        deadline: Deadline,
        on_etag: Callable[[str], None],
        on_block: Callable[[bytes], None],
    ) -> None:
        """Hand the wanted bytes to `on_block` in order, `block_size` at a time.

        The last block may be shorter. Before the first, `on_etag` gets the ETag of the object
        they are of, if the store names it, and may raise. `wanted` is not empty
        and lies within the item. With `etag`, the object must still be the one
        that had it. Raises StorageRefused, NotStored, Unreachable,
        DeadlineExceeded, or IntegrityError when the answer is not this range of
        an item of this size; blocks handed out before are right in length and
        place all the same.
        """
        headers = {"Range": f"bytes={wanted.start}-{wanted.start + wanted.length - 1}"}
        if etag is not None:
            headers["If-Match"] = etag
        response = self._get(url, headers, deadline)
        try:
            if response.status not in (200, 206):
                raise _refusal(response, url)
            _check_encoding(response, url)
            if response.status == 206:
                _check_content_range(response, url, wanted)
            else:
                _check_whole(response, url, wanted)
            body = Body(response, deadline)
            if response.status == 200:
                _skip(body, wanted.start)
            if "ETag" in response.headers:
                on_etag(response.headers["ETag"])
            remaining = wanted.length
            while remaining:
                block = body.read(min(block_size, remaining))
                remaining -= len(block)
                on_block(block)
            body.finish()
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            raise self._failure(error, url) from error
        finally:
            _give_back(response)

    def line(self) -> Line:
        """Return a connection of one's own for PUTs; it is not counted among the kept ones."""
        return Line(self._connect, USER_AGENT, stall_timeout_s=self._stall_timeout_s)

    def write(
        self,
        line: Line,
        url: str,
        headers: Mapping[str, str],
        content: FilePart | bytes,
        pulse: Pulse,
    ) -> Mapping[str, str]:
        """PUT `content` with exactly the headers that the URL pins; return those of the answer.

        Raises StorageRefused (its `code` tells an expired URL from
        wrong content, which a pinned Content-MD5 shows), Unreachable,
        ProtocolError, ItemChanged if the file is shorter, and what `pulse` raises.
        """
        try:
            answer = line.put(url, headers, content, pulse)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _no_answer(error, url, "written to") from error
        except ValueError as error:
            raise ProtocolError(f"{public_url(url)}: {error}") from error
        if answer.status not in (200, 201, 204):
            raise _refused(answer.status, answer.reason, answer.body, answer.headers, url)
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise NotTheServer(f"{public_url(url)}: a page is answered, not by a store: a proxy's?")
        return answer.headers

    def _connect(self, url: str) -> Way:
        pool = self._pool(url)
        return open_way(pool, url, CONNECT_TIMEOUT_S)

    def close(self) -> None:
        with self._lock:
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.clear()

    def _pool(self, url: str) -> urllib3.PoolManager:
        """Return the connections by which `url` is reached."""
        parts = urllib.parse.urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        with self._lock:
            if origin not in self._proxies:
                self._proxies[origin] = proxy_for(origin)
            proxy = self._proxies[origin]
            pool = self._pools.get((parts.scheme, proxy))
            if pool is None:
                pool = self._pools[parts.scheme, proxy] = pool_manager(
                    self._trust, origin, proxy, num_pools=8, maxsize=self._max_connections
                )
        return pool

    def _get(
        self, url: str, headers: dict[str, str], deadline: Deadline
    ) -> urllib3.BaseHTTPResponse:
        """Return the answer to one GET, its body unread."""
        pool = self._pool(url)
        try:
            with within(deadline):
                return pool.request(
                    "GET",
                    url,
                    headers={
                        "User-Agent": USER_AGENT,
                        "Accept-Encoding": "identity",
                        **headers,
                    },
                    preload_content=False,
                    decode_content=False,
                    redirect=False,
                    retries=False,
                    timeout=deadline.wait_s(),
                )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._failure(error, url) from error

    def _failure(self, error: Exception, url: str) -> DserverfsError:
        """Return what a connection's failure means; the next attempt makes a new one.

        urllib3 sees a kept connection that was closed before it is used, but not one
        that closes while we ask, or whose other end has forgotten it; and the
        others that are kept may be as old.
        """
        self._pool(url).clear()  # those in use are not hurt
        return _no_answer(error, url)


def _skip(body: Body, count: int) -> None:
    """Read over the first `count` bytes of an answer that ignored the range."""
    while count:
        piece = min(count, PIECE_BYTES)
        body.read(piece)
        count -= piece


def _give_back(response: urllib3.BaseHTTPResponse) -> None:
    """Keep the connection if the body was read to its end, close it otherwise."""
    source = response._fp  # type: ignore[attr-defined]
    if source is None or (source.isclosed() and not source.length):
        response.release_conn()
    else:
        response.close()


def _check_encoding(response: urllib3.BaseHTTPResponse, url: str) -> None:
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "aws-chunked", ""):
        raise Garbled(f"{public_url(url)}: sent with Content-Encoding {encoding}, not as stored")


def _check_content_range(response: urllib3.BaseHTTPResponse, url: str, wanted: ByteRange) -> None:
    text = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.match(text)
    if match is None:
        raise Garbled(f"{public_url(url)}: answered a range with Content-Range {text!r}")
    first, last, total = match.groups()
    if total not in ("*", str(wanted.item_size)):
        raise Garbled(f"{public_url(url)}: has {total} bytes, the manifest says {wanted.item_size}")
    if int(first) != wanted.start or int(last) != wanted.start + wanted.length - 1:
        raise Garbled(f"{public_url(url)}: answered another range, {text}")


def _check_whole(response: urllib3.BaseHTTPResponse, url: str, wanted: ByteRange) -> None:
    length = response.headers.get("Content-Length")
    if length is not None and length != str(wanted.item_size):
        raise Garbled(
            f"{public_url(url)}: has {length} bytes, the manifest says {wanted.item_size}"
        )


def _refusal(response: urllib3.BaseHTTPResponse, url: str) -> DserverfsError:
    """Return the error that an answer without the object means."""
    return _refused(
        response.status,
        response.reason or "",
        response.read(_SMALL_BODY_BYTES),
        response.headers,
        url,
    )


def _refused(
    status: int, phrase: str, body: bytes, headers: Mapping[str, str], url: str
) -> DserverfsError:
    match = _XML_CODE.search(body)
    reason = match.group(1).decode("ascii") if match else one_line(phrase) or "no reason given"
    what = f"{public_url(url)}: the store answers {status} {reason}"
    if reason == "RequestTimeTooSkewed":
        what += ": the URL has expired, or the clocks of dserver and store differ"
    if status in (400, 401, 403) and reason not in _TRANSIENT_CODES:
        return StorageRefused(what, status=status, code=reason)
    if status in (404, 410):
        # Without a code of a store it is a proxy's: nothing is known of the object.
        return (NotStored if match else NotTheServer)(what, status=status)
    if status in (412, 416):
        return IntegrityError(f"{what}: it is not the object of the manifest", status=status)
    if status in BUSY_STATUSES or status >= 500 or reason in _TRANSIENT_CODES:
        return Busy(what, status=status, retry_after_s=retry_after_s(headers))
    if 300 <= status < 400:
        there = public_url(headers.get("Location", ""))
        return NotTheServer(f"{what}, and points to {there or 'nowhere'}", status=status)
    return ProtocolError(what, status=status)


def _no_answer(error: Exception, url: str, done: str = "read") -> DserverfsError:
    host = public_url(url).partition("://")[2].partition("/")[0]
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # a timeout to urllib3
        return NotConnected(f"the store at {host} cannot be reached; is it running?")
    if isinstance(error, (urllib3.exceptions.TimeoutError, TimeoutError)):
        return Stalled(f"the store at {host} does not answer in time")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return ProtocolError(
            f"the store at {host}: its certificate is not accepted;"
            " a certificate authority of your own is named by DSERVER_CA_FILE"
        )
    return Unreachable(f"the store at {host} cannot be {done}: {type(error).__name__}")
