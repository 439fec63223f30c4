"""Blobs of Azure, by URLs that carry a shared access signature (SAS).

Used by the sender. Such a URL signs no headers, so that what S3 has pinned is
added here: the kind of blob, and the MD5, which the store compares and keeps.
Above 64 MiB a blob goes in blocks, for which the same URL serves, because older
versions of the service (which the URL's `sv` chooses) take no more in one PUT.
"""

from __future__ import annotations

import base64
import urllib.parse
from collections.abc import Callable, Mapping

from dserverfs.base.model import Item
from dserverfs.remote.puts import FilePart
from dserverfs.remote.upload_urls import UploadUrl
from dserverfs.writing.upload.pieces import PieceSender
from dserverfs.writing.upload.put_retry import Attempts, Target

MAX_PUT_BYTES = 64 * 1024 * 1024
BLOCK_BYTES = 32 * 1024 * 1024
MAX_BLOCKS = 50_000  # of one blob
MAX_BLOB_BYTES = MAX_BLOCKS * BLOCK_BYTES
_HOST = ".blob.core.windows.net"
_BLOCK_BLOB = {"x-ms-blob-type": "BlockBlob"}


def is_sas(url: str) -> bool:
    """Return whether `url` leads to Azure: by the parameters of a SAS, or its host."""
    # Asked for every item: taking the URL apart would cost as much as all of its PUT.
    address, _, query = url.partition("?")
    parameters = f"&{query}"
    return ("&sv=" in parameters and "&sig=" in parameters) or f"{_HOST}/" in address


class BlobSender:
    """Gets blobs stored."""

    def __init__(
        self,
        attempts: Attempts,
        pieces: PieceSender,
        *,
        max_put_bytes: int = MAX_PUT_BYTES,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self._attempts = attempts
        self._pieces = pieces
        self._max_put_bytes = max_put_bytes
        self._block_bytes = block_bytes

    def send(
        self,
        new_target: Callable[[], Target],
        item: Item,
        descriptor: int,
        on_other_content: Callable[[], None],
    ) -> None:
        """Return when the item is stored with its MD5; raises what the attempts raise.

        `new_target` says where the blob is; each thread has one of its own.
        """
        md5 = base64.b64encode(bytes.fromhex(item.hash)).decode()
        if item.size_in_bytes <= self._max_put_bytes:
            content: FilePart | bytes = b""
            if item.size_in_bytes:
                content = FilePart(descriptor, 0, item.size_in_bytes, item.relpath)
            put = _BlobTarget(new_target(), "", {**_BLOCK_BLOB, "Content-MD5": md5})
            self._attempts.persist(put, content, on_other_content=on_other_content)
            return
        self._pieces.send(
            item,
            descriptor,
            self._block_bytes,
            lambda number, piece_md5: _block_target(new_target(), number, piece_md5),
            {},
        )
        count = -(-item.size_in_bytes // self._block_bytes)
        committed = _BlobTarget(
            new_target(),
            "comp=blocklist",
            {"x-ms-blob-content-md5": md5},
            keeps_content_headers=False,
        )
        self._attempts.persist(committed, _block_list(count), counted=False)

    def send_readme(self, target: Target, content: bytes) -> None:
        self._attempts.persist(_BlobTarget(target, "", _BLOCK_BLOB), content, counted=False)


class _BlobTarget:
    """A blob's URL for one of the operations on it, with the headers it needs."""

    def __init__(
        self,
        target: Target,
        operation: str,
        headers: Mapping[str, str],
        *,
        keeps_content_headers: bool = True,
    ) -> None:
        self._target = target
        self._operation = operation
        self._headers = headers
        self._keeps_content_headers = keeps_content_headers

    def url(self) -> UploadUrl:
        given = self._target.url()
        ours = {name.lower() for name in self._headers}
        headers = {
            name: value
            for name, value in given.headers.items()
            if name.lower() not in ours and (self._keeps_content_headers or _is_of_blob(name))
        }
        url = f"{given.url}&{self._operation}" if self._operation else given.url
        return UploadUrl(url, {**headers, **self._headers})

    def renew(self) -> None:
        self._target.renew()


class _BareTarget(_BlobTarget):
    """For a block, to which none of the blob's own headers belong."""

    def url(self) -> UploadUrl:
        given = self._target.url()
        return UploadUrl(f"{given.url}&{self._operation}", self._headers)


def _is_of_blob(name: str) -> bool:
    """Return whether a header says something of the blob, not of the body of one PUT."""
    return name.lower().startswith("x-ms-") and name.lower() != "x-ms-blob-type"


def _block_target(target: Target, number: int, md5: str) -> Target:
    content_md5 = base64.b64encode(bytes.fromhex(md5)).decode()
    block = urllib.parse.quote(_block_id(number), safe="")
    return _BareTarget(target, f"comp=block&blockid={block}", {"Content-MD5": content_md5})


def _block_id(number: int) -> str:
    """Return a block's name; all of one blob have to be equally long."""
    return base64.b64encode(f"{number:08}".encode()).decode()


def _block_list(count: int) -> bytes:
    blocks = "".join(f"<Latest>{_block_id(number)}</Latest>" for number in range(1, count + 1))
    return f'<?xml version="1.0" encoding="utf-8"?><BlockList>{blocks}</BlockList>'.encode()
