"""Everything that reads bytes of others, each as a function of bytes, for tests that mutate them.

A reader returns, or raises an error of ours; what else it raises is a fault. The words of
each are such as it reads, for those who make bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dserverfs.base import mountinfo
from dserverfs.base.errors import DserverfsError, UsageError
from dserverfs.base.limits import parse_json, parse_timestamp, url_is_usable
from dserverfs.base.model import Dataset, DserverURI, Item, User, split_base_uri
from dserverfs.base.printable import MAX_MESSAGE_LETTERS, one_line, printable, public_url
from dserverfs.base.retry import retry_after_s
from dserverfs.catalogue.manifest_rows import ManifestTree
from dserverfs.mount.control_commands import _Request
from dserverfs.remote import error_answers, http1
from dserverfs.remote.answers import Answer
from dserverfs.remote.manifest_parsing import ManifestStream
from dserverfs.remote.signed_urls import expiry_of
from dserverfs.remote.tokens import TokenSource, expires_at
from dserverfs.server.database.upload_request import UploadRequest
from dserverfs.settings import Settings
from dserverfs.writing.edits import journal
from dserverfs.writing.staging import states

SECRET = "5ec4e7"  # behind the "?" of a URL


class Parser(NamedTuple):
    """What reads one kind of bytes, and an example of them."""

    read: Callable[[bytes], object]
    example: bytes
    words: Sequence[bytes] = ()
    may_raise: tuple[type[Exception], ...] = ()  # beside errors of ours


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _manifest(content: bytes) -> None:
    """In pieces, as it arrives, and as a whole: the same, or an error of ours both times."""
    stream, items = ManifestStream(), {}
    for start in range(0, len(content), 7):
        items.update(stream.feed(content[start : start + 7]))
    items.update(stream.close())
    tree = ManifestTree()
    tree.add(items)
    assert tree.number_of_items == len(items)
    for identifier, entry in items.items():
        Item.from_json(identifier, entry)


def _head(content: bytes) -> None:
    head = http1.parse_head(content)
    if head is not None:
        assert 0 <= head.status <= 999
        assert head.length is None or head.length >= 0
        assert head.end <= len(content)
        head.is_as_stored()
        retry_after_s(head.headers)
        expiry_of(f"http://s/k?{_text(content)}", {}, head.headers, 0.0)


def _target(content: bytes) -> None:
    """A URL that stands in a request is one line of it, whatever the server gave."""
    target = http1.target_of(_text(content))
    head = http1.request_head("GET", target.path, target, "")
    assert head.count(b"\r\n") == 3
    assert b"\r" not in head.replace(b"\r\n", b"")


def _header_lines(content: bytes) -> None:
    name, _, value = _text(content).partition(":")
    lines = http1.header_lines({name: value})
    assert lines.count("\n") == 1


def _signed_url(content: bytes) -> None:
    text = _text(content)
    if not url_is_usable(text):
        return  # it is refused before it is asked for its dates
    answer = {"expiry_seconds": text, "expiry_timestamp": text}
    for headers in ({"Date": "Tue, 14 Nov 2023 22:13:20 GMT"}, {"Date": text}, {}):
        until_s = expiry_of(text, answer, headers, 0.0)
        assert 0 < until_s < 366 * 86_400


def _public_url(content: bytes) -> None:
    said = public_url(f"{_text(content)}?{SECRET}#{SECRET}")
    assert SECRET not in said
    assert said.isprintable()


def _message(content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    assert printable(text).isprintable()
    assert len(printable(text)) <= 12 * MAX_MESSAGE_LETTERS
    assert one_line(text).isprintable()
    answer = Answer("http://h", 500, text[:20], {}, content)
    assert error_answers.message_of(answer).isprintable()
    error_answers.is_the_servers_own(answer)
    error_answers.is_about_the_token(answer)


def _token(content: bytes) -> None:
    token = content.decode("latin-1")
    expires_at(token)
    source = TokenSource(token, None)
    assert source.describe_claims().isprintable()
    source.subject()
    assert not set(source.token()) & set(" \r\n\t")


def _uri(content: bytes) -> None:
    for text in (_text(content), f"dserver://{_text(content)}"):
        try:
            uri = DserverURI.parse(text)
        except UsageError:
            continue
        assert ".." not in str(uri).split("/")
        if uri.base_uri is not None:
            split_base_uri(uri.base_uri)


def _settings(content: bytes) -> None:
    values = parse_json(content, "it")
    if not isinstance(values, dict):
        return
    found = Settings({}, values)
    for read in (
        *(found.base_url, found.token, found.trust, found.token_generator_url),
        *(found.withheld_token, found.username, found.kept_token_file),
    ):
        try:
            read("h:1")
        except DserverfsError as error:
            assert str(error).isprintable()  # noqa: PT017
    found.cache_directory(), found.staging_directory()


def _mounts(content: bytes) -> None:
    for mounted in mountinfo.parse(content):
        assert mounted.path is not None


def _of_json(read: Callable[[Any], object]) -> Callable[[bytes], object]:
    return lambda content: read(parse_json(content, "it"))


def _request(content: bytes) -> None:
    asked = parse_json(content, "it")
    if isinstance(asked, dict):
        _Request.of(asked)


UUID = "11111111-2222-3333-4444-555555555555"
ENTRY = {
    "uri": f"s3://b/{UUID}",
    "uuid": UUID,
    "base_uri": "s3://b",
    "name": "n",
    "creator_username": "me",
    "created_at": 1.5,
    "frozen_at": "2023-11-14T22:13:20Z",
    "number_of_items": 3,
    "size_in_bytes": 3,
}
ITEM = {"relpath": "a/b", "size_in_bytes": 1, "hash": "0" * 32, "utc_timestamp": 1.5}
MANIFEST = {
    "dtoolcore_version": "3",
    "hash_function": "md5sum_hexdigest",
    "items": {"0" * 40: ITEM, "1" * 40: ITEM},
}
DATASET = Dataset.from_json(ENTRY)
RECORD = states.Record("id", "server", "s3://b", "name", "me", 1.5)
URL = b"https://s.example:9000/b/k?X-Amz-Date=20231114T221320Z&X-Amz-Expires=3600&X-Amz-Signature=0"
UPLOAD = {
    "uuid": UUID,
    "name": "name",
    "creator_username": "me",
    "frozen_at": 1.5,
    "hash_function": "md5sum_hexdigest",
    "items": [ITEM],
    "tags": ["t"],
    "annotations": {"a": {"b": [1]}},
    "overlays": {},
}
HEAD = (
    b"HTTP/1.1 206 Partial\r\nContent-Length: 5\r\n"
    b"Content-Range: bytes 0-4/5\r\nRetry-After: 3\r\n\r\n"
)
HEAD_WORDS = (
    *(b"HTTP/1.1 ", b"\r\n", b"\r\n\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked"),
    *(b"Connection: close", b"Date: ", b": ", b"\xb2", b"-1", b"99999999999999999999"),
)
JSON_WORDS = (b'"', b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"1e999", b"-0", b"NaN")
URL_WORDS = (
    b"http://",
    b"?",
    b"#",
    b"@",
    b"[::1]",
    b"%00",
    b"\r\n",
    b"//",
    b"../",
    b"&X-Goog-Date=",
)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


PARSERS: dict[str, Parser] = {
    "manifest": Parser(_manifest, _json(MANIFEST), (*JSON_WORDS, b'"items"')),
    "head of an answer": Parser(_head, HEAD, HEAD_WORDS, (ConnectionError,)),
    "URL of a request": Parser(_target, URL, URL_WORDS, (ValueError,)),
    "header of a request": Parser(_header_lines, b"Content-MD5: x", (b"\r\n", b":"), (ValueError,)),
    "signed URL": Parser(_signed_url, URL, URL_WORDS),
    "public URL": Parser(_public_url, URL, URL_WORDS),
    "message": Parser(_message, _json({"message": "\x1b[2J", "code": 500}), JSON_WORDS),
    "token": Parser(_token, b"e30.eyJzdWIiOiJtZSIsImV4cCI6MX0.x", (b".", b"e30", b"=")),
    "URI": Parser(_uri, b"h:1/s3/b/" + UUID.encode(), (b"..", b"%2F", b"%", b"[", b"@", b"/s3/")),
    "settings": Parser(_settings, _json({"DSERVER_TOKEN": "x", "DSERVER_URL": "http://h:1"})),
    "mounts": Parser(
        _mounts,
        rb"36 35 0:52 / /mnt\040x rw - fuse.dserverfs dserver://h rw,user_id=0,group_id=0",
        (b"\n", b" - ", b"\\040", b"\\777", b"user_id=", b"4294967296:1"),
    ),
    "date": Parser(_of_json(parse_timestamp), b'"2023-11-14T22:13:20Z"', JSON_WORDS),
    "entry of a listing": Parser(_of_json(Dataset.from_json), _json(ENTRY), JSON_WORDS),
    "user": Parser(
        _of_json(User.from_json),
        _json({"username": "me", "search_permissions_on_base_uris": ["s3://b"]}),
        JSON_WORDS,
    ),
    "request to a daemon": Parser(
        _request, _json({"command": "freeze", "inode": 2, "layout": "items"}), JSON_WORDS
    ),
    "request of an upload": Parser(
        _of_json(lambda value: UploadRequest.parse(value, max_item_bytes=1 << 40)),
        _json(UPLOAD),
        JSON_WORDS,
    ),
    "state of a staged dataset": Parser(
        states.Record.from_json, RECORD.to_json().encode(), JSON_WORDS
    ),
    "note of an edit": Parser(
        lambda content: journal.Note.from_json(_text(content)),
        journal.Note(DATASET, "README.yml", True, 1.5).to_json().encode(),
        JSON_WORDS,
    ),
}


def read_mutated(name: str, content: bytes) -> None:
    """Have a parser read these bytes; raises what it should not, beside AssertionError."""
    parser = PARSERS[name]
    try:
        parser.read(content)
    except parser.may_raise:
        pass
    except DserverfsError as error:
        assert str(error).isprintable()  # noqa: PT017
