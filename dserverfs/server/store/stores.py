"""The stores of all base URIs, and the places of datasets in them.

One store is this server's own; a bucket on another S3 server has a store for
itself. Safe to share between threads.

Other processes may write the registration key of an upload, too. So it is read anew for
whatever is not registered. For a registered dataset it is remembered, for a while only: it may
be deleted, in the bucket too, and uploaded anew.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from dserverfs.base.errors import NotFound, Unsupported
from dserverfs.base.limits import is_uuid
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.layout import DatasetKeys
from dserverfs.server.store.signing import Storage, bucket_of

_MAX_PREFIX_BYTES = 1024  # what S3 allows for a whole key
_MAX_REMEMBERED = 100_000  # prefixes, about 200 bytes each
_REMEMBERED_S = 60.0


class Place(NamedTuple):
    """Where one dataset is."""

    store: ObjectStore
    bucket: str
    keys: DatasetKeys


class Stores:
    """The stores of all base URIs."""

    def __init__(
        self, own: ObjectStore | None, find_foreign: Callable[[str], Storage | None]
    ) -> None:
        """`find_foreign` knows buckets elsewhere; `own` has all others, or is None."""
        self._own = own
        self._find_foreign = find_foreign
        self._lock = threading.Lock()
        # Found out once for each bucket: data do not move while a server runs.
        self._foreign: dict[str, ObjectStore | None] = {}
        self._prefixes: OrderedDict[str, tuple[str, float]] = OrderedDict()  # with their end

    def of(self, base_uri: str) -> ObjectStore:
        """Return the store of a base URI; raises Unsupported if there is none."""
        store = self._foreign_store(base_uri) or self._own
        if store is None:
            raise Unsupported(
                f"{base_uri}: this server runs without a store for it; restart dserverfs serve,"
                f" or set DTOOL_S3_ENDPOINT_{bucket_of(base_uri)} and its keys",
                uri=base_uri,
            )
        return store

    def is_foreign(self, base_uri: str) -> bool:
        """Return whether it is on another S3 server, where others may write, too."""
        return self._foreign_store(base_uri) is not None

    def ensure_bucket(self, base_uri: str) -> None:
        """Make the bucket if it is ours to make; raises NotFound if it is not and is missing."""
        store, bucket = self.of(base_uri), bucket_of(base_uri)
        if self.is_foreign(base_uri):
            store.require_bucket(bucket)
        else:
            store.ensure_bucket(bucket)

    def new_place(self, base_uri: str, uuid: str, *, below: str = "") -> Place:
        """Return where a new dataset goes, `below` the prefix; raises NotFound for no uuid."""
        _require_uuid(base_uri, uuid)
        store = self.of(base_uri)
        return Place(store, bucket_of(base_uri), DatasetKeys(store.storage.prefix + below, uuid))

    def place(self, uri: str) -> Place:
        """Return where a registered dataset is; as `place_now`, but for what is remembered."""
        base_uri, _, uuid = uri.rpartition("/")
        with self._lock:
            prefix, end_s = self._prefixes.get(uri, ("", 0.0))
        if time.monotonic() < end_s:
            return Place(self.of(base_uri), bucket_of(base_uri), DatasetKeys(prefix, uuid))
        known = self.known_place(uri)
        if known is None:
            return self.new_place(base_uri, uuid)
        self._remember(uri, known.keys.prefix)
        return known

    def place_now(self, uri: str) -> Place:
        """Return where a dataset is; without a registration key, where a new one would be.

        Raises NotFound for a name that is no uuid: `..` would be another bucket.
        """
        base_uri, _, uuid = uri.rpartition("/")
        return self.known_place(uri) or self.new_place(base_uri, uuid)

    def known_place(self, uri: str) -> Place | None:
        """Return where a dataset is: below the prefix that its registration key holds.

        Like dtool-s3, which wrote it with the prefix that was configured then. None without
        that key. Raises NotFound for a name that is no uuid.
        """
        base_uri, _, uuid = uri.rpartition("/")
        _require_uuid(base_uri, uuid)
        store, bucket = self.of(base_uri), bucket_of(base_uri)
        prefix = self._read_prefix(store, bucket, uuid)
        return None if prefix is None else Place(store, bucket, DatasetKeys(prefix, uuid))

    def forget(self, uri: str) -> None:
        """Drop the place of a dataset that is deleted or about to be written anew."""
        with self._lock:
            self._prefixes.pop(uri, None)

    def disconnect(self) -> None:
        """Drop all connections elsewhere; those that are needed again are made anew.

        A process that forks may not leave them to its children, which would share them.
        """
        with self._lock:
            stores = [store for store in self._foreign.values() if store is not None]
            self._foreign.clear()
        for store in stores:
            store.client.close()

    def _foreign_store(self, base_uri: str) -> ObjectStore | None:
        bucket = bucket_of(base_uri)
        with self._lock:
            if bucket in self._foreign:
                return self._foreign[bucket]
            storage = self._find_foreign(bucket)
            store = None if storage is None else ObjectStore(storage)
            if store is not None or self._own is not None:  # else it may be named any time
                self._foreign[bucket] = store
            return store

    def _read_prefix(self, store: ObjectStore, bucket: str, uuid: str) -> str | None:
        key = DatasetKeys("", uuid).registration
        try:
            content = store.read(bucket, key, limit_in_bytes=_MAX_PREFIX_BYTES)
        except NotFound:
            return None
        return content.decode(errors="replace")

    def _remember(self, uri: str, prefix: str) -> None:
        with self._lock:
            self._prefixes[uri] = prefix, time.monotonic() + _REMEMBERED_S
            self._prefixes.move_to_end(uri)
            while len(self._prefixes) > _MAX_REMEMBERED:
                self._prefixes.popitem(last=False)


def _require_uuid(base_uri: str, uuid: str) -> None:
    if not is_uuid(uuid):
        raise NotFound(f"{base_uri}/{uuid} is no dataset's: it does not end in a uuid")
