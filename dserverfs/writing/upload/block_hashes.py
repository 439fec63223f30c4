"""The object with the hashes of a dataset's blocks: made of its files, and put to the store.

Used by the sender, once all items are stored, and by the uploader for a dataset that is
frozen already. The hashes are those that were made with the items' MD5, in the same
reading; where they are not known, because an earlier version hashed the files or nobody
did, the files are read again. Blocking.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import BinaryIO

from dserverfs.base import hash_overlay
from dserverfs.base.block_hashes import ManifestDigest
from dserverfs.base.errors import Unsupported
from dserverfs.base.hashes import hash_file, new_md5
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import Item
from dserverfs.remote.puts import FilePart
from dserverfs.remote.upload_api import UploadRoutes
from dserverfs.remote.upload_urls import UploadUrl, UploadUrls
from dserverfs.writing.upload.put_retry import AnnouncedTarget, Attempts, Target
from dserverfs.writing.upload.url_source import Announcement


def write(dataset: LocalDataset, file: BinaryIO, read: Callable[[Item], bytes]) -> None:
    """Write the object; `read` returns the hashes of an item's blocks, by reading it."""
    digest = ManifestDigest()
    for item in dataset.items.larger_than(BLOCK_SIZE):
        digest.add(item.identifier, item.hash, item.size_in_bytes)
    file.write(digest.head)
    with dataset.known_blocks() as known:
        for item in dataset.items.larger_than(BLOCK_SIZE):
            blocks = known(dataset.path_of(item), item.hash)
            file.write(read(item) if blocks is None else blocks)


def with_overlay(dataset: LocalDataset) -> LocalDataset:
    """Return the dataset with its hashes as an overlay, as far as they are known."""
    with dataset.known_blocks() as known:
        overlay = hash_overlay.overlay_of(
            dataset.items, lambda item: known(dataset.path_of(item), item.hash)
        )
    if overlay is None:
        return dataset
    return dataset._replace(overlays={**dataset.overlays, hash_overlay.NAME: overlay})


def announced(announcement: Announcement) -> AnnouncedTarget:
    """Return the place of those of an upload; it raises Unsupported if there is none any more."""

    def choose(urls: UploadUrls) -> UploadUrl:
        if urls.block_hashes is None:
            raise Unsupported(f"{urls.uri}: its block hashes are not taken any more")
        return urls.block_hashes

    return AnnouncedTarget(announcement, choose)


class PlaceOfFrozen:
    """The place of those of a dataset that is frozen already."""

    def __init__(self, routes: UploadRoutes, uri: str) -> None:
        self._routes = routes
        self._uri = uri
        self._url: UploadUrl | None = None

    def url(self) -> UploadUrl:
        if self._url is None:
            self._url = self._routes.place_of_block_hashes(self._uri)
        return self._url

    def renew(self) -> None:
        self._url = None


def send(attempts: Attempts, target: Target, file: BinaryIO) -> None:
    """Return when the object in the file is stored."""
    file.flush()
    md5 = new_md5()
    length = hash_file(file.fileno(), md5)
    content = FilePart(file.fileno(), 0, length, "the hashes of its blocks")
    attempts.persist(_Checked(target, md5.hexdigest()), content, counted=False)


class _Checked:
    """A place where the store compares what it gets with an MD5 that the URL does not pin.

    Nobody compares these hashes with anything else before they are used.
    """

    def __init__(self, target: Target, md5: str) -> None:
        self._target = target
        self._header = {"Content-MD5": base64.b64encode(bytes.fromhex(md5)).decode()}

    def url(self) -> UploadUrl:
        url, headers = self._target.url()
        return UploadUrl(url, {**headers, **self._header})

    def renew(self) -> None:
        self._target.renew()
