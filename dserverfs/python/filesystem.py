"""`dserver://` for fsspec, and so for pandas, dask, xarray, zarr, pyarrow and all who use it.

Paths are those of `places`; their components are not percent-encoded. A frozen dataset is
read; one that this process makes is read and written. Errors are OSErrors with the errno that a
mount gives; that something is not there is said only where it is certain. Blocking and
thread-safe.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

from fsspec.core import has_magic
from fsspec.spec import AbstractFileSystem
from fsspec.transaction import Transaction
from fsspec.utils import tokenize

from dserverfs.base.dtool_layout import DATA, README
from dserverfs.base.durable_files import replacing_unsynced
from dserverfs.base.errors import Frozen, NotFound, UsageError
from dserverfs.base.model import DserverURI
from dserverfs.python.item_file import ItemFile
from dserverfs.python.items import values_for
from dserverfs.python.new_dataset import NewDataset
from dserverfs.python.os_errors import os_errors
from dserverfs.python.places import (
    Info,
    Place,
    entries_of,
    info_of,
    locate,
    moment,
    readme_of,
)
from dserverfs.python.range_reads import read_ranges
from dserverfs.python.sessions import Access, session_of

COPY_BYTES = 4 * 1024 * 1024


class NewDatasets(Transaction):  # type: ignore[misc]
    """A transaction: the datasets that are begun in it are frozen at its end, or discarded."""

    def __init__(self, fs: AbstractFileSystem, **options: Any) -> None:
        super().__init__(fs, **options)
        self.begun: list[NewDataset] = []
        self.beginning = threading.Lock()

    def complete(self, commit: bool = True) -> None:
        """Freeze or discard all of them, whatever one of them raises; not in a forked process."""
        with contextlib.ExitStack() as ends:
            for each in reversed(self.begun):
                if each.is_own:
                    ends.callback(self._end, each, commit)
            super().complete(commit)

    def _end(self, new: NewDataset, commit: bool) -> None:
        with os_errors(new.name):
            new.freeze() if commit else new.discard()
        self.begun.remove(new)


class DserverFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The datasets of all dservers."""

    protocol: ClassVar[str] = "dserver"
    transaction_type = NewDatasets

    def __init__(
        self,
        verify: str = "complete",
        cache_dir: str | None = None,
        cache_size: int | None = None,
        **storage_options: Any,
    ) -> None:
        """`verify`, `cache_dir` and `cache_size` (bytes) are those of `dserverfs mount`."""
        super().__init__(**storage_options)
        self._options = (verify, cache_dir, cache_size)

    # Looking

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Return the entries of a directory, or a file itself."""
        place = self._place(path)
        with os_errors(place.path):
            own = info_of(place)
            found = [own] if own["type"] == "file" else list(entries_of(place))
        return found if detail else sorted(each["name"] for each in found)

    def info(self, path: str, *, overlays: bool = False, **_: Any) -> Info:
        """Return name, type, size; of an item also identifier, hash and time, of a dataset its URI.

        With `overlays=True` an item's values in all overlays, which the server is asked for.
        """
        place = self._place(path)
        with os_errors(place.path):
            info = info_of(place)
            if overlays and "identifier" in info:
                assert place.dataset is not None
                info["overlays"] = values_for(place.session, place.dataset, info["identifier"])
            return info

    def exists(self, path: str, **_: Any) -> bool:
        """Return whether it is there; raises OSError if that cannot be told."""
        try:
            self.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def isdir(self, path: str) -> bool:
        return self._type(path) == "directory"

    def isfile(self, path: str) -> bool:
        return self._type(path) == "file"

    def walk(self, path: str, maxdepth: int | None = None, **options: Any) -> Iterator[Any]:
        """Walk as fsspec does, but raise what keeps a directory from being read."""
        options.setdefault("on_error", _raise_unless_missing)
        return super().walk(path, maxdepth=maxdepth, **options)  # type: ignore[no-any-return]

    def expand_path(
        self, path: Any, recursive: bool = False, maxdepth: int | None = None, **options: Any
    ) -> list[str]:
        """Expand patterns as fsspec does; what is there under just that name is no pattern."""
        if not isinstance(path, str) or not has_magic(path) or not self.exists(path):
            return list(super().expand_path(path, recursive, maxdepth, **options))
        stripped = self._strip_protocol(path)
        below = self.find(stripped, maxdepth=maxdepth, withdirs=True) if recursive else []
        return sorted({stripped, *below})

    def created(self, path: str) -> Any:
        """Return when the dataset was frozen."""
        place = self._place(path)
        with os_errors(place.path):
            if place.dataset is None:
                raise UsageError(f"{path}: is in no frozen dataset, and has no date of one")
            return moment(place.dataset.frozen_at)

    def modified(self, path: str) -> Any:
        """Return the time of an item, as the manifest has it."""
        info = self.info(path)
        return moment(info["mtime"]) if "mtime" in info else self.created(path)

    def checksum(self, path: str) -> int:
        """Return a number that changes with the content."""
        return int(self.ukey(path), 16)

    def ukey(self, path: str) -> str:
        """Return hex digits that are the same for the same content of an item."""
        info = self.info(path)
        return str(info.get("hash") or tokenize(info))

    def invalidate_cache(self, path: str | None = None) -> None:
        """Have listings fetched anew."""
        super().invalidate_cache(path)
        if path:
            place = self._place(path)
            if place.base_uri is not None:
                place.session.client.catalogue.relist(place.base_uri)

    # Reading

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Any = None,
        **_: Any,
    ) -> Any:
        if mode != "rb":
            return self._new_file(path, mode)
        place = self._place(path)
        with os_errors(place.path):
            if place.new is not None:
                info_of(place)
                return open(place.local, "rb")
            if place.inside == README and place.dataset is not None:
                return io.BytesIO(readme_of(place))
            return self._item_file(place)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """Return bytes [start, end) of a file; negative ones count from its end."""
        (content,) = self.cat_ranges([path], start, end, on_error="raise")
        return content  # type: ignore[no-any-return]

    def cat_ranges(
        self,
        paths: Sequence[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """Return many ranges of bytes, fetched in parallel; errors in their places by default."""
        count = len(paths)
        begins = [starts] * count if starts is None or isinstance(starts, int) else list(starts)
        finishes = [ends] * count if ends is None or isinstance(ends, int) else list(ends)
        if not count == len(begins) == len(finishes):
            raise ValueError("as many starts and ends as paths are needed")
        with contextlib.ExitStack() as stack:
            opened: dict[str, Any] = {}
            for path in dict.fromkeys(paths):
                try:
                    opened[path] = stack.enter_context(self._open(path))
                except OSError as error:
                    if on_error != "return":
                        raise
                    opened[path] = error
            wanted = zip((opened[path] for path in paths), begins, finishes, strict=True)
            return list(read_ranges(wanted, raises=on_error != "return"))

    def cat(
        self, path: Any, recursive: bool = False, on_error: str = "raise", **_: Any
    ) -> bytes | dict[str, Any]:
        """Return the content of a file, or of many by their paths, fetched in parallel."""
        paths = list(self.expand_path(path, recursive=recursive))
        if isinstance(path, str) and paths == [self._strip_protocol(path)]:
            return self.cat_file(paths[0])
        files = [each for each in paths if not self.isdir(each)]
        raises = "raise" if on_error == "raise" else "return"
        found = dict(zip(files, self.cat_ranges(files, None, None, on_error=raises), strict=True))
        if on_error == "omit":
            return {each: got for each, got in found.items() if not isinstance(got, Exception)}
        return found

    def get_file(self, rpath: str, lpath: Any, **_: Any) -> None:
        """Copy a file here; what was there stays until the new one has been read to its end."""
        if self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        if hasattr(lpath, "write"):
            with self._open(rpath) as source:
                shutil.copyfileobj(source, lpath, COPY_BYTES)
            return
        with self._open(rpath) as source:
            os.makedirs(os.path.dirname(lpath) or ".", exist_ok=True)
            with _replacing(lpath) as target:
                shutil.copyfileobj(source, target, COPY_BYTES)

    # Making datasets

    def new_dataset(self, path: str) -> NewDataset:
        """Return a new dataset, HOST/s3/BUCKET/NAME, frozen at the end of a `with` block.

        Until then what is below that path can be read and written, by this process.
        """
        above, _, name = self._strip_protocol(path).rpartition("/")
        with os_errors(path):
            place = locate(above, self._access)
            if place.base_uri is None or place.dataset is not None or place.new is not None:
                raise UsageError(f"{path}: a new dataset is HOST/s3/BUCKET/NAME")
            return NewDataset(place.access, place.session.create(place.base_uri, name))

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        place = self._place_to_write(path)
        with os_errors(place.path), self._changing(place):
            if place.inside or not place.local.is_dir():
                (os.makedirs if create_parents else os.mkdir)(place.local)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        place = self._place_to_write(path)
        with os_errors(place.path), self._changing(place):
            os.makedirs(place.local, exist_ok=exist_ok or not place.inside)

    def rmdir(self, path: str) -> None:
        place = self._place_to_write(path)
        with os_errors(place.path), self._changing(place):
            os.rmdir(place.local)

    def rm_file(self, path: str) -> None:
        place = self._place_to_write(path)
        with os_errors(place.path), self._changing(place):
            if place.local.is_dir():
                os.rmdir(place.local)
            else:
                os.unlink(place.local)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy a file, of any dataset, into a new one."""
        if self.isdir(path1):
            self.makedirs(path2, exist_ok=True)
            return
        place = self._place_to_write(path2)
        assert place.new is not None
        with os_errors(place.path):
            local, new = place.local, NewDataset(place.access, place.new)
        with self._open(path1) as source, new.replacing(local) as target:
            shutil.copyfileobj(source, target, COPY_BYTES)

    # Parts of these

    def _access(self, server: str) -> Access:
        return Access(server, *self._options)

    def _place(self, path: str) -> Place:
        stripped = self._strip_protocol(path)
        with os_errors(stripped):
            return locate(stripped, self._access)

    def _place_to_write(self, path: str) -> Place:
        """Return a place in a new dataset, which is begun if a transaction is under way."""
        stripped = self._strip_protocol(path)
        with os_errors(stripped):
            try:
                place = locate(stripped, self._access)
            except NotFound:
                if not self._intrans:
                    raise
                place = None
        if place is None:
            place = self._begin(stripped)
        with os_errors(stripped):
            if place.new is None:
                raise Frozen(
                    f"{stripped}: is not in a dataset that this program makes; fs.new_dataset(...)"
                    " and fs.transaction make one"
                )
            if place.inside not in ("", README, DATA) and not place.inside.startswith(f"{DATA}/"):
                raise UsageError(f"{stripped}: items are below {DATA}/, beside {README}")
        return place

    def _begin(self, path: str) -> Place:
        """Return a place in a dataset that is begun as a part of the transaction, unless it is."""
        host, *parts = path.split("/")
        with self.transaction.beginning, os_errors(path):
            with contextlib.suppress(NotFound):
                return locate(path, self._access)  # another thread was faster
            session = session_of(self._access(DserverURI.parse(f"dserver://{host}").server))
            for length in range(2, len(parts)):
                base_uri = f"{parts[0]}://{'/'.join(parts[1:length])}"
                if base_uri in session.base_uris():
                    name = "/".join([host, *parts[: length + 1]])
                    self.transaction.begun.append(self.new_dataset(name))
                    return locate(path, self._access)
            raise NotFound(f"{path}: is in no base URI in which you may register datasets")

    def _new_file(self, path: str, mode: str) -> Any:
        place = self._place_to_write(path)
        assert place.new is not None
        with os_errors(place.path):
            return NewDataset(place.access, place.new).open_path(place.local, mode)

    @contextlib.contextmanager
    def _changing(self, place: Place) -> Iterator[None]:
        assert place.new is not None
        with place.new.staged.changing():
            yield

    def _item_file(self, place: Place) -> ItemFile:
        if not place.item:
            info_of(place)  # or it is not there
            raise IsADirectoryError(errno.EISDIR, f"{place.path}: is a directory")
        assert place.dataset is not None
        return ItemFile(place.access, place.dataset, place.item, place.path)

    def _type(self, path: str) -> str | None:
        try:
            return str(self.info(path)["type"])
        except (FileNotFoundError, NotADirectoryError):
            return None


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[IO[bytes]]:
    """Give a file that takes the place of a local one whole; what is no plain file is written."""
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG | 0o666
    else:
        with open(target, "r+b" if stat.S_ISREG(mode) else "wb") as file:  # if it may be written
            if not stat.S_ISREG(mode):
                yield file
                return
    with replacing_unsynced(target, mode=stat.S_IMODE(mode)) as file:
        yield file


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
