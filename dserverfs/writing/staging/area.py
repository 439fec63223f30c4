"""The staging area: proto datasets as real local directories, until they are frozen.

Used by the tree, the freezer and the broker. Owns the list of staged datasets, the
state of each and the process that may change it; its owner writes the files in its
directory. Thread-safe. Blocking, but only on the local disk.

On disk, below `directory` (0700):

    <server>/<base URI>/names.lock    held while a name is taken
    <server>/<base URI>/<id>/state    JSON, replaced atomically at each move
    <server>/<base URI>/<id>/lock     held by its owner, with host and boot id
    <server>/<base URI>/<id>/tree/    the user's files
    <server>/<base URI>/<id>/...      what freezing keeps there (hashes, the sealed description)

After a crash: `.new-<id>` was never shown, `.gone-<id>` is discarded or frozen; both
are deleted at the next start. Everything else is what its state says: open ones stay
open and are not armed, the freeze of sealed and uploading ones goes on.
"""

from __future__ import annotations

import logging
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable
from pathlib import Path

from dserverfs.base import utf8_names
from dserverfs.base.directories import private_directory
from dserverfs.base.durable_files import sync_directory
from dserverfs.base.errors import Conflict, DserverfsError, LocalDiskError, NameTaken, UsageError
from dserverfs.base.excluded import NOTHING, Excluded
from dserverfs.base.limits import name_is_valid
from dserverfs.base.local_files import make_private, subdirectories
from dserverfs.base.locks import locked
from dserverfs.writing.staging.dataset import (
    GONE,
    TREE,
    StagedDataset,
    delete_tree,
    read_record,
    write_record,
)
from dserverfs.writing.staging.states import Record

logger = logging.getLogger(__name__)

OPTION = "--staging-dir or DSERVER_STAGING_DIR"
_NAMES = "names.lock"
_NEW = ".new-"


