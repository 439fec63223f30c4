"""Objects of a store, read and written by signed URLs.

Used by the reader (ranges of items), the resolver (small metadata objects) and the
uploader. Never sees a token, never logs a URL's query. GETs are urllib3's: its
read(1 MiB) takes 0.13 s of processor time for 512 MiB, libcurl 0.12-0.18 s. PUTs (`puts`)
and GETs of many small objects (`many_gets`) are spoken by hand, on connections from the
same place (`connections`).

Every call is one attempt (`retry` says when there is another) and blocks: no wait
on the network is longer than its deadline's `stall_s`, and the whole exchange ends
with the deadline however slowly it trickles. Thread-safe.
"""

from __future__ import annotations

import contextlib
import enum
import http.client
import re
from collections.abc import Callable, Iterator, Mapping
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
from dserverfs.remote.certificate_faults import certificate_fault
from dserverfs.remote.connections import Connections
from dserverfs.remote.dserver_http import USER_AGENT
from dserverfs.remote.error_answers import root_cause
from dserverfs.remote.many_gets import ManyGets
from dserverfs.remote.puts import FilePart, OnProgress, put
from dserverfs.remote.site_cache import SiteCache
from dserverfs.remote.trust import Trust

MAX_OBJECT_BYTES = 64 * 1024 * 1024
_HEADERS = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
_SMALL_BODY_BYTES = 4096
_SKIPPED_BYTES = 256 * 1024  # at a time
# Sizes of at most 64 bits: int() refuses thousands of digits.
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)\Z")
_TOTAL = re.compile(r"/(\d{1,19})\Z")
_LENGTH = re.compile(r"[0-9]{1,19}\Z")
# Answered with 400, by a store that got tired of waiting for the body.
_TRANSIENT_CODES = frozenset({"RequestTimeout", "IncompleteBody"})
_XML_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")


class Source(enum.Enum):
    """Where an object's bytes may come from."""

    NEAREST = enum.auto()  # a site cache, if there is one that works
    STORE = enum.auto()


class ByteRange(NamedTuple):
    """Bytes [start, start+length) of an item of `item_size` bytes."""

    start: int
    length: int
    item_size: int


class StoredObject(NamedTuple):
    """An object as its store describes it."""

    size_in_bytes: int
    etag: str  # of S3 often its MD5 in hex digits; "" if it says none


class _Answer(NamedTuple):
    """The answer to a GET, its body unread."""

    response: urllib3.BaseHTTPResponse
    limit: Deadline | None  # of the site cache that it is from


