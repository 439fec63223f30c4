"""Getting single items stored, however large, and finding out that their files changed.

Used by the uploader's threads. Thread-safe.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from dserverfs.base.block_hashes import BlockHasher
from dserverfs.base.disk_tables import DiskDict
from dserverfs.base.errors import Unsupported
from dserverfs.base.hashes import hash_file, new_md5
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import Item
from dserverfs.remote.objects import Storage
from dserverfs.remote.puts import FilePart
from dserverfs.writing.staging.file_hashes import Stamp
from dserverfs.writing.upload import block_hashes
from dserverfs.writing.upload.azure import BlobSender, is_sas
from dserverfs.writing.upload.multipart import PartSender
from dserverfs.writing.upload.pieces import PieceSender, changed
from dserverfs.writing.upload.put_retry import AnnouncedTarget, Attempts, Tally
from dserverfs.writing.upload.url_source import Announcement


class Sender:
    """Gets the items of one upload stored."""

    def __init__(
        self,
        storage: Storage,
        announcement: Announcement,
        dataset: LocalDataset,
        tally: Tally,
    ) -> None:
        self._announcement = announcement
        self._dataset = dataset
        self._tally = tally
        self._attempts = Attempts(storage, tally)
        pieces = PieceSender(self._attempts, tally)
        self._parts = PartSender(announcement.routes, pieces)
        self._blobs = BlobSender(self._attempts, pieces)
        self._stamps = DiskDict()  # by identifier

    def note_files(self) -> None:
        """Remember what the items' files are now; raises ItemChanged for a size not announced."""
        for item in self._dataset.items.values():
            stamp = self._look(item)
            if stamp.size != item.size_in_bytes:
                raise changed(item.relpath, f"has {stamp.size} bytes and not {item.size_in_bytes}")
            self._stamps[item.identifier] = stamp

    def check_files(self) -> None:
        """Raise ItemChanged if a file is not what it was for `note_files`."""
        for item in self._dataset.items.values():
            self._check(item, self._look(item))

    def send(self, item: Item) -> bool:
        """Return when the item is stored, whether the store took it now.

        Else the server said that it has it. Raises ItemChanged, Unreachable, Cancelled, ...
        """
        urls = self._announcement.urls()
        already = 0
        with self._open(item) as descriptor:
            if item.identifier in urls.in_parts:
                already = self._parts.send(urls.uri, item, descriptor)
            else:
                self._send_whole(item, descriptor)
            self._check(item, Stamp.of(os.fstat(descriptor)))
        self._tally.add_item(already)
        return not already

    def send_readme(self) -> None:
        target = AnnouncedTarget(self._announcement, lambda urls: urls.readme)
        if is_sas(target.url().url):
            self._blobs.send_readme(target, self._dataset.readme)
        else:
            self._attempts.persist(target, self._dataset.readme, counted=False)

    def send_block_hashes(self) -> None:
        """Have the hashes of the items' blocks stored, if the server takes them; see `send`."""
        if self._announcement.urls().block_hashes is None:
            return
        with tempfile.TemporaryFile() as file:
            block_hashes.write(self._dataset, file, self._read_blocks)
            with contextlib.suppress(Unsupported):  # the server was replaced by an earlier one
                block_hashes.send(self._attempts, block_hashes.announced(self._announcement), file)

    def _read_blocks(self, item: Item) -> bytes:
        md5, blocks = new_md5(), BlockHasher()
        with self._open(item) as descriptor:
            hash_file(descriptor, md5, blocks, on_piece=lambda _: self._tally.check())
        if md5.hexdigest() != item.hash:
            raise changed(item.relpath)
        return blocks.hashes()

    def _send_whole(self, item: Item, descriptor: int) -> None:
        def new_target() -> AnnouncedTarget:
            return AnnouncedTarget(self._announcement, lambda urls: urls.items[item.identifier])

        def on_other_content() -> None:
            self._require_same_content(item, descriptor)

        target = new_target()
        if is_sas(target.url().url):
            self._blobs.send(new_target, item, descriptor, on_other_content)
            return
        content: FilePart | bytes = b""
        if item.size_in_bytes:
            content = FilePart(descriptor, 0, item.size_in_bytes, item.relpath)
        self._attempts.persist(target, content, on_other_content=on_other_content)

    def _require_same_content(self, item: Item, descriptor: int) -> None:
        """Raise ItemChanged unless the file has the hash that was announced."""
        md5 = new_md5()
        hash_file(descriptor, md5, on_piece=lambda _: self._tally.check())
        if md5.hexdigest() != item.hash:
            raise changed(item.relpath)

    @contextlib.contextmanager
    def _open(self, item: Item) -> Iterator[int]:
        try:
            descriptor = os.open(self._dataset.path_of(item), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise changed(item.relpath, f"cannot be read: {error.strerror}") from error
        try:
            self._check(item, Stamp.of(os.fstat(descriptor)))
            yield descriptor
        finally:
            os.close(descriptor)

    def _look(self, item: Item) -> Stamp:
        try:
            return Stamp.of(os.stat(self._dataset.path_of(item)))
        except OSError as error:
            raise changed(item.relpath, f"cannot be read: {error.strerror}") from error

    def _check(self, item: Item, stamp: Stamp) -> None:
        if list(stamp) != self._stamps[item.identifier]:
            raise changed(item.relpath, "was changed during the upload")
