"""A dataset that a program makes: `dserverfs.create`.

It is a staged dataset as one in a mount or of `dtool create`: files in the staging directory,
until it is frozen. What is put into it survives the program; a mount of the same user shows it,
and `dserverfs freeze` or `discard` ends it there.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Union, cast

from dserverfs.base.dtool_layout import ANNOTATIONS, DATA, JSON, README, TAGS
from dserverfs.base.durable_files import written_beside
from dserverfs.base.errors import Frozen, UsageError
from dserverfs.base.limits import name_is_valid
from dserverfs.base.model import DserverURI
from dserverfs.broker.proto import ProtoDataset
from dserverfs.python.datasets import Dataset
from dserverfs.python.sessions import Access, session_of
from dserverfs.writing.staging.dataset import StagedDataset

BUFFER_BYTES = 1024 * 1024

Content = Union[bytes, bytearray, memoryview, str, "os.PathLike[str]", IO[bytes]]


class NewDataset:
    """A dataset under construction; as a context manager it is frozen at the end of the block.

    An exception in the block discards it. One that could not be frozen, because the server is
    away, stays staged: `freeze` can be called again, by this program or by `dserverfs freeze`.
    A process that is forked in the block neither freezes nor discards it.
    """

    def __init__(self, access: Access, proto: ProtoDataset) -> None:
        """Made by `create`."""
        self._access = access
        self._proto = proto
        self._process = os.getpid()

    @property
    def name(self) -> str:
        return self._proto.staged.record.name

    @property
    def data(self) -> Path:
        """The local directory of the items, for programs that write files themselves."""
        return self._proto.staged.tree / DATA

    def put(self, relpath: str, content: Content) -> None:
        """Add an item, or replace it: bytes, text, the file at a path, or what an open file has.

        Text is encoded as UTF-8. A file at a path, which is a `pathlib.Path`, keeps its date.
        Raises UsageError for a text that is the name of a file here: as a rule that file is meant.
        """
        self._require_new()
        if isinstance(content, str) and os.path.isfile(content):
            raise UsageError(
                f"{relpath}: {content!r} is the name of a file: put({relpath!r}, Path(...)) puts"
                " the file, and put(..., text.encode()) this text"
            )
        if isinstance(content, os.PathLike):
            self._proto.put_item(Path(content), relpath)
            return
        with self.replacing(self._proto.place_of(relpath)) as file:
            if isinstance(content, str):
                file.write(content.encode())
            elif isinstance(content, (bytes, bytearray, memoryview)):
                file.write(content)
            else:
                shutil.copyfileobj(content, file, BUFFER_BYTES)

    def open(self, relpath: str, mode: str = "wb") -> IO[bytes]:
        """Return a file to write an item into; "ab" appends to one, "xb" makes only a new one."""
        return self.open_path(self._proto.place_of(relpath), mode)

    def open_path(self, path: Path, mode: str) -> IO[bytes]:
        """Return a file to write, of any path below the staging directory of this dataset."""
        if mode not in ("wb", "ab", "xb"):
            raise UsageError(f"{path.name}: mode {mode!r}: must be wb, ab or xb")
        self._require_new()
        return cast(IO[bytes], NewFile(self._proto.staged, path, mode))

    @contextlib.contextmanager
    def replacing(self, path: Path) -> Iterator[IO[bytes]]:
        """Give a file that takes the place of `path` whole, when the block has ended."""
        self._require_new()
        staged = self._proto.staged
        with staged.changing():
            staged.writer_opened()
        try:
            with written_beside(staged.directory / "incoming", mode=0o666) as (file, incoming):
                yield file
                file.flush()
                with staged.changing():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(incoming, path)
        finally:
            staged.writer_closed()

    def set_readme(self, text: str) -> None:
        """Replace the text of README.yml."""
        self._require_new()
        self._proto.put_text(README, text)

    def tag(self, *tags: str) -> None:
        """Add tags."""
        self._require_new()
        for each in tags:
            if not name_is_valid(each):
                raise UsageError(f"{each!r}: cannot be a tag: at most 80 of a-z A-Z 0-9 - _ .")
            self._proto.put_text(f"{TAGS}/{each}", "")

    def annotate(self, name: str, value: Any) -> None:
        """Add an annotation, or replace it: any value that JSON has."""
        self._require_new()
        self._proto.put_text(f"{ANNOTATIONS}/{name}{JSON}", json.dumps(value))

    def freeze(self) -> Dataset:
        """Upload and register it; blocks. It can be called again, above all if that fails."""
        self._require_own()
        staged = self._proto.staged
        return Dataset(
            self._access, staged.frozen_as or session_of(self._access).freeze(self._proto)
        )

    def discard(self) -> None:
        """Delete it with all that is in it; raises Frozen if it is too late."""
        self._require_own()
        self._require_new()
        session_of(self._access).discard(self._proto)

    def __enter__(self) -> NewDataset:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._proto.staged.is_over or not self.is_own:
            return
        if error is not None:
            self.discard()
        else:
            self.freeze()

    @property
    def is_own(self) -> bool:
        """Whether this process made it, and not one that was forked to this one."""
        return self._process == os.getpid()

    def _require_own(self) -> None:
        if not self.is_own:
            raise UsageError(f"{self.name}: only the process that made it can freeze or discard it")

    def _require_new(self) -> None:
        if self._proto.staged.is_over:
            raise Frozen(f"{self.name}: is frozen, or discarded, and cannot be changed any more")

    def __repr__(self) -> str:
        return f"<dserverfs.NewDataset {self.name} in {self._proto.staged.record.base_uri}>"


class NewFile(io.BufferedWriter):
    """A file that keeps its dataset from being frozen while it is open."""

    def __init__(self, staged: StagedDataset, path: Path, mode: str) -> None:
        self._staged: StagedDataset | None = None
        with staged.changing():
            path.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(io.FileIO(path, mode), BUFFER_BYTES)
            staged.writer_opened()
            self._staged = staged

    def close(self) -> None:
        try:
            super().close()
        finally:
            staged, self._staged = self._staged, None
            if staged is not None:
                staged.writer_closed()

    # As fsspec asks of the files of a transaction, which is committed as a whole

    def commit(self) -> None:
        """Do nothing: what is written is in its place."""

    def discard(self) -> None:
        """Do nothing: its dataset is discarded."""


def create(base_uri: str, name: str) -> NewDataset:
    """Return a new, empty dataset, to be frozen at the end of a `with` block.

    `base_uri` is dserver://HOST/s3/BUCKET. Asks the server for the user's rights. Raises
    PermissionDenied, Unreachable, UsageError for a name that it cannot have, NameTaken while
    another one of that name is being made.
    """
    uri = DserverURI.parse(str(base_uri))
    if uri.base_uri is None or uri.uuid is not None:
        raise UsageError(f"{uri}: is no base URI; expected dserver://HOST[:PORT]/s3/BUCKET")
    access = Access(uri.server)
    return NewDataset(access, session_of(access).create(uri.base_uri, name))
