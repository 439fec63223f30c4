"""One large item sent in pieces, several at once, its file read once in order.

Used for the parts of S3 and the blocks of Azure. Each piece's MD5, which its PUT
pins and the store checks, and that of the whole item, which no store checks, come
from the same bytes, and the whole is compared with what was announced before
anybody makes an item of the pieces. A piece that is read again to be sent, and
differs by then, is refused by the store. Memory: none to speak of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from dserverfs.base.errors import ItemChanged
from dserverfs.base.hashes import Hasher, hash_file, new_md5
from dserverfs.base.model import Item
from dserverfs.remote.puts import FilePart
from dserverfs.writing.upload.put_retry import Attempts, Tally, Target

# At once, of one item. Guess: as many as rclone has by default.
THREADS = 4


class PieceSender:
    """Sends the pieces of items; may be used by several threads."""

    def __init__(self, attempts: Attempts, tally: Tally) -> None:
        self._attempts = attempts
        self._tally = tally

    def send(
        self,
        item: Item,
        descriptor: int,
        piece_bytes: int,
        target_of: Callable[[int, str], Target],
        stored: Mapping[int, str],
    ) -> list[str]:
        """Send all pieces; return the ETag of each, "" where the store names none.

        `target_of(number, md5)` says where a piece goes, from 1; a piece that is
        `stored` with its MD5 as ETag is not sent. Raises ItemChanged if the whole
        is not what was announced.
        """
        whole = new_md5()
        etags: list[str | Future[str]] = []
        sending: deque[Future[str]] = deque()
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="upload-piece")
        try:
            for number, offset in enumerate(range(0, item.size_in_bytes, piece_bytes), 1):
                count = min(piece_bytes, item.size_in_bytes - offset)
                piece = FilePart(descriptor, offset, count, item.relpath)
                md5 = self._hash(piece, whole)
                if stored.get(number) == md5:
                    self._tally.add_sent(count)
                    etags.append(md5)
                    continue
                target = target_of(number, md5)
                sending.append(pool.submit(self._send_one, target, piece, md5))
                etags.append(sending[-1])
                if len(sending) >= THREADS:  # bounds what is sent in vain of a changed file
                    sending.popleft().result()
            if whole.hexdigest() != item.hash:
                raise changed(item.relpath)
            return [each if isinstance(each, str) else each.result() for each in etags]
        except BaseException:
            self._tally.end()  # or the pieces that are being sent would be waited for
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _send_one(self, target: Target, piece: FilePart, md5: str) -> str:
        def require_same() -> None:
            if self._hash(piece) != md5:
                raise changed(piece.relpath)

        headers = self._attempts.persist(target, piece, on_other_content=require_same)
        return headers.get("Etag", "").strip('"')

    def _hash(self, piece: FilePart, *wholes: Hasher) -> str:
        """Return the piece's MD5 and add the piece to that of the whole."""
        md5 = new_md5()
        done = hash_file(
            piece.descriptor,
            md5,
            *wholes,
            offset=piece.offset,
            length=piece.length,
            on_piece=lambda _: self._tally.check(),
        )
        if done != piece.length:
            raise changed(piece.relpath)
        return md5.hexdigest()


def changed(relpath: str, how: str = "has other content than was hashed") -> ItemChanged:
    """Return the error of an upload whose file is not what was announced."""
    return ItemChanged(f"{relpath}: {how}; nothing is registered", relpath=relpath)
