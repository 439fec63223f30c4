"""One object's way from one S3 server to another, hashed on the way and checked there.

    up to PIECE_BYTES   one PUT, whose Content-MD5 the other side compares
    larger              a multipart upload, each part with its Content-MD5

The ETag that comes back is compared with the MD5 of what was sent, by the rule of S3. A
store that encrypts has other ETags: there the object is read back. Nothing appears under the
key before all bytes were right. Blocking; a thread an object.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from urllib3.exceptions import HTTPError

from dserverfs.base.errors import (
    DserverfsError,
    IntegrityError,
    NotFound,
    PermissionDenied,
    Unreachable,
)
from dserverfs.base.hashes import MD5, Hasher, Taker, known_hasher, new_md5
from dserverfs.base.printable import public_url
from dserverfs.base.retry import Deadline, Retries
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.signing import MAX_PARTS, MIB

PIECE_BYTES = 16 * MIB  # held in memory, by each of eight threads
PATIENCE_S = 120.0  # of a node that ends and comes back; a leader is elected in seconds
_ATTEMPTS = 50
_MD5 = re.compile(r"[0-9a-f]{32}\Z")
# What a copy has like its source, as GET names it and PUT takes it.
_HEADERS = (
    "CacheControl",
    "ContentDisposition",
    "ContentEncoding",
    "ContentLanguage",
    "ContentType",
    "Metadata",
)
_NO_RIGHT = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403"}
_GONE = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}


class Side(NamedTuple):
    """One of the two S3 servers."""

    store: ObjectStore
    bucket: str

    @property
    def name(self) -> str:
        return f"s3://{self.bucket} at {public_url(self.store.storage.endpoint)}"

    def require(self) -> None:
        """Raise Unreachable, PermissionDenied or NotFound unless it answers and has the bucket."""
        with self.reporting("the bucket"):
            self.store.client.head_bucket(Bucket=self.bucket)

    @contextmanager
    def reporting(self, what: str) -> Iterator[None]:
        """Turn errors of botocore into a DserverfsError; NotFound also for a missing bucket."""
        try:
            yield
        except ClientError as error:
            detail = error.response.get("Error", {})
            code, message = str(detail.get("Code")), detail.get("Message", "")
            said = f"{what}: {self.name} answers {code} {message}".rstrip()
            if code in _NO_RIGHT:
                raise PermissionDenied(f"{said}; give keys that may do this") from error
            if code in _GONE:
                raise NotFound(said) from error
            raise Unreachable(said) from error
        except (BotoCoreError, HTTPClientError, HTTPError, OSError) as error:
            raise Unreachable(f"{what}: {self.name} does not answer ({error})") from error


class Wanted(NamedTuple):
    """What an object has to be; what is None is not known."""

    size_in_bytes: int
    etag: str  # of the source
    hash_function: str | None = None
    hash: str | None = None  # of the manifest

    def is_plain(self) -> bool:
        """Return whether the source's ETag is an MD5; that of an object in parts is not."""
        return _MD5.match(self.etag) is not None


class Damaged(IntegrityError):
    """The object is not at the source what it has to be."""


class Gone(NotFound):
    """The object is at the source no longer."""


class Content(NamedTuple):
    """The content of an object that is being read."""

    size_in_bytes: int
    headers: Mapping[str, Any]
    body: Any  # botocore's StreamingBody


def copy(
    source: Side,
    target: Side,
    key: str,
    target_key: str,
    wanted: Wanted,
    *,
    prefix: str,
    so_far: Taker,
) -> str:
    """Copy an object; return the ETag that it has there. `prefix` goes before its content.

    Raises Damaged and Gone for the source's object alone; PermissionDenied, NotFound and
    Unreachable when the target takes nothing.
    """
    with _opened_here(source, key) as content:
        if content.size_in_bytes != wanted.size_in_bytes:
            raise Damaged(f"it has {content.size_in_bytes} bytes, not {wanted.size_in_bytes}")
        checked = _Checked(content, source, key, wanted, so_far)
        if content.size_in_bytes <= PIECE_BYTES:
            whole = checked.read(content.size_in_bytes)
            checked.require()
            return _put(target, target_key, prefix.encode() + whole, content.headers)
        return _put_parts(target, target_key, checked, content, wanted)


