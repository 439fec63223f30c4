"""The types of dtool and dserver: URIs, datasets, items, users.

A `dict` from JSON ends here. Pure: no I/O, no clock, no settings.
Everything here is immutable and may be shared between threads.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NewType

from dserverfs.base import limits
from dserverfs.base.errors import ProtocolError, UsageError
from dserverfs.base.limits import is_uuid, parse_timestamp, quoted

Identifier = NewType("Identifier", str)  # an item: SHA-1 of its relpath, 40 hex digits
# A dataset as dtool counts: lower case, with hyphens. A copy keeps it, so it names one dataset
# in one base URI only, and is no key of anything that several base URIs share.
UUID = NewType("UUID", str)
# A dataset among all of one server, as its store names it: "s3://bucket/<uuid>". What is kept
# of a dataset is kept by it; by the whole dserver URI where servers share a place.
BackendURI = NewType("BackendURI", str)

SCHEME = "dserver"

_SERVER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^/:@\[\]\s?#%]+)(:\d{1,5})?\Z")

# The letters that RFC 3986 lets stand in a path component.
_PLAIN = "-_.~!$&'()*+,=:@"


@dataclass(frozen=True)
class DserverURI:
    """`dserver://SERVER[/<backend>/<bucket>[/<prefix>...][/<uuid>]]`, or `.../<uuid>` alone.

    In its text the parts are percent-encoded where they have to be.
    """

    server: str  # HOST or HOST:PORT
    base_uri: str | None = None  # the backend's own, "s3://bucket"
    uuid: UUID | None = None

    @classmethod
    def parse(cls, text: str) -> DserverURI:
        """Return the parts of `text`; raises UsageError with the expected form."""
        scheme, separator, rest = text.partition("://")
        if not separator or scheme != SCHEME:
            raise UsageError(
                f"{text}: not a dserver URI; expected dserver://HOST[:PORT][/s3/BUCKET][/UUID]"
            )
        server, *parts = rest.rstrip("/").split("/")
        if not _SERVER.match(server):
            raise UsageError(f"{text}: {server!r} is not HOST or HOST:PORT")
        parts = [_decoded(part, text) for part in parts]
        if any(not part or part in (".", "..") for part in parts):
            raise UsageError(f"{text}: has an empty or relative component")
        uuid = UUID(parts.pop().lower()) if parts and is_uuid(parts[-1].lower()) else None
        if not parts:
            return cls(server, None, uuid)
        if len(parts) == 1:
            raise UsageError(
                f"{text}: names a backend without a bucket; expected dserver://HOST[:PORT]/s3/BUCKET"
            )
        return cls(server, f"{parts[0]}://{'/'.join(parts[1:])}", uuid)

    def __str__(self) -> str:
        return self._text

    @functools.cached_property  # a part of the key of each of a million items
    def _text(self) -> str:
        parts = [f"{SCHEME}://{self.server}"]
        if self.base_uri is not None:
            parts += [urllib.parse.quote(part, _PLAIN) for part in split_base_uri(self.base_uri)]
        if self.uuid is not None:
            parts.append(self.uuid)
        return "/".join(parts)


def split_base_uri(base_uri: str) -> list[str]:
    """Return [backend, bucket, *prefix] of a backend's base URI such as `s3://bucket`."""
    backend, separator, rest = base_uri.partition("://")
    parts = [backend, *rest.split("/")]
    if not separator or not all(parts):
        raise ProtocolError(f"{base_uri}: not of the form backend://bucket", uri=base_uri)
    return parts


def is_below(base_uri: str, other: str | None) -> bool:
    """Return whether `base_uri` is `other` or in it; None has all."""
    return other is None or base_uri == other or base_uri.startswith(f"{other}/")


def _decoded(part: str, text: str) -> str:
    """Return a component of the URI `text` without its percent-encoding."""
    try:
        part.encode("utf-8")  # an argument of a command may be any bytes
        decoded = urllib.parse.unquote(part, errors="strict")
    except UnicodeError as error:
        raise UsageError(f"{text}: {part!r} is not percent-encoded UTF-8") from error
    if "/" in decoded or "\0" in decoded:
        raise UsageError(f"{text}: {part!r} is not one component of a path")
    return decoded


def identifier_of(relpath: str) -> Identifier:
    """Return dtool's identifier of the item with this relpath."""
    return Identifier(hashlib.sha1(relpath.encode("utf-8")).hexdigest())


def path_of_entry(directory: str, name: str) -> str:
    """Return the path of an entry of a directory in a dataset, whose top is ""."""
    return f"{directory}/{name}" if directory else name


