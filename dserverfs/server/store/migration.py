"""The migration of a bucket from the embedded store to another S3 server.

In three steps: `survey` lists both sides; `tasks` are the objects to be copied, which the
caller has done by its threads; `finish` deletes there what was copied and is gone here. The
source is only read. Objects keep their keys, below the prefix of the target, which goes into
the registration keys as well. These come last: whoever lists datasets there sees whole ones.

Each object is compared with what it has to be while it is read: an item with the hash of
its manifest, another object with its ETag. One that is damaged is not copied, and named.

A frozen dataset that was copied and is here no longer is not deleted there: it ends the run.

The state after a stop at any moment: objects there, each whole; and their rows in
`migration_record`, which the next run goes by.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.disk_tables import DiskDict
from dserverfs.base.errors import (
    Cancelled,
    Conflict,
    DserverfsError,
    IntegrityError,
    NotFound,
    PermissionDenied,
    ProtocolError,
    Unreachable,
    UsageError,
)
from dserverfs.base.hashes import Buffer, Taker, hasher_of
from dserverfs.base.item_stream import Items, ItemStream
from dserverfs.base.locks import locked_within, open_lock, try_lock
from dserverfs.base.printable import counted
from dserverfs.server.store import object_copy
from dserverfs.server.store.bucket import ObjectStore, StoredObject
from dserverfs.server.store.layout import REGISTRATION_PREFIX
from dserverfs.server.store.migration_record import Counts, MigrationRecord, Waiting
from dserverfs.server.store.object_copy import Damaged, Gone, Side, Wanted
from dserverfs.server.store.seaweedfs import SeaweedFS
from dserverfs.server.store.settings import ServerSettings
from dserverfs.server.store.signals import Signals

_ITEM = re.compile(r"(?P<dataset>.*[0-9a-f-]{36}/)data/(?P<identifier>[0-9a-f]{40})\Z")
_PROBE = "dserverfs-migrate-probe-"
# SeaweedFS tries for some seconds to read what is damaged, before it says so.
_ATTEMPTS_HERE = 1


class Survey(NamedTuple):
    """What there is to do."""

    all: Counts
    waiting: Counts
    gone: int  # copied earlier, and here no longer


class Task(NamedTuple):
    """One object, and the work to be done with it."""

    name: str  # for messages
    size_in_bytes: int
    work: Callable[[Taker], None]  # tells the Taker each piece; raises DserverfsError


class Migration:
    """The migration of one bucket. Its tasks may be done by several threads."""

    def __init__(self, source: Side, target: Side, record: MigrationRecord) -> None:
        self.source = source
        self.target = target
        self._record = record
        self._prefix = target.store.storage.prefix
        self._stopped = threading.Event()
        self.fault: DserverfsError | None = None  # for which all tasks have ended

    def require_writable(self) -> None:
        """Raise PermissionDenied, Unreachable or UsageError unless objects can be written there."""
        key = f"{self._prefix}{_PROBE}{secrets.token_hex(8)}"
        place = {"Bucket": self.target.bucket, "Key": key}
        client = self.target.store.client
        with self.target.reporting("a first object"):
            client.put_object(**place, Body=b"")
        try:
            is_same = any(self.source.store.iter_objects(self.source.bucket, key))
        finally:
            with self.target.reporting("the deletion of a first object"):
                client.delete_object(**place)
                self._delete_probes_of_killed_runs()
        if is_same:
            raise UsageError(f"{self.target.name} is the embedded store itself")

    def _delete_probes_of_killed_runs(self) -> None:
        store, bucket = self.target.store, self.target.bucket
        left = [
            each.key
            for each in store.iter_objects(bucket, self._prefix + _PROBE)
            if not each.size_in_bytes
        ]
        store.delete(bucket, left)

    def survey(self, on_count: Callable[[str, int], None]) -> Survey:
        """List both sides; raises Conflict if others have changed what was copied there."""
        self._record.list_source(_counted(self._here(), "listing here", on_count))
        self._record.list_target(_counted(self._there(), "listing there", on_count))
        number, key = self._record.changed_there()
        if number:
            raise Conflict(
                f"{self.target.name}: what was copied there was changed or deleted:"
                f" {counted(number, 'object')}, such as {key}; if a server uses that"
                " bucket by now, there is nothing left to be done"
            )
        gone = self._record.gone_here()
        self._require_datasets(gone)
        return Survey(self._record.all(), self._record.waiting(), len(gone))

    def _require_datasets(self, gone: Sequence[str]) -> None:
        """Raise Conflict if frozen datasets are here no longer: the copies may be the only ones."""
        lost = [key for key in gone if key.endswith("/manifest.json")]
        if lost:
            raise Conflict(
                "copied before, and not in the bucket here any more:"
                f" {counted(len(lost), 'dataset')}, such as {lost[0]}; nothing is deleted in"
                f" {self.target.name}: if that is right, delete all of them there, else look at"
                " the store here"
            )

    def copies(self) -> Iterator[Task]:
        """Yield what is to be copied; registrations last. None comes after a fault."""
        yield from self._tasks(self._record.iter_waiting, self._copy)

    def comparisons(self) -> Iterator[Task]:
        """Yield a comparison of each object of the source with the target's."""
        yield from self._tasks(self._record.iter_all, self._compare)

    def stop(self) -> None:
        """Have no other task come, and those that are under way end soon; from any thread."""
        self._stopped.set()

    def finish(self) -> int:
        """Delete there what a migration copied and the source has no longer; return the number."""
        gone = self._record.gone_here()
        self.target.store.delete(self.target.bucket, map(self._key_there, gone))
        for key in gone:
            self._record.forget(key)
        return len(gone)

    def _here(self) -> Iterator[StoredObject]:
        for stored in self.source.store.iter_objects(self.source.bucket, ""):
            if not stored.key.startswith(_PROBE):
                yield stored

    def _there(self) -> Iterator[StoredObject]:
        """Yield what is there, by the keys that it has here."""
        listed = self.target.store.iter_objects(self.target.bucket, self._prefix)
        if not self._prefix:
            yield from listed
            return
        for stored in listed:
            key = stored.key.removeprefix(self._prefix)
            if not key.startswith(REGISTRATION_PREFIX):
                yield stored._replace(key=key)
        yield from self.target.store.iter_objects(self.target.bucket, REGISTRATION_PREFIX)

    def _key_there(self, key: str) -> str:
        return key if key.startswith(REGISTRATION_PREFIX) else self._prefix + key

    def _tasks(
        self,
        listed: Callable[[], Iterator[Waiting]],
        work: Callable[[Waiting, Wanted, Taker], None],
    ) -> Iterator[Task]:
        for is_registration in (False, True):
            hashes = _ManifestHashes(self.source)
            for waiting in listed():
                if waiting.key.startswith(REGISTRATION_PREFIX) is not is_registration:
                    continue
                if self._stopped.is_set():
                    return
                wanted = hashes.wanted(waiting)
                yield self._task(waiting, wanted, work)

    def _task(
        self, waiting: Waiting, wanted: Wanted, work: Callable[[Waiting, Wanted, Taker], None]
    ) -> Task:
        def guarded(so_far: Taker) -> None:
            if self._stopped.is_set():
                return
            try:
                work(waiting, wanted, _Stoppable(so_far, self._stopped))
            except Cancelled:
                return
            except (PermissionDenied, Unreachable) as error:
                self.fault = self.fault or error
                self._stopped.set()

        return Task(waiting.key, waiting.size_in_bytes, guarded)

    def _copy(self, waiting: Waiting, wanted: Wanted, so_far: Taker) -> None:
        if waiting.target_etag is not None and not waiting.is_ours:
            self._adopt(waiting, wanted, so_far)
            return
        self._record.begin(waiting)
        try:
            etag = object_copy.copy(
                self.source,
                self.target,
                waiting.key,
                self._key_there(waiting.key),
                wanted,
                prefix=self._prefix_in(waiting.key),
                so_far=so_far,
            )
        except Gone:  # deleted meanwhile; the next run sees that
            return
        self._record.done(waiting, etag)

    def _compare(self, waiting: Waiting, wanted: Wanted, so_far: Taker) -> None:
        if waiting.target_etag is None:
            raise NotFound(f"it is not in {self.target.name}")
        object_copy.require_same(
            self.source,
            self.target,
            waiting.key,
            self._key_there(waiting.key),
            wanted,
            prefix=self._prefix_in(waiting.key),
            so_far=so_far,
        )

    def _adopt(self, waiting: Waiting, wanted: Wanted, so_far: Taker) -> None:
        """Take an object that others have put there for a copy, if it is the same."""
        try:
            self._compare(waiting, wanted, so_far)
        except Damaged:
            raise
        except IntegrityError as error:
            raise Conflict(f"{error}; it is not written over: delete it there first") from error
        self._record.done(waiting, waiting.target_etag or "")

    def _prefix_in(self, key: str) -> str:
        """Return what goes before the object's content: a registration key holds the prefix."""
        return self._prefix if key.startswith(REGISTRATION_PREFIX) else ""