class Storage:
    """GETs and PUTs by signed URLs over kept connections."""

    def __init__(
        self,
        trust: Trust | None = None,
        *,
        connections: Connections | None = None,
        stall_timeout_s: float = STALL_S,
        site_cache: SiteCache | None = None,
    ) -> None:
        """A PUT may stall for `stall_timeout_s`; `trust` is for connections of its own.

        A site cache is asked first for ranges, which their readers compare.
        """
        self._connections = connections or Connections(trust)
        self._stall_timeout_s = stall_timeout_s
        self.site_cache = site_cache

    def behind(self, site_cache: SiteCache | None) -> Storage:
        """Return the same connections to the store, behind a site cache."""
        return Storage(
            connections=self._connections,
            stall_timeout_s=self._stall_timeout_s,
            site_cache=site_cache,
        )

    def many_gets(self) -> ManyGets:
        """Return a getter of many small objects over the same connections."""
        return ManyGets(self._connections, site_cache=self.site_cache)

    def read_object(self, url: str, deadline: Deadline) -> bytes:
        """Return a whole small object, of the store itself: nothing says what is right.

        Raises as `read_range` does.
        """
        response = self._get(url, {}, deadline, Source.STORE).response
        try:
            if response.status != 200:
                raise _refusal(response, url)
            _check_encoding(response, url)
            content = response.read(MAX_OBJECT_BYTES + 1)
            if len(content) > MAX_OBJECT_BYTES:
                raise ProtocolError(f"{public_url(url)}: larger than any metadata should be")
            if response.length_remaining:
                raise _ended_too_soon(url)
            return content
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            raise self._failure(error, url) from error
        finally:
            _give_back(response)

    def look(self, url: str, deadline: Deadline) -> StoredObject:
        """Return the object's size and ETag, by a GET of its first byte.

        A signed URL for GET allows no HEAD. Raises what `read_range` does.
        """
        response = self._get(url, {"Range": "bytes=0-0"}, deadline, Source.STORE).response
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
        source: Source = Source.NEAREST,
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
        answer = self._get(url, headers, deadline, source)
        response = answer.response
        try:
            if response.status not in (200, 206):
                raise _refusal(response, url)
            with self._reading(answer, url):
                _check_encoding(response, url)
                if response.status == 206:
                    _check_content_range(response, url, wanted)
                else:
                    _check_whole(response, url, wanted)
                    _skip(response, url, wanted.start)
            if "ETag" in response.headers:
                on_etag(response.headers["ETag"])
            remaining = wanted.length
            while remaining:
                with self._reading(answer, url):
                    block = _read(response, url, min(block_size, remaining))
                remaining -= len(block)
                on_block(block)
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            raise self._failure(error, url) from error
        finally:
            _give_back(response)

    def write(
        self,
        url: str,
        headers: Mapping[str, str],
        content: FilePart | bytes,
        on_progress: OnProgress,
    ) -> Mapping[str, str]:
        """PUT `content` with exactly the headers that the URL pins; return those of the answer.

        Raises StorageRefused (its `code` tells an expired URL from
        wrong content, which a pinned Content-MD5 shows), Unreachable,
        ProtocolError, ItemChanged if the file is shorter, and what `on_progress` raises.
        """
        try:
            answer = put(
                self._connections,
                url,
                headers,
                content,
                stall_timeout_s=self._stall_timeout_s,
                on_progress=on_progress,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _no_answer(error, url, "written to") from error
        except ValueError as error:
            raise ProtocolError(f"{public_url(url)}: {error}") from error
        head = answer.head
        if head.status not in (200, 201, 204):
            raise _refused(head.status, head.reason, answer.body, head.headers, url)
        if head.headers.get("Content-Type", "").startswith("text/html"):
            raise NotTheServer(f"{public_url(url)}: a page is answered, not by a store: a proxy's?")
        return head.headers

    def close(self) -> None:
        self._connections.close()

    def _get(
        self, url: str, headers: Mapping[str, str], deadline: Deadline, source: Source
    ) -> _Answer:
        """Return the answer to one GET, its body unread."""
        headers = {**_HEADERS, **headers}
        cache = self.site_cache if source is Source.NEAREST else None
        if cache is not None and (way := cache.way(url)) is not None:
            limit = cache.limit(deadline)
            response = cache.ask(way, headers, limit)
            if response is not None:
                return _Answer(response, limit)
        try:
            return _Answer(self._connections.request("GET", url, headers, deadline), None)
        except (urllib3.exceptions.HTTPError, OSError, UnicodeError) as error:
            raise _no_answer(error, url) from error

    @contextlib.contextmanager
    def _reading(self, answer: _Answer, url: str) -> Iterator[None]:
        """Have a site cache passed over whose answer cannot be read as it should be.

        Raises Unreachable then: the store is to be asked for the rest.
        """
        if answer.limit is None or self.site_cache is None:
            yield
            return
        try:
            yield
            answer.limit.restart()
        except (
            *(urllib3.exceptions.HTTPError, http.client.HTTPException),
            *(OSError, DserverfsError),
        ) as error:
            self.site_cache.broke_off(error)
            raise Unreachable(f"{public_url(url)}: not to be had of the site cache") from error

    def _failure(self, error: Exception, url: str) -> DserverfsError:
        """Return the error that a connection's failure means; the next attempt makes a new one."""
        self._connections.begin_anew(url)
        return _no_answer(error, url)


def _read(response: urllib3.BaseHTTPResponse, url: str, count: int) -> bytes:
    """Return exactly the next `count` bytes of the body; raises Unreachable if it ends before."""
    content = response.read(count)
    if len(content) < count:  # of a chunked one urllib3 does not say so
        raise _ended_too_soon(url)
    return content


def _skip(response: urllib3.BaseHTTPResponse, url: str, count: int) -> None:
    """Read over the first `count` bytes of an answer that ignored the range."""
    while count:
        count -= len(_read(response, url, min(count, _SKIPPED_BYTES)))


def _give_back(response: urllib3.BaseHTTPResponse) -> None:
    """Keep the connection if the body was read to its end, close it otherwise."""
    if response.closed:
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
    if isinstance(error.__cause__, http.client.IncompleteRead):
        return _ended_too_soon(url)
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # a timeout to urllib3
        return NotConnected(f"the store at {host} cannot be reached; is it running?")
    if isinstance(error, (urllib3.exceptions.TimeoutError, TimeoutError)):
        return Stalled(f"the store at {host} does not answer in time")
    if fault := certificate_fault(root_cause(error)):
        return ProtocolError(f"the store at {host}: its certificate is not accepted: {fault}")
    return Unreachable(f"the store at {host} cannot be {done}: {type(error).__name__}")


def _ended_too_soon(url: str) -> Unreachable:
    return Unreachable(f"{public_url(url)}: the body ended too soon")
