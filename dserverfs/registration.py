"""What becomes of a dataset that was frozen here: known to the catalogue, its bytes in the cache.

Used by the freezer. Blocking.
"""

from __future__ import annotations

import logging
import os
import threading

from dserverfs.blocks import BLOCK_SIZE, MemoryBlock, block_length, number_of_blocks
from dserverfs.cache import BlockCache, BlockKey
from dserverfs.cache_writer import CacheWriter, Put
from dserverfs.catalogue import Catalogue
from dserverfs.errors import DserverfsError, IntegrityError
from dserverfs.item_content import content_key, item_key
from dserverfs.local_dataset import LocalDataset
from dserverfs.model import UUID, Dataset, DserverURI, Item
from dserverfs.resolver import Resolver
from dserverfs.uploader import Uploader

logger = logging.getLogger(__name__)

# More would push out of the cache what is read; a guess, not measured.
MAX_ADOPTED_BYTES = 8 * 1024**3


class Registration:
    """The freezer's view of server, catalogue and cache."""

    def __init__(
        self,
        server: str,
        resolver: Resolver,
        uploader: Uploader,
        catalogue: Catalogue,
        cache: BlockCache | None,
    ) -> None:
        """Without `cache`, bytes are taken over into none."""
        self._server = server
        self._resolver = resolver
        self._uploader = uploader
        self._catalogue = catalogue
        self._cache = cache

    def registered(self, local: LocalDataset, base_uri: str) -> Dataset:
        """Return the dataset as the server has it now; raises what keeps it from being right.

        NotFound if it is not there, Conflict or IntegrityError if its manifest
        is another one.
        """
        uuid = UUID(local.admin_metadata["uuid"])
        dataset = self._resolver.dataset_by_uuid(uuid, base_uri)
        if not self._uploader.is_registered(local, dataset.uri):
            raise IntegrityError(f"{dataset.uri}: is registered without a manifest")
        return dataset

    def learn(self, dataset: Dataset, as_staged: UUID) -> str | None:
        """Show it from now on as it was named while staged; return what may surprise of that."""
        namesakes = [
            other
            for other in self._listed(dataset.base_uri)
            if other.name == dataset.name and other.uuid != dataset.uuid
        ]
        self._catalogue.learn(dataset, as_staged)
        if not namesakes:
            return None
        return (
            f"another dataset is named {dataset.name} too: from the next mount on this one is"
            f" {dataset.name}~{dataset.uuid[:8]}"
        )

    def _listed(self, base_uri: str) -> list[Dataset]:
        """Return what the server lists now, or what is known of that if it cannot be asked."""
        try:
            return self._resolver.datasets(base_uri)
        except DserverfsError as error:
            logger.info("%s: not listed after a freeze: %s", base_uri, error)
            known = self._catalogue.known_datasets()
            return [dataset for dataset in known if dataset.base_uri == base_uri]

    def adopt(self, dataset: Dataset, local: LocalDataset, stop: threading.Event) -> None:
        """Take the items' bytes over into the cache, until `stop`; what fails can be fetched."""
        if self._cache is None:
            return
        uri = DserverURI(self._server, dataset.base_uri, dataset.uuid)
        writer = CacheWriter(self._cache)
        left = MAX_ADOPTED_BYTES
        try:
            for item in local.items.values():
                left -= item.size_in_bytes
                if stop.is_set() or left < 0:
                    break
                content = content_key(local.hash_function, item.hash, item.size_in_bytes)
                try:
                    key = item_key(uri, item.identifier, item.hash)
                    _adopt_item(writer, key, content, local, item)
                except OSError as error:
                    logger.info("%s: not taken into the cache: %s", item.relpath, error)
        finally:
            writer.close()


def _adopt_item(
    writer: CacheWriter, key: str, content: str, local: LocalDataset, item: Item
) -> None:
    """Store the blocks of an item as verified: it was hashed as it is now."""
    with local.path_of(item).open("rb", buffering=0) as file:
        for block in range(number_of_blocks(item.size_in_bytes)):
            length = block_length(item.size_in_bytes, block)
            data = os.pread(file.fileno(), length, block * BLOCK_SIZE)
            if len(data) != length or os.fstat(file.fileno()).st_mtime_ns != item.mtime_ns:
                raise OSError("changed after it was frozen")
            writer.put_many(
                [Put(BlockKey(key, block), BlockKey(content, block), MemoryBlock(data))]
            )