class _Stoppable:
    """A Taker that raises Cancelled when a migration was stopped, or has met a fault."""

    def __init__(self, taker: Taker, stopped: threading.Event) -> None:
        self._taker = taker
        self._stopped = stopped

    def update(self, data: Buffer, /) -> None:
        if self._stopped.is_set():
            raise Cancelled("the migration was stopped")
        self._taker.update(data)


class _ManifestHashes:
    """What items have to be, by the manifests of their datasets; one of these is at hand."""

    def __init__(self, source: Side) -> None:
        self._source = source
        self._dataset = ""
        self._hash_function: str | None = None
        self._hashes = DiskDict()

    def wanted(self, waiting: Waiting) -> Wanted:
        plain = Wanted(waiting.size_in_bytes, waiting.etag)
        match = _ITEM.match(waiting.key)
        if match is None:
            return plain
        if match["dataset"] != self._dataset:
            self._dataset = match["dataset"]
            self._load(f"{self._dataset}manifest.json")
        if self._hash_function is None or match["identifier"] not in self._hashes:
            return plain
        hash = self._hashes[match["identifier"]]
        return plain._replace(hash_function=self._hash_function, hash=hash)

    def _load(self, key: str) -> None:
        """Read a manifest; without one, as of an upload under way, nothing is known."""
        self._hash_function, self._hashes = None, DiskDict()
        stream = ItemStream(key)
        try:
            for piece in object_copy.pieces(self._source, key):
                self._take(stream.feed(piece))
            self._take(stream.close())
            hash_function = str(stream.beside["hash_function"])
        except (NotFound, IntegrityError, ProtocolError, KeyError, TypeError, AttributeError):
            return  # it is an object like others, and is found damaged itself
        if hasher_of(hash_function) is not None:
            self._hash_function = hash_function

    def _take(self, items: Items) -> None:
        for identifier, item in items.items():
            self._hashes[identifier] = str(item["hash"]).lower()


