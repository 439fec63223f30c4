"""Items that are too large for one PUT, in parts that are signed one by one.

Used by the sender, for servers with `dserverfs.server.multipart`. The file is
read once, in order: each part's MD5, which its URL pins and the store checks, and
that of the whole item, which nobody checks after us, come from the same bytes.
The item is made of its parts only if the whole is what was announced. A part
that is read again to be sent, and differs by then, is refused by the store.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from dserverfs.attempts import Attempts, Tally
from dserverfs.errors import Conflict, ItemChanged, ProtocolError, Unreachable
from dserverfs.model import Identifier, Item
from dserverfs.outgoing import FilePart, Line
from dserverfs.signed_urls import boottime_s
from dserverfs.upload_routes import UploadRoutes, UploadUrl

logger = logging.getLogger(__name__)

# At once, of one item. Guess: as many as rclone has by default.
THREADS = 4
# Not as long as they are signed for: a part is sent as soon as it is signed.
_URL_LIFE_S = 600.0
_READ_BYTES = 1024 * 1024


class PartSender:
    """Gets items stored in parts."""

    def __init__(
        self,
        routes: UploadRoutes,
        attempts: Attempts,
        tally: Tally,
        new_line: Callable[[], Line],
    ) -> None:
        self._routes = routes
        self._attempts = attempts
        self._tally = tally
        self._new_line = new_line

    def send(self, uri: str, item: Item, descriptor: int) -> None:
        """Return when the item is stored; parts that are there already are not sent again.

        Raises ItemChanged if the file is not what was announced, and what server
        and store say; what is stored stays for the next time.
        """
        begun = self._routes.begin_parts(uri, item.identifier)
        if begun.stored:
            self._tally.pulse(item.size_in_bytes)
            return
        whole = hashlib.md5(usedforsecurity=False)
        etags: deque[str | Future[str]] = deque()
        lines: SimpleQueue[Line] = SimpleQueue()
        for _ in range(THREADS):
            lines.put(self._new_line())
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="upload-part")
        try:
            sending: deque[Future[str]] = deque()
            for number, offset in enumerate(range(0, item.size_in_bytes, begun.part_bytes), 1):
                count = min(begun.part_bytes, item.size_in_bytes - offset)
                part = FilePart(descriptor, offset, count, item.relpath)
                md5 = self._hash(part, whole)
                if begun.etags.get(number) == md5:
                    self._tally.pulse(count)
                    etags.append(md5)
                    continue
                target = _PartTarget(self._routes, uri, item.identifier, number, md5)
                future = pool.submit(self._send_part, lines, target, part)
                etags.append(future)
                sending.append(future)
                if len(sending) >= THREADS:  # bounds what is lost when it turns out to be changed
                    sending.popleft().result()
            if whole.hexdigest() != item.hash:
                raise _changed(item.relpath)
            found = [each if isinstance(each, str) else each.result() for each in etags]
        except BaseException:
            self._tally.end()  # or the parts that are being sent would be waited for
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            while not lines.empty():
                lines.get().close()
        self._complete(uri, item, found)

    def _complete(self, uri: str, item: Item, etags: list[str]) -> None:
        try:
            self._routes.complete_parts(uri, item.identifier, etags)
        except (Unreachable, ProtocolError, Conflict):
            # The answer may be what was lost.
            if not self._routes.begin_parts(uri, item.identifier).stored:
                raise

    def _hash(self, part: FilePart, whole: hashlib._Hash) -> str:
        """Return the part's MD5 and add the part to the whole's."""
        md5 = hashlib.md5(usedforsecurity=False)
        done = 0
        while done < part.length:
            self._tally.check()
            wanted = min(_READ_BYTES, part.length - done)
            piece = os.pread(part.descriptor, wanted, part.offset + done)
            if not piece:
                raise _changed(part.relpath)
            md5.update(piece)
            whole.update(piece)
            done += len(piece)
        return md5.hexdigest()

    def _send_part(self, lines: SimpleQueue[Line], target: _PartTarget, part: FilePart) -> str:
        """Return the ETag of the part that is stored."""

        def on_other_content() -> None:
            if self._hash(part, hashlib.md5(usedforsecurity=False)) != target.md5:
                raise _changed(part.relpath)

        line = lines.get()
        try:
            headers = self._attempts.persist(line, target, part, on_other_content=on_other_content)
        finally:
            lines.put(line)
        etag = headers.get("Etag", "").strip('"')
        if not etag:
            raise ProtocolError(f"{part.relpath}: the store names no ETag of a part")
        return etag


class _PartTarget:
    """The URL of one part; for one thread."""

    def __init__(
        self, routes: UploadRoutes, uri: str, identifier: Identifier, number: int, md5: str
    ) -> None:
        self._routes = routes
        self._uri = uri
        self._identifier = identifier
        self._number = number
        self.md5 = md5
        self._url: UploadUrl | None = None
        self._good_until_s = 0.0

    def url(self) -> UploadUrl:
        if self._url is None or boottime_s() >= self._good_until_s:
            self._good_until_s = boottime_s() + _URL_LIFE_S
            self._url = self._routes.sign_part(self._uri, self._identifier, self._number, self.md5)
        return self._url

    def renew(self) -> None:
        self._url = None


def _changed(relpath: str) -> ItemChanged:
    return ItemChanged(
        f"{relpath}: has other content than was hashed; nothing is registered", relpath=relpath
    )
