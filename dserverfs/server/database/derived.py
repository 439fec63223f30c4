"""Items of an upload that the dataset it was derived from has as well: the store copies them.

That dataset is the one of the same base URI which the annotation `source_dataset_uuid` names, as
dtoolcore and `dserverfs derive` write it. An item is the same if path, size and hash are. What
the store has copied counts as stored when it was compared as if it had been sent; the rest is
sent. A stop half way leaves copies in the place of a pending upload.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from dservercore import UnknownURIError

from dserverfs.base.errors import DserverfsError
from dserverfs.base.limits import is_uuid
from dserverfs.base.model import Identifier
from dserverfs.server.database.completing import Stored
from dserverfs.server.database.retrieve import registered
from dserverfs.server.database.uploads import PendingUpload
from dserverfs.server.store.stores import Place, Stores

logger = logging.getLogger(__name__)

ANNOTATION = "source_dataset_uuid"
COPY_S = 20.0  # of the 60 s for which clients wait, at least; the last copy may take as long again
_THREADS = 8


def source_of(upload: PendingUpload) -> str | None:
    """Return the URI of the dataset that an upload says it was derived from, if it does."""
    uuid = upload.request.annotations.get(ANNOTATION)
    return f"{upload.base_uri}/{uuid}" if isinstance(uuid, str) and is_uuid(uuid) else None


def copy_items(
    stores: Stores, source: str, place: Place, upload: PendingUpload, there: Stored
) -> int:
    """Copy what an upload lacks from its source; return how many items were copied.

    Only for who may read the source. What cannot be copied, or not in time, is left to the client.
    """
    end_s = time.monotonic() + COPY_S
    try:
        same = list(_same(source, place, upload, there))
        origin = stores.place(source)
    except (UnknownURIError, DserverfsError):
        return 0

    def copy(identifier: Identifier) -> bool:
        if time.monotonic() > end_s:
            return False
        try:
            place.store.copy(
                place.bucket, origin.keys.item(identifier), place.keys.item(identifier)
            )
        except DserverfsError as error:
            logger.info("%s: %s is not copied from %s: %s", upload.uri, identifier, source, error)
            return False
        return True

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="copy") as pool:
        return sum(pool.map(copy, same))


def _same(source: str, place: Place, upload: PendingUpload, there: Stored) -> Iterator[Identifier]:
    """Yield the items that an upload lacks and its source has; raises UnknownURIError."""
    announced = upload.request.items
    limit = place.store.storage.max_put_bytes  # and of S3 for one copy
    for name, entry in registered().iter_items(source):
        identifier = Identifier(name)
        item = announced.get(identifier)
        if item is None or identifier in there.complete:
            continue
        has = (entry.get("relpath"), entry.get("size_in_bytes"), entry.get("hash"))
        if has == (item.relpath, item.size_in_bytes, item.md5) and item.size_in_bytes <= limit:
            yield identifier