def require_same(
    source: Side,
    target: Side,
    key: str,
    target_key: str,
    wanted: Wanted,
    *,
    prefix: str,
    so_far: Taker,
) -> None:
    """Read the target's object, and raise IntegrityError unless it is what it has to be.

    An item has to have the manifest's hash; what has none is read at the source, too.
    """
    if wanted.hash is None:
        md5 = new_md5()
        md5.update(prefix.encode())
        with _opened_here(source, key) as content:
            checked = _Checked(content, source, key, wanted, md5)
            checked.drain()
            checked.require()
        found, right = digest_there(target, target_key, new_md5(), so_far), md5.hexdigest()
        size = wanted.size_in_bytes + len(prefix.encode())
    else:
        hasher = known_hasher(wanted.hash_function or "")
        found, right = digest_there(target, target_key, hasher, so_far), wanted.hash
        size = wanted.size_in_bytes
    if (found.size_in_bytes, found.digest) != (size, right):
        raise IntegrityError(
            f"{target.name} has {found.size_in_bytes} bytes with the hash {found.digest},"
            f" and not {size} bytes with {right}"
        )


def pieces(source: Side, key: str) -> Iterator[bytes]:
    """Yield the content of an object; raises Gone, and Damaged if it cannot be read."""
    with _opened_here(source, key) as content:
        wanted = Wanted(content.size_in_bytes, "")
        checked, left = _Checked(content, source, key, wanted), content.size_in_bytes
        while left:
            size = min(left, MIB)
            yield checked.read(size)
            left -= size


class Found(NamedTuple):
    size_in_bytes: int
    digest: str


def digest_there(side: Side, key: str, hasher: Hasher, so_far: Taker) -> Found:
    """Read a whole object; return its size and hash.

    Raises IntegrityError if it alone cannot be read, else Unreachable.
    """
    size = 0
    try:
        with _opened(side, key) as content, side.reporting(key):
            while piece := content.body.read(MIB):
                hasher.update(piece)
                so_far.update(piece)
                size += len(piece)
    except Unreachable as error:
        side.require()
        raise IntegrityError(f"it cannot be read: {error}") from error
    return Found(size, hasher.hexdigest())


class _Checked:
    """An object of the source that is read once from its begin to its end, and hashed."""

    def __init__(
        self, content: Content, source: Side, key: str, wanted: Wanted, *so_far: Taker
    ) -> None:
        self._body = content.body
        self._source = source
        self._key = key
        self._wanted = wanted
        self._left = content.size_in_bytes
        self._hasher = known_hasher(wanted.hash_function) if wanted.hash_function else new_md5()
        self._takers = (self._hasher, *so_far)

    def read(self, size_in_bytes: int) -> bytes:
        """Return the next so many bytes; raises Damaged if they do not come."""
        try:
            with self._source.reporting(self._key):
                piece: bytes = self._body.read(size_in_bytes)
        except Unreachable as error:
            self._source.require()
            raise Damaged(f"it cannot be read: {error}") from error
        if len(piece) != size_in_bytes:
            raise Damaged("it ends too early")
        for taker in self._takers:
            taker.update(piece)
        self._left -= size_in_bytes
        return piece

    def drain(self) -> None:
        while self._left:
            self.read(min(self._left, MIB))

    def require(self) -> str:
        """Return the hash of all that was read; raises Damaged unless it is what it has to be."""
        digest, wanted = self._hasher.hexdigest(), self._wanted
        right = wanted.hash if wanted.hash is not None else wanted.etag
        if (wanted.hash is not None or wanted.is_plain()) and digest != right:
            raise Damaged(f"its hash is {digest}, not {right}")
        return digest


