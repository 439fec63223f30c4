"""Blobs over real HTTP as Azure keeps them, as far as signed PUTs and GETs go, from memory.

`test_azure.py` holds it and Azurite, Microsoft's own emulator, to the same
contract, where Azurite is installed.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import re
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple

from tests.support.local_web import serving


class Blob(NamedTuple):
    content: bytes
    md5: str | None
    metadata: dict[str, str]


class AzureFake:
    """Blobs by path, and blocks that are not committed."""

    def __init__(self) -> None:
        self.url = ""
        self.blobs: dict[str, Blob] = {}
        self.blocks: dict[tuple[str, str], bytes] = {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: AzureFake

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        path, query = self._asked()
        said_md5 = self.headers.get("Content-MD5")
        if not self._permitted(query):
            self._answer(403, "AuthenticationFailed")
        elif said_md5 is not None and said_md5 != _md5(content):
            self._answer(400, "Md5Mismatch")
        elif query.get("restype") == "container":
            self._answer(201)
        elif query.get("comp") == "block":
            self.fake.blocks[path, query["blockid"]] = content
            self._answer(201)
        elif query.get("comp") == "blocklist":
            self._commit(path, content)
        elif self.headers.get("x-ms-blob-type") != "BlockBlob":
            self._answer(400, "MissingRequiredHeader")
        else:
            self._keep(path, content, said_md5 or _md5(content))

    def do_GET(self) -> None:
        path, query = self._asked()
        blob = self.fake.blobs.get(path)
        if not self._permitted(query):
            self._answer(403, "AuthenticationFailed")
        elif blob is None:
            self._answer(404, "BlobNotFound")
        else:
            headers = {f"x-ms-meta-{name}": value for name, value in blob.metadata.items()}
            if blob.md5 is not None:
                headers["Content-MD5"] = blob.md5
            self._answer(200, content=blob.content, headers=headers)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _asked(self) -> tuple[str, dict[str, str]]:
        parts = urllib.parse.urlsplit(self.path)
        return parts.path, dict(urllib.parse.parse_qsl(parts.query))

    def _permitted(self, query: dict[str, str]) -> bool:
        """Whether it is signed at all and has not expired; the signature is not looked at."""
        end = datetime.datetime.strptime(query["se"], "%Y-%m-%dT%H:%M:%SZ")
        now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
        return bool(query.get("sig")) and now < end

    def _commit(self, path: str, content: bytes) -> None:
        names = re.findall(r"<Latest>([^<]+)</Latest>", content.decode())
        blocks = [self.fake.blocks.pop((path, name), None) for name in names]
        if not names or None in blocks:
            self._answer(400, "InvalidBlockList")
            return
        whole = b"".join(block for block in blocks if block is not None)
        self._keep(path, whole, self.headers.get("x-ms-blob-content-md5"))

    def _keep(self, path: str, content: bytes, md5: str | None) -> None:
        names = [name for name in self.headers if name.lower().startswith("x-ms-meta-")]
        metadata = {name[len("x-ms-meta-") :].lower(): self.headers[name] for name in names}
        self.fake.blobs[path] = Blob(content, md5, metadata)
        self._answer(201)

    def _answer(
        self,
        status: int,
        code: str = "",
        *,
        content: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
        body = body if code else content
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


@contextlib.contextmanager
def azure_fake() -> Iterator[AzureFake]:
    """Serve blobs on a free port of 127.0.0.1."""
    fake = AzureFake()
    with serving(_Handler, fake=fake) as fake.url:
        yield fake
