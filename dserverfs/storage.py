"""Bytes from the object store, through signed URLs.

Used by the reader (ranges of items) and the resolver (small metadata objects).
Never sees a token, never logs a URL's query. urllib3's pool, on which requests
is built, because 5,000 GETs of 4 KiB take 3.0 s with requests and 1.6 s with it.

Every call blocks: no single wait on the network is longer than
STALL_TIMEOUT_S, and the whole call ends soon after its deadline. Thread-safe.
"""

from __future__ import annotations

import http.client
import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import BinaryIO, NamedTuple

import urllib3

from dserverfs.errors import (
    DeadlineExceeded,
    DserverfsError,
    IntegrityError,
    NotFound,
    ProtocolError,
    Unreachable,
)
from dserverfs.transport import CONNECT_TIMEOUT_S, USER_AGENT, Deadline

STALL_TIMEOUT_S = 30.0
# The deadline is looked at between pieces of this size; a guess, not measured.
PIECE_BYTES = 256 * 1024
MAX_OBJECT_BYTES = 64 * 1024 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z")
_XML_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")


class StorageRefused(DserverfsError):
    """The store answered 400, 401 or 403: the URL may have expired; resolve a new one, once."""


class ByteRange(NamedTuple):
    """Bytes [start, start+length) of an item of `item_size` bytes."""

    start: int
    length: int
    item_size: int


