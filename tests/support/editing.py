"""A mount's edits of a frozen dataset on the fake dserver, and how programs treat its files."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid as uuid_module
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dserverfs.base.clock import boottime_s
from dserverfs.base.errors import DserverfsError, Unreachable
from dserverfs.base.model import UUID, Dataset
from dserverfs.base.versions import Version
from dserverfs.catalogue.catalogue import Catalogue
from dserverfs.catalogue.offline import KeptAnswers
from dserverfs.catalogue.refreshed import MOUNT, loaded
from dserverfs.remote.api import Resolver
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.metadata_api import MetadataWrites
from dserverfs.remote.objects import Storage
from dserverfs.remote.routes import Routes
from dserverfs.remote.tokens import TokenSource
from dserverfs.tree.frozen_dataset import DatasetTree
from dserverfs.writing.edits import sender
from dserverfs.writing.edits.editable import EditableFiles
from dserverfs.writing.edits.edits import DatasetEdits
from dserverfs.writing.edits.journal import root_of
from dserverfs.writing.edits.local_file import EditHandle
from tests.support.patience import LATE_S
from tests.support.quirky_server import BASE_URI, CONTENTS, OTHERS, TOKEN, QuirkyServer

README = "README.yml"
BEFORE = b"readme: 1\n"
WAIT_S = LATE_S


class Writes(MetadataWrites):
    """The real ones, which can be told to fail, or to take their time."""

    def __init__(self, routes: Routes, resolver: Resolver) -> None:
        super().__init__(routes, resolver, pause=lambda pause_s: None)
        self.error: DserverfsError | None = None
        self.reached = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.asked: Callable[[], None] = lambda: None

    def put_readme(self, dataset: Dataset, content: bytes, read: Version | None = None) -> None:
        self._pass()
        super().put_readme(dataset, content, read)

    def put_annotation(
        self, dataset: Dataset, name: str, value: Any, read: Version | None = None
    ) -> None:
        self._pass()
        super().put_annotation(dataset, name, value, read)

    def _pass(self) -> None:
        self.asked()
        self.reached.set()
        assert self.may_go_on.wait(WAIT_S)
        if self.error is not None:
            raise self.error


class Bench:
    """A mount's edits, a dataset, and how programs treat it."""

    def __init__(self, quirky: QuirkyServer, tmp_path: Path) -> None:
        self.quirky = quirky
        self.staging = tmp_path / "staging"
        self._transport = ServerTransport(quirky.url, TokenSource(TOKEN, None))
        self._storage = Storage()
        routes = Routes(self._transport)
        resolver = Resolver(self._transport, self._storage, routes)
        self.writes = Writes(routes, resolver)
        answers = tmp_path / "answers"
        answers.mkdir()
        self.ahead_s = 0.0  # of the catalogue's clock: how long nobody looked
        self.catalogue = Catalogue(
            KeptAnswers(resolver, answers),
            "server",
            answers,
            lambda: boottime_s() + self.ahead_s,
            MOUNT._replace(wait_s=LATE_S),
        )
        self.dataset = self._add(resolver)
        self.edits = self.mount()

    def _add(self, resolver: Resolver) -> Dataset:
        uuid = str(uuid_module.uuid4())
        self.quirky.add(uuid, CONTENTS, BEFORE, **json.loads(json.dumps(OTHERS)))
        return resolver.dataset_by_uuid(UUID(uuid), BASE_URI)

    def mount(self, retry_s: tuple[float, float] = sender.RETRY_S) -> DatasetEdits:
        """Return the edits of one more mount, which has taken over what others left."""
        self.edits = self.another(retry_s).open(lambda dataset: True)
        return self.edits

    def mount_after_a_kill(self) -> DatasetEdits:
        """Have the mount end as a process that is killed; return the edits of the next one."""
        self.edits._sender.close()
        self.edits._local._session._lock.release()
        return self.mount()

    def another(self, retry_s: tuple[float, float] = sender.RETRY_S) -> DatasetEdits:
        """Return the edits of a mount beside it."""
        editable_files = EditableFiles(self.writes, self.catalogue)
        return DatasetEdits(root_of(self.staging, "server"), editable_files, retry_s)

    def close(self) -> None:
        self.edits.close()
        self.catalogue.close()
        self._storage.close()
        self._transport.close()

    @property
    def tree(self) -> DatasetTree:
        return DatasetTree(self.dataset, self.catalogue, self.edits)

    def create(self, path: str, mode: int = 0o644, flags: int = os.O_WRONLY) -> EditHandle:
        self.edits.require(self.dataset, path)
        return self.edits.create(self.dataset, path, mode, flags | os.O_CREAT)

    def open(self, path: str, flags: int = os.O_WRONLY | os.O_TRUNC) -> EditHandle:
        self.edits.require(self.dataset, path)
        return loaded(lambda: self.edits.open_file(self.dataset, path, flags))

    def reads(self, path: str) -> EditHandle:
        """Open the local file at a path for reading."""
        file = self.edits.shown(self.dataset, path).file
        handle = self.edits.open_local(file) if file is not None else None
        assert handle is not None
        return handle

    def write(self, path: str, content: bytes, flags: int = os.O_WRONLY | os.O_TRUNC) -> None:
        """Write as `open(path, "w")` does, and wait until it is sent."""
        self.fill(self.open(path, flags), content)

    def make(self, path: str, content: bytes) -> None:
        self.fill(self.create(path), content)

    def fill(self, handle: EditHandle, content: bytes) -> None:
        self.edits.write(handle, content, 0)
        self.edits.release(handle)
        self.edits.flush(WAIT_S)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        self.edits.rename(self.dataset, old, new, flags)

    def remove(self, path: str) -> None:
        self.edits.remove(self.dataset, path)

    def shows(self, path: str) -> bytes:
        """Return what the mount shows; raises NotFound."""
        tree, number = self.tree, DatasetTree.ROOT
        for name in path.split("/"):
            number = loaded(lambda name=name, number=number: tree.lookup(number, name).number)  # type: ignore[misc]
        content = loaded(lambda: tree.content(number))
        assert isinstance(content, bytes)
        assert loaded(lambda: tree.attributes(number)).size_in_bytes == len(content)
        return content

    def names(self, directory: str = "") -> list[str]:
        tree, number = self.tree, DatasetTree.ROOT
        for name in filter(None, directory.split("/")):
            number = loaded(lambda name=name, number=number: tree.lookup(number, name).number)  # type: ignore[misc]
        return sorted(entry.name for entry in loaded(lambda: list(tree.children(number, 0))))

    def has(self, kind: str) -> Any:
        """Return what the server has."""
        return self.quirky.described[self.dataset.uri][kind]

    def puts(self, route: str = "readmes") -> int:
        return self.quirky.asked(f"^(PUT|POST) /{route}/")

    def local_files(self) -> list[str]:
        return sorted(path.name for path in self.staging.rglob("*") if path.name.isdigit())


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s


def away() -> Unreachable:
    return Unreachable("the server is away")
