"""Limits of input: names, paths, identifiers, dates, sizes, counts, answers.

Used by client, broker and server for all input of other programs: answers of a
server, manifests, local files of dtool, requests. Each limit names the rule it
comes from. A value beyond a limit is refused alone and visibly. Each kind of value has a
limit, or a small answer could take all memory. Pure; imports errors only.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import json
import re
import typing
import urllib.parse
from collections.abc import Iterator
from typing import Any, TypeVar

from dserverfs.base.errors import ProtocolError

T = TypeVar("T")

# dtoolcore.utils.name_is_valid: the characters and the length of a dataset's name, and of
# an overlay's, an annotation's and a tag's.
MAX_NAME_LENGTH = 80
_NAME = re.compile(r"[0-9a-zA-Z\-_.]+\Z")
# RFC 9562, in the lower case that dtoolcore writes.
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
# dtoolcore.utils.generate_identifier: a SHA-1 in hexadecimal.
_IDENTIFIER = re.compile(r"[0-9a-f]{40}\Z")

MAX_HASH_LENGTH = 128  # SHA-512 in hexadecimal; dtool knows MD5, SHA-1 and SHA-256

# Of URIs, users and other texts of one line. RFC 9110 has servers take URIs of 8,000 octets.
MAX_TEXT_LENGTH = 8000

MAX_COMPONENT_BYTES = 255  # NAME_MAX of Linux
MAX_RELPATH_BYTES = 4095  # PATH_MAX of Linux, less its NUL: no program can name a longer one
# dtool-s3 keeps the relpath, in base64, in 2 KB of metadata beside the hash.
MAX_STORED_RELPATH_BYTES = 1400
# Python's os.walk and shutil.copytree call themselves for each directory, 1,000 times at
# most; half of that is left to their callers and to the directories above.
MAX_RELPATH_COMPONENTS = 500

# The years 1 to 9999, all that ISO 8601 and Python's datetime have: dservers write dates by it.
FIRST_DATE_S = -62_135_596_800.0
LAST_DATE_S = 253_402_300_799.0
# The range shown as times of files: nanoseconds in 64 bits, 1677 to 2262, as SQLite,
# numpy and most languages' file times have them.
FIRST_SHOWN_NS = -(1 << 63)
LAST_SHOWN_NS = (1 << 63) - 1

MAX_SIZE_BYTES = (1 << 63) - 1  # off_t, and an integer of SQLite
MAX_COUNT = (1 << 32) - 1  # of items: what the inode numbers of one dataset have room for

# Answers, decompressed: each kind has a limit of its own, some 10 times what a real one has.
MAX_SMALL_ANSWER_BYTES = 4 * 1024**2  # /me with 40,000 base URIs
MAX_LISTING_PAGE_BYTES = 32 * 1024**2  # some servers answer with all: 50,000 datasets
MAX_README_BYTES = 16 * 1024**2  # guess: a README is a page of YAML, and goes into the search
MAX_README_ANSWER_BYTES = 3 * MAX_README_BYTES  # a letter of 2 bytes is escaped as 6
MAX_ANNOTATIONS_BYTES = 32 * 1024**2  # guess
MAX_METADATA_BYTES = 256 * 1024**2  # of one dataset; an overlay of a million items is 60 MB
MAX_MANIFEST_BYTES = 2 * 1024**3  # 12 million items
MAX_WHOLE_MANIFEST_BYTES = 256 * 1024**2  # where one is taken into memory
MAX_ERROR_BYTES = 64 * 1024  # of an answer that says why it is none; more is not read
_URL_BYTES = 4096  # for an item: its signed URL, and the headers signed with it, are 700
# Python has up to 100 bytes of memory for a value of JSON, which may be one byte of it. This
# many may be so short; of more each has this many bytes, as in manifests and listings.
MAX_SHORT_VALUES = 1_000_000
_VALUE_BYTES = 16

MAX_LISTED_DATASETS = 200_000  # in one base URI; 1 KB of memory each. Guess
MAX_LISTING_BYTES = 256 * 1024**2  # all pages of it
# Nothing of dtool's is deeper than 4, but an annotation may hold anything. Python can neither
# write nor compare what is nested near 1,000 deep.
MAX_JSON_DEPTH = 100


def is_uuid(text: str) -> bool:
    return _UUID.match(text) is not None


def is_identifier(text: str) -> bool:
    return _IDENTIFIER.match(text) is not None


def name_is_valid(name: str) -> bool:
    """Return whether dtool accepts `name` for a dataset."""
    return len(name) <= MAX_NAME_LENGTH and _NAME.match(name) is not None


def url_is_usable(value: object) -> bool:
    """Return whether it is a URL that can be asked: http or https, of a host."""
    if not is_text(value):
        return False
    try:
        parts = urllib.parse.urlsplit(str(value))
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, a port that is no number
        return False


def hash_is_usable(value: object) -> bool:
    """Return whether it can be an item's hash: short and plain. Its function does not matter."""
    return (
        isinstance(value, str)
        and len(value) <= MAX_HASH_LENGTH
        and value.isascii()
        and value.isprintable()
    )


def is_text(value: object) -> bool:
    """Return whether it is a short string that UTF-8 can hold: JSON can escape lone surrogates."""
    return (
        isinstance(value, str)
        and len(value) <= MAX_TEXT_LENGTH
        and (value.isascii() or _utf8_length(value) is not None)
    )


def component_is_usable(component: str) -> bool:
    """Return whether `component` can be the name of a directory entry."""
    if component in ("", ".", "..") or "/" in component or "\0" in component:
        return False
    length = _utf8_length(component)
    return length is not None and length <= MAX_COMPONENT_BYTES