class Storage:
    """GETs on signed URLs over kept connections."""

    def __init__(self, *, max_connections: int = 32) -> None:
        self._pool = urllib3.PoolManager(
            num_pools=8,
            maxsize=max_connections,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=STALL_TIMEOUT_S),
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        )

    def read_object(self, url: str, deadline: Deadline) -> bytes:
        """Return a whole small object; raises as `read_range` does."""
        response = self._get(url, {})
        try:
            if response.status != 200:
                raise _refusal(response, url)
            _check_encoding(response, url)
            body = bytearray()
            while piece := response.read(PIECE_BYTES):
                body += piece
                if len(body) > MAX_OBJECT_BYTES:
                    raise ProtocolError(f"{_public(url)}: larger than any metadata should be")
                deadline.remaining_s()
            return bytes(body)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _no_answer(error, url) from error
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
        on_block: Callable[[bytearray], None],
    ) -> None:
        """Hand the wanted bytes to `on_block` in order, `block_size` at a time.

        The last block may be shorter; each is a buffer of its own that the
        receiver may keep. Before the first, `on_etag` gets the ETag of the object
        they are of, if the store names it, and may raise. `wanted` is not empty
        and lies within the item. With `etag`, the object must still be the one
        that had it. Raises StorageRefused, NotFound, Unreachable,
        DeadlineExceeded, or IntegrityError when the answer is not this range of
        an item of this size; blocks handed out before are right in length and
        place all the same.
        """
        headers = {"Range": f"bytes={wanted.start}-{wanted.start + wanted.length - 1}"}
        if etag is not None:
            headers["If-Match"] = etag
        response = self._get(url, headers)
        try:
            _check_encoding(response, url)
            if response.status == 206:
                _check_content_range(response, url, wanted)
            elif response.status == 200:
                _check_whole(response, url, wanted)
                _skip(response, wanted.start, url, deadline)
            else:
                raise _refusal(response, url)
            if "ETag" in response.headers:
                on_etag(response.headers["ETag"])
            remaining = wanted.length
            while remaining:
                block = bytearray(min(block_size, remaining))
                _read_fully(response, memoryview(block), url, deadline)
                remaining -= len(block)
                on_block(block)
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            raise _no_answer(error, url) from error
        finally:
            _give_back(response)

    def write_object(
        self, url: str, headers: Mapping[str, str], content: BinaryIO, size_in_bytes: int
    ) -> None:
        """PUT `content`, from its beginning, with exactly the headers that the URL pins.

        Streams, and tries once. Raises StorageRefused (expired URL; also wrong
        content, which a pinned Content-MD5 shows), Unreachable, ProtocolError.
        """
        content.seek(0)
        try:
            response = self._pool.request(
                "PUT",
                url,
                headers={
                    **headers,
                    "Content-Length": str(size_in_bytes),
                    "User-Agent": USER_AGENT,
                },
                body=content if size_in_bytes else b"",
                preload_content=False,
                redirect=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _no_answer(error, url) from error
        try:
            if response.status not in (200, 201, 204):
                raise _refusal(response, url)
            response.drain_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _no_answer(error, url) from error
        finally:
            _give_back(response)

    def close(self) -> None:
        self._pool.clear()

    def _get(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(
                "GET",
                url,
                headers={**self._pool.headers, **headers},
                preload_content=False,
                decode_content=False,
                redirect=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _no_answer(error, url) from error


def _public(url: str) -> str:
    """Return `url` without its signature."""
    return url.partition("?")[0]


def _read_fully(
    response: urllib3.BaseHTTPResponse, buffer: memoryview, url: str, deadline: Deadline
) -> None:
    # urllib3's own readinto copies every byte twice more; its _fp is http.client's
    # response, which reads into our buffer and, as no decoding was asked for, is all of the body.
    source: http.client.HTTPResponse = response._fp  # type: ignore[attr-defined]
    filled = 0
    while filled < len(buffer):
        deadline.remaining_s()
        count = source.readinto(buffer[filled : filled + PIECE_BYTES])
        if not count:
            raise Unreachable(f"{_public(url)}: the body ended too soon")
        filled += count


def _skip(response: urllib3.BaseHTTPResponse, count: int, url: str, deadline: Deadline) -> None:
    """Read over the first `count` bytes of an answer that ignored the range."""
    scratch = bytearray(min(count, PIECE_BYTES))
    while count:
        piece = memoryview(scratch)[: min(count, len(scratch))]
        _read_fully(response, piece, url, deadline)
        count -= len(piece)


def _give_back(response: urllib3.BaseHTTPResponse) -> None:
    """Keep the connection if the body was read to its end, close it otherwise."""
    source = response._fp  # type: ignore[attr-defined]
    if source is None or source.isclosed():
        response.release_conn()
    else:
        response.close()


def _check_encoding(response: urllib3.BaseHTTPResponse, url: str) -> None:
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "aws-chunked", ""):
        raise IntegrityError(
            f"{_public(url)}: sent with Content-Encoding {encoding}, not as stored"
        )


def _check_content_range(response: urllib3.BaseHTTPResponse, url: str, wanted: ByteRange) -> None:
    text = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.match(text)
    if match is None:
        raise IntegrityError(f"{_public(url)}: answered a range with Content-Range {text!r}")
    first, last, total = match.groups()
    if total not in ("*", str(wanted.item_size)):
        raise IntegrityError(
            f"{_public(url)}: has {total} bytes, the manifest says {wanted.item_size}"
        )
    if int(first) != wanted.start or int(last) != wanted.start + wanted.length - 1:
        raise IntegrityError(f"{_public(url)}: answered another range, {text}")


def _check_whole(response: urllib3.BaseHTTPResponse, url: str, wanted: ByteRange) -> None:
    length = response.headers.get("Content-Length")
    if length is not None and length != str(wanted.item_size):
        raise IntegrityError(
            f"{_public(url)}: has {length} bytes, the manifest says {wanted.item_size}"
        )


def _refusal(response: urllib3.BaseHTTPResponse, url: str) -> DserverfsError:
    """Return the error that an answer without the object means."""
    status = response.status
    body = response.read(4096)
    match = _XML_CODE.search(body)
    reason = match.group(1).decode("ascii") if match else (response.reason or "no reason given")
    what = f"{_public(url)}: the store answers {status} {reason}"
    if status in (400, 401, 403):
        return StorageRefused(what, status=status)
    if status in (404, 410):
        return NotFound(what, status=status)
    if status in (412, 416):
        return IntegrityError(f"{what}: it is not the object of the manifest", status=status)
    if status == 429 or status >= 500:
        return Unreachable(what, status=status)
    return ProtocolError(what, status=status)


def _no_answer(error: Exception, url: str) -> DserverfsError:
    host = urllib.parse.urlsplit(url).netloc
    if isinstance(error, (urllib3.exceptions.TimeoutError, TimeoutError)):
        return DeadlineExceeded(f"the store at {host} does not answer in time")
    return Unreachable(f"the store at {host} cannot be read: {type(error).__name__}")