class Staging:
    """The staged datasets of one server."""

    def __init__(
        self,
        directory: Path,
        server: str,
        *,
        excluded: Excluded = NOTHING,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`excluded` are names that do not become items."""
        self.directory = directory
        self._excluded = excluded
        self._clock_s = clock_s
        self._root = directory / urllib.parse.quote(server, safe="")
        self._server = server
        self._lock = threading.Lock()
        self._known: dict[Path, StagedDataset] = {}
        self._unusable: dict[Path, str] = {}
        self._complained: dict[Path, str] = {}

    def open(self) -> Staging:
        """Make the directory and delete what a crash left; raises UsageError."""
        private_directory(self.directory, OPTION)
        private_directory(self._root, OPTION)
        for base in subdirectories(self._root):
            try:
                with locked(base / _NAMES):
                    for path in subdirectories(base):
                        if path.name.startswith((_NEW, GONE)):
                            delete_tree(path)
            except OSError as error:
                logger.warning("%s: what a crash left there is not deleted: %s", base, error)
        return self

    def close(self) -> None:
        """Let other processes own what this one did."""
        with self._lock:
            for staged in self._known.values():
                staged.disown()

    def base_uris(self) -> list[str]:
        """Return the base URIs in which something is, or was, staged."""
        return [urllib.parse.unquote(path.name) for path in subdirectories(self._root)]

    def datasets(self, base_uri: str) -> list[StagedDataset]:
        """Return what is staged for a base URI, oldest first; what cannot be read is left out.

        Raises LocalDiskError if the directory itself is gone, which says of no dataset
        that it was discarded.
        """
        found = []
        base = self._base(base_uri)
        with self._lock:
            if not base.is_dir() and self._has_staged_locked(base):
                raise LocalDiskError(f"{base}: is gone, with what is staged there")
            try:
                paths = subdirectories(base)
            except OSError as error:
                raise LocalDiskError(f"{base}: cannot be read: {error.strerror}") from error
            for path in paths:
                if path.name.startswith(".") or path.name == _NAMES:
                    continue
                staged = self._known.get(path)
                self._unusable.pop(path, None)
                try:
                    if staged is None:
                        staged = self._dataset(path, read_record(path))
                        self._known[path] = staged
                    staged.reload()
                except (OSError, DserverfsError) as error:
                    if isinstance(error, FileNotFoundError) and not path.exists():
                        continue
                    self._complain(path, error)
                    if staged is None:
                        continue
                found.append(staged)  # as it was, if it cannot be read any more
            # Gone since: another process froze or discarded it.
            for path, staged in list(self._known.items()):
                if staged.record.base_uri == base_uri and staged not in found:
                    del self._known[path]
                    staged._gone = True
        return sorted(found, key=lambda staged: (staged.record.created_at, staged.id))

    def known(self) -> list[StagedDataset]:
        """Return what was listed last, of all base URIs; asks no disk."""
        with self._lock:
            return list(self._known.values())

    def left_behind(self) -> list[StagedDataset]:
        """Return what is on its way to be frozen, not this process' own, and can be read."""
        found = []
        try:
            for base_uri in self.base_uris():
                found += self.datasets(base_uri)
        except (OSError, LocalDiskError) as error:
            logger.debug("%s", error)  # whoever lists them is told
        return [
            staged
            for staged in found
            if staged.is_on_its_way and not staged.is_owned and staged.problem is None
        ]

    def _has_staged_locked(self, base: Path) -> bool:
        return any(path.parent == base and not one.is_over for path, one in self._known.items())

    def create(
        self,
        base_uri: str,
        name: str,
        creator_username: str,
        *,
        id: str | None = None,
        unarmed: str | None = None,
    ) -> StagedDataset:
        """Make an empty one that this process owns; `id` is a uuid, of the dataset to be.

        `unarmed` is a reason why it is to be frozen by command only.
        Raises UsageError for a name dtool refuses, and where names of files are not read as
        UTF-8, NameTaken, Conflict if that id is staged already.
        """
        utf8_names.require()
        require_name(name)
        base = self._base(base_uri)
        private_directory(base, OPTION)
        with locked(base / _NAMES):
            self._require_free(base_uri, name)
            record = Record(
                id=id or str(uuid.uuid4()),
                server=self._server,
                base_uri=base_uri,
                name=name,
                creator_username=creator_username,
                created_at=time.time(),
                armed=unarmed is None,
                reason=unarmed,
            )
            path, new = base / record.id, base / f"{_NEW}{record.id}"
            if path.exists():
                raise Conflict(f"{base_uri}/{record.id}: is staged already in {path}")
            make_private(new / TREE)
            write_record(new, record)
            staged = self._dataset(path, record)
            with self._lock:  # listings from now on have this one, and it owned
                new.rename(path)
                staged._owner.acquire()
                self._known[path] = staged
            sync_directory(base)
        return staged

    def rename(self, staged: StagedDataset, name: str) -> None:
        """Rename an unfrozen one; raises UsageError, NameTaken, Frozen and Conflict."""
        require_name(name)
        staged.require_writable()
        base_uri = staged.record.base_uri
        with locked(self._base(base_uri) / _NAMES):
            self._require_free(base_uri, name)
            staged.rename(name)

    def _require_free(self, base_uri: str, name: str) -> None:
        for staged in self.datasets(base_uri):
            if staged.record.name == name:
                raise NameTaken(
                    f"{base_uri}/{name}: a dataset of that name is staged in {staged.directory}"
                )

    def _dataset(self, path: Path, record: Record) -> StagedDataset:
        return StagedDataset(path, record, self._clock_s, excluded=self._excluded)

    def _base(self, base_uri: str) -> Path:
        return self._root / urllib.parse.quote(base_uri, safe="")

    def unusable(self, base_uri: str) -> dict[Path, str]:
        """Return which staged datasets could not be used when they were listed last, and why."""
        base = self._base(base_uri)
        with self._lock:
            return {path: why for path, why in self._unusable.items() if path.parent == base}

    def _complain(self, path: Path, error: Exception) -> None:
        why = f"cannot be used: {error}; what is in {path / TREE} is kept"
        self._unusable[path] = why
        if self._complained.get(path) != why:
            self._complained[path] = why
            logger.warning("%s: is staged, but %s", path, why)


def servers(directory: Path) -> list[str]:
    """Return the servers for which something is, or was, staged below `directory`."""
    return [
        urllib.parse.unquote(path.name)
        for path in subdirectories(directory)
        if not path.name.startswith(".")  # the edits of frozen datasets
    ]


def require_name(name: str) -> None:
    """Raise UsageError unless a new dataset may have that name: dtool's rule, no leading dot."""
    if not name_is_valid(name) or name.startswith("."):
        raise UsageError(
            f"{name!r} cannot be a dataset's name: at most 80 of a-z A-Z 0-9 - _ . and no"
            " dot at the beginning"
        )