@dataclass(frozen=True)
class Dataset:
    """A frozen dataset, as listings tell of it."""

    uuid: UUID
    uri: BackendURI
    base_uri: str
    name: str
    creator_username: str
    created_at: float  # epoch seconds
    frozen_at: float  # epoch seconds
    number_of_items: int | None
    size_in_bytes: int | None

    @classmethod
    def from_json(cls, data: Any) -> Dataset:
        entry = _mapping(data, "a dataset")
        uri = _text(entry, "uri")
        uuid = _text(entry, "uuid")
        if not is_uuid(uuid.lower()):
            raise ProtocolError(f"{uri}: listed with {quoted(uuid)}, which is no uuid", uri=uri)
        frozen_at = parse_timestamp(entry.get("frozen_at"))
        created_at = entry.get("created_at")
        return cls(
            uuid=UUID(uuid.lower()),
            uri=BackendURI(uri),
            base_uri=_text(entry, "base_uri"),
            name=_text(entry, "name"),
            creator_username=_text(entry, "creator_username"),
            created_at=frozen_at if created_at is None else parse_timestamp(created_at),
            frozen_at=frozen_at,
            number_of_items=_optional(entry, "number_of_items", limits.count_is_usable),
            size_in_bytes=_optional(entry, "size_in_bytes", limits.size_is_usable),
        )


@dataclass(frozen=True)
class Item:
    """One file of a frozen dataset, as its manifest describes it."""

    identifier: Identifier
    relpath: str
    size_in_bytes: int
    hash: str
    mtime_ns: int  # the manifest's utc_timestamp, as it is shown

    @classmethod
    def from_json(cls, identifier: str, data: Any) -> Item:
        entry = _mapping(data, f"item {identifier}")
        size, digest = entry.get("size_in_bytes"), entry.get("hash")
        if not isinstance(size, int) or not limits.size_is_usable(size):
            raise ProtocolError(f"item {identifier} has {quoted(size)} for its size_in_bytes")
        if not isinstance(digest, str) or not limits.hash_is_usable(digest):
            raise ProtocolError(f"item {identifier} has {quoted(digest)} for its hash")
        return cls(
            identifier=Identifier(identifier),
            relpath=_text(entry, "relpath"),
            size_in_bytes=size,
            hash=digest.lower(),
            mtime_ns=mtime_ns_of(parse_timestamp(entry.get("utc_timestamp", 0.0))),
        )


@dataclass(frozen=True)
class User:
    """The user of a token, and where that user may look and register (GET /me)."""

    username: str
    is_admin: bool
    search_base_uris: tuple[str, ...]
    register_base_uris: tuple[str, ...]

    @classmethod
    def from_json(cls, data: Any) -> User:
        entry = _mapping(data, "the answer of /me")
        return cls(
            username=_text(entry, "username"),
            is_admin=entry.get("is_admin") is True,
            search_base_uris=_texts(entry, "search_permissions_on_base_uris"),
            register_base_uris=_texts(entry, "register_permissions_on_base_uris"),
        )


def mtime_ns_of(utc_timestamp: float) -> int:
    """Return a manifest's date as the time of a file, from which the same date is made again.

    Whole microseconds, as floats have them, where these are the date; the time of a
    file that dtool froze elsewhere has nanoseconds.
    """
    return limits.shown_ns(nanoseconds_of(utc_timestamp))


def nanoseconds_of(utc_timestamp: float) -> int:
    """Return the same as `mtime_ns_of`, for a date that is known to be shown as it is."""
    whole_us = round(utc_timestamp * 1_000_000) * 1000
    if seconds_of(whole_us) == utc_timestamp:
        return whole_us
    # In two parts, each exact: as one, a float has steps of 256 ns.
    seconds = math.floor(utc_timestamp)
    return seconds * 1_000_000_000 + round((utc_timestamp - seconds) * 1e9)


def seconds_of(mtime_ns: int) -> float:
    """Return a file's time as a manifest's date."""
    return mtime_ns / 1_000_000_000  # by an integer: by 1e9 it would be rounded twice


def _mapping(data: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ProtocolError(f"{what} is not a JSON object but {type(data).__name__}")
    return data


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not limits.is_text(value):
        raise ProtocolError(f"{key} is not a string but {quoted(value)}")
    return value


def _texts(entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = entry.get(key, [])
    if not isinstance(values, list) or not all(limits.is_text(value) for value in values):
        raise ProtocolError(f"{key} is not a list of strings")
    return tuple(values)


def _optional(
    entry: Mapping[str, Any], key: str, is_usable: Callable[[object], bool]
) -> int | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or not is_usable(value):
        raise ProtocolError(f"{key} is {quoted(value)}, which it cannot be")
    return value