def relpath_is_usable(relpath: str) -> bool:
    """Return whether `relpath` can be shown below `data/`: relative, plain components, UTF-8."""
    if len(relpath) > MAX_RELPATH_BYTES or relpath.count("/") >= MAX_RELPATH_COMPONENTS:
        return False
    length = _utf8_length(relpath)
    if length is None or length > MAX_RELPATH_BYTES:
        return False
    return all(component_is_usable(component) for component in relpath.split("/"))


def relpath_can_be_stored(relpath: str) -> bool:
    """Return whether a store can keep a relpath of usable components; raises UnicodeEncodeError."""
    return (
        len(relpath.encode("utf-8")) <= MAX_STORED_RELPATH_BYTES
        and relpath.count("/") < MAX_RELPATH_COMPONENTS
    )


def date_is_usable(moment_s: float) -> bool:
    """Return whether epoch seconds are in the one range of dates; NaN is not."""
    return FIRST_DATE_S <= moment_s <= LAST_DATE_S


def usable_date(moment_s: float) -> float:
    """Return the date itself, or the end of the range that it is beyond; for files of users."""
    return min(max(moment_s, FIRST_DATE_S), LAST_DATE_S)


def shown_ns(moment_ns: int) -> int:
    """Return a time of a file as it is shown: nanoseconds in 64 bits."""
    return min(max(moment_ns, FIRST_SHOWN_NS), LAST_SHOWN_NS)


def size_is_usable(value: object) -> bool:
    """Return whether it is a size of an item in bytes; neither a float nor a bool is."""
    return type(value) is int and 0 <= value <= MAX_SIZE_BYTES


def count_is_usable(value: object) -> bool:
    """Return whether it is a number of items."""
    return type(value) is int and 0 <= value <= MAX_COUNT


def parse_timestamp(value: object) -> float:
    """Return epoch seconds of a number, numeric string, RFC-1123 or ISO 8601 date.

    dservers have answered all four; ISO dates without a zone are UTC. Raises
    ProtocolError for what is no date, or none in the range of dates.
    """
    try:
        moment_s = _moment_s(value)
    except (ValueError, OverflowError, TypeError, IndexError) as error:
        raise ProtocolError(f"{quoted(value)} is not a date") from error
    if not date_is_usable(moment_s):
        raise ProtocolError(f"{quoted(value)} is not a date between the years 1 and 9999")
    return moment_s


def quoted(value: object) -> str:
    """Return a value of others as a message quotes it, however long or deep it is."""
    if isinstance(value, (str, int, float, bool, type(None))):
        try:
            return repr(value)[:100]
        except ValueError:  # an integer of more digits than Python writes
            return "a number of thousands of digits"
    return f"a {type(value).__name__}"


def max_urls_bytes(items: int) -> int:
    """Return how large an answer with the signed URLs of so many items may be."""
    return MAX_SMALL_ANSWER_BYTES + items * _URL_BYTES


def parse_json(content: bytes | str, what: str) -> Any:
    """Return the value of JSON text; raises ProtocolError that names `what` it should have been.

    The caller has bounded the length of the text; memory is bounded here. NaN and
    Infinity are read, as Python writes them: a date or size that is none is refused
    where it stands.
    """
    # At most so many: those inside of texts are counted, too.
    if isinstance(content, bytes):
        values = content.count(b",") + content.count(b"[") + content.count(b"{")
    else:
        values = content.count(",") + content.count("[") + content.count("{")
    if values > MAX_SHORT_VALUES + len(content) // _VALUE_BYTES:
        raise ProtocolError(f"{what} is JSON of more values than it may have")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{what} is not JSON") from error
    if is_too_deep(value):
        raise ProtocolError(f"{what} is JSON nested more than {MAX_JSON_DEPTH} deep")
    return value


@contextlib.contextmanager
def understood(what: str) -> Iterator[None]:
    """Raise ProtocolError that names `what` if the block cannot make sense of it.

    For blocks that do nothing but take a value of JSON apart: a part that is missing, or has
    another type or size than it should, is then the same error.
    """
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ProtocolError(f"{what} cannot be read: {error!r}") from error


def record_of(cls: type[T], values: Any) -> T:
    """Return the dataclass with these values, each of the type that its field has.

    Raises TypeError for a value of another type, for one too many and one too few. A
    field that holds more than texts, numbers and None has to be of its class already.
    """
    hints = typing.get_type_hints(cls)
    for name, value in values.items():
        kinds = typing.get_args(hints.get(name)) or (hints.get(name),)
        if not any(_is_of(value, kind) for kind in kinds):
            raise TypeError(f"{quoted(name)} is {quoted(value)}")
    return cls(**values)


def _is_of(value: object, kind: Any) -> bool:
    while hasattr(kind, "__supertype__"):  # a NewType is its own kind to the type checker only
        kind = kind.__supertype__
    if kind is float:
        return type(value) in (int, float) and date_is_usable(value)  # type: ignore[arg-type]
    if kind is str:
        return isinstance(value, str) and _utf8_length(value) is not None
    return type(value) is kind


def is_too_deep(value: Any) -> bool:
    """Return whether lists and objects are nested more than MAX_JSON_DEPTH deep."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        containers = [each for each in level if isinstance(each, (dict, list))]
        if not containers:
            return False
        level = [
            inner
            for each in containers
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return True


def _utf8_length(text: str) -> int | None:
    """Return the length in bytes; None if it has a lone surrogate."""
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return None


def _moment_s(value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        raise ValueError("neither a number nor a text")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        moment = datetime.datetime.fromisoformat(value.removesuffix("Z"))
    except ValueError:
        moment = email.utils.parsedate_to_datetime(value)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.timezone.utc)
    return moment.timestamp()
