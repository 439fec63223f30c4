"""The object store of the simulated dserver: objects, parts of objects, signed URLs.

One request in, one answer out. Also what requests and answers are, of server and store.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import hashlib
import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import NamedTuple

STORE = "https://store.sim"
_RANGE = re.compile(r"bytes=(\d+)-(\d+)\Z")


class Request(NamedTuple):
    method: str
    url: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes = b""


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class StoreRefused(Exception):
    """An error of the store's: its status and S3's code."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status


class Store:
    """Objects by `bucket/key`."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}  # of objects that are put in parts

    def signed(self, method: str, key: str, life_s: float, more: str = "") -> str:
        """Return a URL for one method and key, with what `more` pins in its query."""
        path = urllib.parse.quote(key)
        said = f"until={self._now_s() + life_s:.0f}{more}"
        return f"{STORE}/{path}?{said}&signature={_signature(method, path, said)}"

    def answer(self, request: Request) -> Answer:
        try:
            return self._answered(request)
        except StoreRefused as error:
            text = f"<?xml version='1.0'?><Error><Code>{error}</Code></Error>"
            return answer_of(self._now_s(), error.status, text.encode(), "application/xml")

    def _answered(self, request: Request) -> Answer:
        path, _, query = request.url.removeprefix(f"{STORE}/").partition("?")
        said, _, signature = query.rpartition("&signature=")
        values = dict(urllib.parse.parse_qsl(said))
        if signature != _signature(request.method, path, said):
            raise StoreRefused(403, "SignatureDoesNotMatch")
        if float(values["until"]) < self._now_s():
            raise StoreRefused(403, "AccessDenied")
        key = urllib.parse.unquote(path)
        if request.method == "PUT":
            return self._put(key, values, request)
        content = self.objects.get(key)
        if content is None:
            raise StoreRefused(404, "NoSuchKey")
        return self._get(content, request)

    def _put(self, key: str, values: Mapping[str, str], request: Request) -> Answer:
        md5 = hashlib.md5(request.body)
        pinned = values.get("md5")
        if pinned is not None and request.headers.get("content-md5") != content_md5(pinned):
            raise StoreRefused(403, "SignatureDoesNotMatch")
        if pinned is not None and pinned != md5.hexdigest():
            raise StoreRefused(400, "BadDigest")
        if "part" not in values:
            self.objects[key] = request.body
        elif key in self.parts:
            self.parts[key][int(values["part"])] = request.body
        else:
            raise StoreRefused(404, "NoSuchUpload")
        return Answer(200, {"ETag": f'"{md5.hexdigest()}"'}, b"")

    def _get(self, content: bytes, request: Request) -> Answer:
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        if request.headers.get("if-match", etag) != etag:
            raise StoreRefused(412, "PreconditionFailed")
        status, more = 200, {"ETag": etag}
        wanted = _RANGE.match(request.headers.get("range", ""))
        if wanted is not None:
            first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
            if first >= len(content):
                raise StoreRefused(416, "InvalidRange")
            more["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[first : last + 1]
        answer = answer_of(self._now_s(), status, content, "application/octet-stream")
        return answer._replace(headers={**answer.headers, **more})


def answer_of(now_s: float, status: int, body: bytes, kind: str = "application/json") -> Answer:
    """Return an answer with the headers that every server sends."""
    date = email.utils.formatdate(now_s, usegmt=True)
    headers = {"Date": date, "Content-Type": kind, "Content-Length": str(len(body))}
    return Answer(status, headers, body)


def content_md5(md5: str) -> str:
    """Return a Content-MD5 header of an MD5 as hex digits."""
    return base64.b64encode(binascii.unhexlify(md5)).decode()


def _signature(method: str, path: str, said: str) -> str:
    return hashlib.sha256(f"secret {method} {path} {said}".encode()).hexdigest()[:16]