@contextmanager
def opened(
    directory: Path, bucket: str, settings: ServerSettings, record: Path
) -> Iterator[tuple[Migration, bool]]:
    """Give the migration of a bucket to where its settings lead, and whether a server runs here.

    If none does, `weed` is run on the `directory` of the store until the end of the block.
    Main thread only. Raises UsageError without such settings, Conflict if another process
    migrates this bucket, and NotFound, Unreachable or PermissionDenied without a bucket there.
    """
    target = settings.storage(bucket)
    if target is None:
        raise UsageError(
            f"s3://{bucket}: say where to: set DTOOL_S3_ENDPOINT_{bucket},"
            f" DTOOL_S3_ACCESS_KEY_ID_{bucket} and DTOOL_S3_SECRET_ACCESS_KEY_{bucket}"
        )
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_within(record.with_suffix(".lock"), 0.0))
        except BlockingIOError as error:
            raise Conflict(f"another process migrates s3://{bucket}; wait for its end") from error
        there = Side(ObjectStore(target), bucket)
        _require_bucket(there)
        own, is_running = _embedded(directory, bucket, stack)
        own.require_bucket(bucket)
        place = f"{target.endpoint} {bucket} {target.prefix}"
        opened_record = stack.enter_context(MigrationRecord.opened(record, place))
        yield Migration(Side(own, bucket), there, opened_record), is_running


def _require_bucket(there: Side) -> None:
    try:
        there.require()
    except NotFound as error:
        raise NotFound(f"{there.name}: there is no such bucket; make it there") from error


def _embedded(directory: Path, bucket: str, stack: ExitStack) -> tuple[ObjectStore, bool]:
    """Return the embedded store, started unless it runs, and whether it ran."""
    seaweedfs = SeaweedFS(directory, bucket=bucket)
    if is_running := _is_used(directory):
        storage = seaweedfs.storage_of_running()
    else:
        # Not entered: it only waits, and leaves signals to Python.
        signals = stack.enter_context(closing(Signals()))
        stack.enter_context(seaweedfs.running(signals))
        storage = seaweedfs.wait_ready(signals).storage
    return ObjectStore(storage, attempts=_ATTEMPTS_HERE), is_running


def _is_used(directory: Path) -> bool:
    """Return whether a `weed` runs on the directory of a store."""
    lock = open_lock(directory / "lock")
    try:
        return not try_lock(lock)
    finally:
        os.close(lock)


def _counted(
    objects: Iterator[StoredObject], what: str, on_count: Callable[[str, int], None]
) -> Iterator[StoredObject]:
    for number, stored in enumerate(objects, 1):
        if number % 1000 == 0:
            on_count(what, number)
        yield stored
