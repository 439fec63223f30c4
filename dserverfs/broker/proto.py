"""A proto dataset in the local staging area, in the form that dtoolcore wants.

One that dtool makes has dtool's own layout on disk from the start, and is frozen
by dtool alone. One that was made in a mount may have its items at the top; it
can be listed, added to and frozen, and its metadata waits for the freeze.

It stays a proto dataset until the server has it: the metadata with which dtoolcore
freezes it is written only in `finish`, which uploads it. Items are moved into place
whole. Thread-safe as far as dtoolcore is.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import dtoolcore
from dtoolcore.storagebroker import DiskStorageBrokerValidationWarning

from dserverfs.base.dtool_layout import (
    ADMIN_METADATA,
    ANNOTATIONS,
    AT_THE_TOP,
    DATA,
    FRAGMENTS,
    MANIFEST,
    METADATA,
    OVERLAYS,
    README,
    TAGS,
    read_json,
)
from dserverfs.base.durable_files import written_beside
from dserverfs.base.errors import CannotHold, NameTaken, NameTooLong, NotFound, NotUTF8, UsageError
from dserverfs.base.excluded import NOTHING, Excluded
from dserverfs.base.limits import (
    MAX_COMPONENT_BYTES,
    MAX_NAME_LENGTH,
    MAX_STORED_RELPATH_BYTES,
    name_is_valid,
    relpath_can_be_stored,
    relpath_is_usable,
    usable_date,
)
from dserverfs.base.local_files import files_below
from dserverfs.base.model import Dataset, identifier_of, seconds_of
from dserverfs.base.progress import Progress
from dserverfs.broker.ahead import Ahead, Bounds
from dserverfs.client import Client
from dserverfs.writing.freeze_job import FreezeResult
from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.staging.file_hashes import THREADS, Hashes
from dserverfs.writing.staging.states import State
from dserverfs.writing.staging.survey import Layout

BY_DTOOL = "dtool made it, and dtool freeze freezes it"
_NAMED_BY_FILE = frozenset(Path(kind).name for kind in (OVERLAYS, ANNOTATIONS))
_HASHING = Bounds(threads=THREADS, keys=64, cost=1 << 62)  # a hash is all that is kept
# The server was asked to register it: nothing in it changes any more.
_SETTLED = (State.COMPLETING, State.FROZEN)


def create(
    staging: Staging, base_uri: str, uuid: str, admin_metadata: Mapping[str, Any]
) -> StagedDataset:
    """Make a proto dataset; names need not be unique in dtool, directories of a mount must."""
    name, creator = str(admin_metadata["name"]), str(admin_metadata["creator_username"])
    try:
        staged = staging.create(base_uri, name, creator, id=uuid, unarmed=BY_DTOOL)
    except NameTaken:
        name = f"{name[: MAX_NAME_LENGTH - 9]}-{uuid[:8]}"
        staged = staging.create(base_uri, name, creator, id=uuid, unarmed=BY_DTOOL)
    for directory in (DATA, METADATA, OVERLAYS, ANNOTATIONS, TAGS):
        (staged.tree / directory).mkdir()
    return staged


def uuid_of(staged: StagedDataset) -> str:
    """Return the uuid that it will have as a dataset: its files may have one."""
    uuid = _kept_admin_metadata(staged).get("uuid")
    return str(uuid).lower() if isinstance(uuid, str) else staged.id


class ProtoDataset:
    """One staged dataset."""

    def __init__(self, staged: StagedDataset, client: Client) -> None:
        self.staged = staged
        self._client = client
        self._tree = staged.tree
        self._frozen_admin_metadata: dict[str, Any] | None = None
        self._hashing: Ahead[str, str] | None = None
        self._hashes: Hashes | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            hashing, self._hashing = self._hashing, None
            hashes, self._hashes = self._hashes, None
        if hashing is not None:
            hashing.close()
        if hashes is not None:
            hashes.close()

    # Metadata

    def admin_metadata(self) -> dict[str, Any]:
        """Return the content of `.dtool/dtool`, of type `protodataset` until it is registered."""
        record = self.staged.record
        return {
            "uuid": record.id,
            "dtoolcore_version": dtoolcore.__version__,
            "name": record.name,
            "creator_username": record.creator_username,
            "created_at": record.created_at,
            **_kept_admin_metadata(self.staged),
            "type": "protodataset",
        }

    def put_admin_metadata(self, admin_metadata: Mapping[str, Any]) -> None:
        """Keep it; one that says `dataset` is only kept by `finish`."""
        if admin_metadata["type"] == "dataset":
            self._frozen_admin_metadata = dict(admin_metadata)
            return
        is_named = not self._is_of_dtool_layout() or _kept_admin_metadata(self.staged)
        if is_named and admin_metadata["name"] != self.admin_metadata()["name"]:
            self._rename(str(admin_metadata["name"]))
        if self._is_of_dtool_layout():
            self.put_text(ADMIN_METADATA, json.dumps(dict(admin_metadata)))

    def manifest(self) -> dict[str, Any]:
        """Return the manifest; a proto dataset has one only while it is being frozen."""
        manifest: dict[str, Any] = json.loads(self.get_text(MANIFEST))
        return manifest

    def get_text(self, key: str) -> str:
        if key == ADMIN_METADATA:
            return json.dumps(self.admin_metadata())
        try:
            return (self._tree / key).read_text("utf-8")
        except FileNotFoundError as error:
            if key == README:
                return ""
            raise NotFound(f"{self.staged.record.name}: has no {key}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise self._unreadable(self._tree / key, error) from error

    def put_text(self, key: str, text: str) -> None:
        if self.staged.record.state in _SETTLED:
            return  # dtool freeze is run again: it is described, and only has to be registered
        if key.startswith(f"{METADATA}/") and not self._is_of_dtool_layout():
            if key == MANIFEST:
                return  # made again of the same files when it is frozen
            raise UsageError(
                f"{self.staged.record.name}: was made in a mount, and its files are the items:"
                f" {key} has a place only if these are in data/"
            )
        path = self._tree / key
        if path.parent.name in _NAMED_BY_FILE and "." in path.name.removesuffix(".json"):
            raise UsageError(f"{path.stem!r}: dtool's S3 broker cannot read a name with a dot")
        if not relpath_is_usable(key) or len(path.name.encode()) > MAX_COMPONENT_BYTES:
            raise UsageError(f"{key!r}: cannot be a file")
        with self._changing():
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._incoming() as (file, incoming):
                file.write(text.encode("utf-8"))
                file.flush()
                os.replace(incoming, path)

    def delete_key(self, key: str) -> None:
        with self._changing():
            (self._tree / key).unlink(missing_ok=True)

    def names(self, kind: str) -> list[str]:
        """Return the names of all overlays or annotations."""
        found = self._listed(self._tree / METADATA / kind)
        return sorted(name.removesuffix(".json") for name in found)

    def tags(self) -> list[str]:
        return self._listed(self._tree / TAGS)

    # Items

    def put_item(self, source: Path, relpath: str) -> None:
        """Copy a file, with its time; a file that is replaced is so at once."""
        target = self.place_of(relpath)
        excluded = self._excluded()
        if any(part in excluded for part in relpath.split("/")):
            raise UsageError(
                f"{self.staged.record.name}: was made in a mount, where DSERVER_EXCLUDE says that"
                f" {relpath!r} is no item"
            )
        with self._changing():
            try:
                with self._incoming() as (file, incoming), source.open("rb") as content:
                    status = os.fstat(content.fileno())
                    if not stat.S_ISREG(status.st_mode):
                        raise CannotHold(f"{source}: is not a plain file")
                    _copy(content, file)
                    os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(incoming, target)
            except OSError as error:
                raise UsageError(
                    f"{source}: cannot be added as {relpath!r}: {error.strerror}"
                    f" ({self.staged.directory})"
                ) from error

    def handles(self) -> list[str]:
        """Return the relpaths of all items, sorted."""
        root, excluded = self._items_root(), self._excluded()
        if not root.is_dir():
            return []
        try:
            found = [
                relpath
                for relpath, _ in files_below(root)
                if not any(part in excluded for part in relpath.split("/"))
            ]
        except OSError as error:
            raise self._unreadable(root, error) from error
        if root == self._tree:
            found = [r for r in found if r != README and not r.startswith(f"{METADATA}/")]
        for relpath in found:
            if not relpath_is_usable(relpath):
                raise NotUTF8(f"{relpath!r}: is not UTF-8")
        return sorted(found)

    def size(self, handle: str) -> int:
        return self._status(handle).st_size

    def timestamp(self, handle: str) -> float:
        return usable_date(seconds_of(self._status(handle).st_mtime_ns))

    def hash(self, handle: str) -> str:
        """Return an item's MD5, and begin to hash the others."""
        with self._lock:
            if self._hashes is None:
                self._hashes = Hashes(self.staged.directory / "hashes", self._tree).open()
            if self._hashing is None:
                hashes, root = self._hashes, self._items_root()
                self._hashing = Ahead(
                    self.handles(), lambda each: hashes.of(root / each), lambda _: 1, _HASHING
                )
                self._hashing.start()
            hashing = self._hashing
        return hashing.get(handle)

    def item_path(self, identifier: str) -> Path:
        for handle in self.handles():
            if identifier_of(handle) == identifier:
                return self._items_root() / handle
        raise NotFound(f"{self.staged.record.name}: has no item {identifier}")

    def add_item_metadata(self, handle: str, key: str, value: Any) -> None:
        if not name_is_valid(key):
            raise UsageError(
                f"{key!r}: cannot be an overlay's name: at most 80 of a-z A-Z 0-9 - _ ."
            )
        self.put_text(f"{FRAGMENTS}/{identifier_of(handle)}.{key}.json", json.dumps(value))

    def item_metadata(self, handle: str) -> dict[str, Any]:
        prefix = f"{identifier_of(handle)}."
        metadata = {}
        for name in self._listed(self._tree / FRAGMENTS):
            if name.startswith(prefix) and name.endswith(".json"):
                key = name[len(prefix) : -len(".json")]
                metadata[key] = json.loads((self._tree / FRAGMENTS / name).read_text("utf-8"))
        return metadata

    # Freezing

    def prepare(self) -> None:
        """Refuse what dtool's disk broker refuses to freeze."""
        if not self._is_of_dtool_layout():
            return
        for name in self._listed(self._tree):
            if name not in AT_THE_TOP:
                raise DiskStorageBrokerValidationWarning(
                    f"Rogue content in base of dataset: {name}"
                )

    def finish(
        self, watch: Callable[[Future[FreezeResult], Callable[[], Progress | None]], None]
    ) -> Dataset:
        """Upload and register it; `watch` returns when that is done, or raises to stop it.

        After a failure it is a proto dataset, which can be frozen again.
        """
        before = _kept_admin_metadata(self.staged)
        layout = None
        if self._is_of_dtool_layout():
            layout = Layout.DTOOL
            if self._frozen_admin_metadata is not None:
                self.put_text(ADMIN_METADATA, json.dumps(self._frozen_admin_metadata))
        self.close()
        job = self._client.freezer.freeze(self.staged, layout)
        try:
            watch(job, lambda: self._client.freezer.progress(self.staged))
            job.result()
        except BaseException:
            if before and self.staged.record.state in (State.OPEN, State.FAILED):
                self.put_text(ADMIN_METADATA, json.dumps(before))
            raise
        assert self.staged.frozen_as is not None
        return self.staged.frozen_as

    # Places

    def _is_of_dtool_layout(self) -> bool:
        return (self._tree / METADATA).is_dir() or (self._tree / DATA).is_dir()

    def _items_root(self) -> Path:
        return self._tree / DATA if self._is_of_dtool_layout() else self._tree

    def _excluded(self) -> Excluded:
        """Return the names that are no items: of what dtool made, all files are named by users."""
        return NOTHING if _kept_admin_metadata(self.staged) else self.staged.excluded

    def place_of(self, relpath: str) -> Path:
        """Return where an item of that relpath goes; raises UsageError if it cannot be one's."""
        if not relpath_is_usable(relpath):
            raise UsageError(
                f"{relpath!r}: cannot be an item's path: it has to be relative, without . and ..,"
                f" and each part of it UTF-8 of at most {MAX_COMPONENT_BYTES} bytes"
            )
        if not relpath_can_be_stored(relpath):
            raise NameTooLong(f"{relpath!r}: is longer than {MAX_STORED_RELPATH_BYTES} bytes")
        return self._items_root() / relpath

    def _status(self, handle: str) -> os.stat_result:
        try:
            return (self._items_root() / handle).stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"{self.staged.record.name}: has no item {handle!r}") from error
        except OSError as error:
            raise self._unreadable(self._items_root() / handle, error) from error

    def _unreadable(self, path: Path, error: Exception) -> UsageError:
        problem = (isinstance(error, OSError) and error.strerror) or error
        return UsageError(f"{self.staged.record.name}: {path}: cannot be read: {problem}")

    def _rename(self, name: str) -> None:
        try:
            self._client.staging.rename(self.staged, name)
        except NameTaken:
            unique = f"{name[: MAX_NAME_LENGTH - 9]}-{self.staged.id[:8]}"
            self._client.staging.rename(self.staged, unique)

    def _listed(self, directory: Path) -> list[str]:
        try:
            return sorted(os.listdir(directory))
        except FileNotFoundError:
            return []

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Keep it from being frozen for the time of a change."""
        with self.staged.changing():
            yield
        with self._lock:
            hashing, self._hashing = self._hashing, None
        if hashing is not None:
            hashing.close()  # its list of items is an old one

    def _incoming(self) -> AbstractContextManager[tuple[IO[bytes], Path]]:
        """Give a new file beside the tree, to be renamed when it is whole."""
        return written_beside(self.staged.directory / "incoming", mode=0o666)


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    """Copy a file; within a file system that can, without copying its bytes."""
    copied = 0
    try:
        while count := os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
            copied += count
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
    if copied and copied == os.fstat(source.fileno()).st_size:
        return
    # Also of files that do not know their size, as those of /proc.
    source.seek(0)
    target.truncate(0)
    target.seek(0)
    shutil.copyfileobj(source, target, 1 << 20)
    target.flush()


def _kept_admin_metadata(staged: StagedDataset) -> dict[str, Any]:
    """Return the content of `.dtool/dtool`, empty if there is none."""
    try:
        return dict(read_json(staged.tree / ADMIN_METADATA))
    except UsageError:
        return {}
