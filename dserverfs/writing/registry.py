"""A dataset that was frozen here becomes known to the catalogue, and its bytes to the cache.

Used by the freezer. Blocking.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

from dserverfs.base.dtool_layout import README
from dserverfs.base.errors import Cancelled, Conflict, DserverfsError, IntegrityError
from dserverfs.base.items import ItemContent
from dserverfs.base.limits import parse_json
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import UUID, Dataset, DserverURI, Identifier, Item
from dserverfs.base.pools import begun
from dserverfs.base.printable import listed
from dserverfs.catalogue.catalogue import Catalogue
from dserverfs.reading.cache.adopting import adopt
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.stored_items import StoredItems
from dserverfs.remote.api import Resolver
from dserverfs.writing.upload.uploader import Uploader

logger = logging.getLogger(__name__)

LOOKING_THREADS = 16  # as many as upload
_TOGETHER = 1000  # items that are looked for at once
_NEIGHBOURS = 200  # of an item, of which it may be asked in one request


class Registration:
    """The freezer's view of server, catalogue and cache."""

    def __init__(
        self,
        server: str,
        resolver: Resolver,
        uploader: Uploader,
        catalogue: Catalogue,
        cache: BlockCache | None,
        stored: StoredItems,
    ) -> None:
        """Without `cache`, bytes are taken over into none."""
        self._stored = stored
        self._server = server
        self._resolver = resolver
        self._uploader = uploader
        self._catalogue = catalogue
        self._cache = cache

    def registered(
        self,
        local: LocalDataset,
        base_uri: str,
        taken: Container[object],
        stop: threading.Event,
    ) -> Dataset:
        """Return the dataset as the server has it now; raises what keeps it from being right.

        NotFound if it is not there, Conflict or IntegrityError if its manifest
        is another one, or if an item is not stored as it is here. `taken` are those that
        the store took from us; it is asked for all others, for what is here may be the
        only copy, and the server's word that it has another is not enough. Cancelled
        soon after `stop` is set.
        """
        uuid = UUID(local.admin_metadata["uuid"])
        dataset = self._resolver.dataset_by_uuid(uuid, base_uri)
        if not self._uploader.is_registered(local, dataset.uri):
            raise IntegrityError(f"{dataset.uri}: is registered without a manifest")
        self._require_stored(dataset, local, taken, stop)
        return dataset

    def require_same(self, local: LocalDataset, base_uri: str) -> None:
        """Raise Conflict unless what can be changed of the registered dataset is as it is here.

        Names what differs: README, tags, annotations or overlays. To replace them
        a user has to say so.
        """
        dataset = self._resolver.dataset_by_uuid(UUID(local.admin_metadata["uuid"]), base_uri)
        theirs = self._resolver.metadata(dataset)
        differing = []
        if self._resolver.readme(dataset) != local.readme:
            differing.append(README)
        if set(theirs.tags) != set(local.tags):
            differing.append("tags")
        for kind, ours, stored in (
            ("annotation", local.annotations, theirs.annotations),
            ("overlay", local.overlays, theirs.overlays),
        ):
            differing += [
                f"{kind} {name}"
                for name in sorted(ours.keys() | stored.keys())
                if name not in ours
                or name not in stored
                or ours[name] != parse_json(stored[name], f"{kind} {name} of {dataset.uri}")
            ]
        if differing:
            raise Conflict(
                f"{dataset.uri} is registered already, with the same items, but not the same"
                f" {listed(differing)}: change what is to be changed in the frozen dataset,"
                " and discard the one that is staged (dserverfs discard)",
                uri=dataset.uri,
            )

    def _require_stored(
        self,
        dataset: Dataset,
        local: LocalDataset,
        taken: Container[object],
        stop: threading.Event,
    ) -> None:
        untaken = (item for item in local.items.values() if item.identifier not in taken)
        with ThreadPoolExecutor(LOOKING_THREADS, thread_name_prefix="look") as pool:
            while some := list(islice(untaken, _TOGETHER)):
                identifiers = [item.identifier for item in some]
                looking = [
                    begun(
                        pool,
                        partial(
                            self._require_one,
                            dataset,
                            local,
                            item,
                            identifiers[place : place + _NEIGHBOURS],
                            stop,
                        ),
                    )
                    for place, item in enumerate(some)
                ]
                try:
                    for one in looking:
                        one.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise

    def _require_one(
        self,
        dataset: Dataset,
        local: LocalDataset,
        item: Item,
        identifiers: list[Identifier],
        stop: threading.Event,
    ) -> None:
        """Require that an item is stored; `identifiers` are those that are asked for next."""
        if stop.is_set():
            raise Cancelled(f"{dataset.name}: the mount is ending")
        content = ItemContent(
            key="",
            dataset=dataset,
            identifier=item.identifier,
            size_in_bytes=item.size_in_bytes,
            hash_function=local.hash_function,
            hash=item.hash,
            neighbours=lambda count: identifiers[:count],
        )
        try:
            self._stored.require(content)
        except IntegrityError as error:
            raise IntegrityError(
                f"{item.relpath}: the server says that it has it, but {error}: the dataset"
                " is registered and not complete; all its files are kept here",
                uri=dataset.uri,
            ) from error

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
        adopt(self._cache, uri, local, stop)