@contextmanager
def _opened_here(source: Side, key: str) -> Iterator[Content]:
    """As `_opened`; raises Gone, Damaged if it alone cannot be read, else Unreachable."""
    with ExitStack() as stack:
        try:
            content = stack.enter_context(_opened(source, key))
        except NotFound as error:
            raise Gone(str(error)) from error
        except Unreachable as error:
            source.require()
            raise Damaged(f"it cannot be read: {error}") from error
        yield content


@contextmanager
def _opened(side: Side, key: str) -> Iterator[Content]:
    with side.reporting(key):
        answer = side.store.client.get_object(Bucket=side.bucket, Key=key)
    with answer["Body"] as body:
        headers = {name: answer[name] for name in _HEADERS if answer.get(name)}
        yield Content(answer["ContentLength"], headers, body)


def _put(target: Side, key: str, content: bytes, headers: Mapping[str, Any]) -> str:
    md5 = hashlib.md5(content, usedforsecurity=False)
    place = {"Bucket": target.bucket, "Key": key}

    def put() -> str:
        answer = target.store.client.put_object(
            **place, Body=content, ContentMD5=_base64(md5.digest()), **headers
        )
        return _etag(answer)

    etag = patiently(target, key, put)
    if etag != md5.hexdigest():
        _read_back(target, key, MD5, md5.hexdigest())
    return etag


def _put_parts(target: Side, key: str, checked: _Checked, content: Content, wanted: Wanted) -> str:
    client, place = target.store.client, {"Bucket": target.bucket, "Key": key}

    def begin() -> str:
        upload_id: str = client.create_multipart_upload(**place, **content.headers)["UploadId"]
        return upload_id

    upload_id = patiently(target, key, begin)
    of_upload = {**place, "UploadId": upload_id}
    digests, parts = [], []
    try:
        for number, size in enumerate(_part_sizes(content.size_in_bytes), 1):
            piece = checked.read(size)
            digest = hashlib.md5(piece, usedforsecurity=False).digest()

            def put(piece: bytes = piece, number: int = number, digest: bytes = digest) -> str:
                answer = client.upload_part(
                    **of_upload, PartNumber=number, Body=piece, ContentMD5=_base64(digest)
                )
                return _etag(answer)

            parts.append({"PartNumber": number, "ETag": f'"{patiently(target, key, put)}"'})
            digests.append(digest)
        whole = checked.require()
    except BaseException:
        with suppress(DserverfsError), target.reporting(key):
            client.abort_multipart_upload(**of_upload)
        raise

    def complete() -> str:
        try:
            return _etag(
                client.complete_multipart_upload(**of_upload, MultipartUpload={"Parts": parts})
            )
        except client.exceptions.NoSuchUpload:  # done, by an attempt whose answer was lost
            return _etag(client.head_object(**place))

    etag = patiently(target, key, complete)
    of_digests = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
    if etag != f"{of_digests}-{len(parts)}":
        _read_back(target, key, wanted.hash_function or MD5, whole)
    return etag


def _part_sizes(size_in_bytes: int) -> Iterator[int]:
    part = max(PIECE_BYTES, -(-size_in_bytes // MAX_PARTS))
    for begin in range(0, size_in_bytes, part):
        yield min(part, size_in_bytes - begin)


def _read_back(target: Side, key: str, hash_function: str, digest: str) -> None:
    """Raise Unreachable unless an object that was just written is what was sent."""
    found = digest_there(target, key, known_hasher(hash_function), new_md5())
    if found.digest != digest:
        raise Unreachable(f"{key}: {target.name} gives back other bytes than it was sent")


def patiently(side: Side, what: str, attempt: Callable[[], str]) -> str:
    """Return what `attempt` returns; repeat it while the store does not answer, for a while."""

    def reported(limit: Deadline) -> str:
        with side.reporting(what):
            return attempt()

    try:
        return Retries(Deadline(PATIENCE_S), what=what, attempts=_ATTEMPTS).run(reported)
    except Unreachable as error:
        raise Unreachable(
            f"{error}; tried for {PATIENCE_S:.0f} s: look at its log and at the free space of its"
            " disks, then run this again, which carries on"
        ) from error


def _etag(answer: Mapping[str, Any]) -> str:
    return str(answer["ETag"]).strip('"')


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
