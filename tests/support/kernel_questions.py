"""Every question that the kernel can ask a mount, asked of its operations without a mount.

A `Walker` asks once while all is well and notes the answers and the inode numbers; then it
asks the same by number, as a kernel does that knows them, and tells what came: the
answer, or an errno.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyfuse3
import trio
from pyfuse3 import FUSEError

from dserverfs.base.model import DserverURI
from dserverfs.catalogue.refreshed import loaded
from dserverfs.client import Client
from dserverfs.mount.operations import Operations
from dserverfs.mount.recent_errors import RecentErrors
from dserverfs.mount.replies import Ownership
from dserverfs.mount.request_counts import RequestCounts
from dserverfs.remote.signing import Signing
from dserverfs.tree import description
from dserverfs.tree.filesystem import FileSystem
from dserverfs.tree.mount_tree import ROOT, Tree

CONTEXT = pyfuse3.RequestContext()
MAX_READ = 1 << 20
OVERLAY = b"user.dtool.overlay.o"


class Question(NamedTuple):
    what: str
    path: str


class Refused(NamedTuple):
    """The errno that a question was answered with."""

    errno: int

    def __repr__(self) -> str:
        return f"Refused({errno.errorcode[self.errno]})"


Answers = dict[Question, Any]


class Walker:
    """Asks everything of one mount's operations."""

    def __init__(self, client: Client, uri: DserverURI, *, is_writable: bool = False) -> None:
        self.client = client

        def attributes_of(tree: Any, number: int) -> Mapping[str, str]:
            return description.attributes(tree, number, uri.server)

        staging = client.staging.open() if is_writable else None
        edits = client.edits if is_writable else None
        self.tree = Tree(uri, client.catalogue, 0, staging, edits)
        file_system = FileSystem(
            self.tree,
            client.freezer,
            client.give_way,
            staging=staging,
            edits=edits,
            attributes_of=attributes_of,
        )
        ownership = Ownership(os.getuid(), os.getgid(), 0)
        recent_errors = RecentErrors(uri.server)
        self.operations = Operations(
            file_system, client.reader, ownership, recent_errors, RequestCounts()
        )
        self.inodes: dict[str, int] = {"": ROOT}

    def explore(self) -> Answers:
        """Ask everything from the root down, of what there is."""
        answers: Answers = self._run(self._explore)
        return answers

    def ask_again(self, known: Answers) -> Answers:
        """Ask what was asked before, by the inode numbers that were told then."""
        answers: Answers = self._run(lambda: self._ask_again(known))
        return answers

    def ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Return what one request is answered with."""
        return self._run(lambda: self._outcome(call))

    def forget(self) -> None:
        """Have nothing at hand but the listing of datasets: the rest has to be asked for anew."""
        client = self.client
        for dataset in client.catalogue.known_datasets():
            client.catalogue._answers.forget(dataset)
        client.catalogue._readmes.clear()
        client.catalogue._metadata.clear()
        client.catalogue._manifests._indexes.clear()
        for path in client.catalogue._manifests._directory.iterdir():
            path.unlink()
        client.resolver._signing = Signing(client.resolver._routes)
        client.reader.flight.clear()

    def age(self) -> None:
        """Have all that can change refreshed when it is next asked for."""
        catalogue = self.client.catalogue
        for cells in (catalogue._listings, catalogue._readmes, catalogue._metadata):
            for cell in cells.values():
                cell._fresh_until_s = 0.0
        catalogue._user._fresh_until_s = 0.0

    def _run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        return trio.run(call)

    async def _explore(self) -> Answers:
        answers: Answers = {}
        waiting = [""]
        while waiting:
            path = waiting.pop()
            inode = self.inodes[path]
            attributes = await self._put(answers, "getattr", path, inode)
            if isinstance(attributes, Refused):
                continue
            if not stat.S_ISDIR(attributes[1]):
                await self._put(answers, "read", path, inode)
                continue
            names = await self._put(answers, "list", path, inode)
            if isinstance(names, Refused):
                continue
            for name in names:
                below = f"{path}/{name}".lstrip("/")
                found = await self._put(answers, "lookup", below, inode)
                if isinstance(found, Refused):
                    continue
                self.inodes[below] = found[0]
                waiting.append(below)
        for path, inode in self.inodes.items():
            if "/data/" in path:
                await self._put(answers, "xattr", path, inode)
        await self._put(answers, "statfs", "", ROOT)
        await self._put(answers, "readlink", "", ROOT)
        return answers

    async def _put(self, answers: Answers, what: str, path: str, inode: int) -> Any:
        answers[Question(what, path)] = answer = await self._answer(what, path, inode)
        return answer

    async def _ask_again(self, known: Answers) -> Answers:
        answers: Answers = {}
        for question in known:
            path = question.path
            if question.what == "lookup":
                path = path.rpartition("/")[0]
            await self._put(answers, question.what, question.path, self.inodes[path])
        return answers

    async def _answer(self, what: str, path: str, inode: Any) -> Any:
        ask = getattr(self, f"_{what}")
        return await self._outcome(lambda: ask(path, inode))

    async def _outcome(self, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await call()
        except FUSEError as error:
            return Refused(error.errno)

    # The questions

    async def _lookup(self, path: str, parent: Any) -> Any:
        name = pyfuse3.FileNameT(path.rpartition("/")[2].encode())
        return _shown(await self.operations.lookup(parent, name, CONTEXT))

    async def _getattr(self, path: str, inode: Any) -> Any:
        return _shown(await self.operations.getattr(inode, CONTEXT))

    async def _list(self, path: str, inode: Any) -> Any:
        handle = await self.operations.opendir(inode, CONTEXT)
        names = Names()
        try:
            await self.operations.readdir(handle, 0, names)  # type: ignore[arg-type]
        finally:
            await self.operations.releasedir(handle)
        return sorted(names)

    async def _read(self, path: str, inode: Any) -> Any:
        opened = await self.operations.open(inode, os.O_RDONLY, CONTEXT)
        try:
            return bytes(await self.operations.read(opened.fh, 0, MAX_READ))
        finally:
            await self.operations.release(opened.fh)

    async def _xattr(self, path: str, inode: Any) -> Any:
        return await self.operations.getxattr(inode, pyfuse3.XAttrNameT(OVERLAY), CONTEXT)

    async def _statfs(self, path: str, inode: Any) -> Any:
        return (await self.operations.statfs(CONTEXT)).f_namemax

    async def _readlink(self, path: str, inode: Any) -> Any:
        return await self.operations.readlink(inode, CONTEXT)


class Names(list[str]):
    """What stands for a ReaddirToken."""


def _shown(entry: Any) -> tuple[int, int, int]:
    return entry.st_ino, entry.st_mode, entry.st_size


def readdir_reply(token: Names, name: bytes, attributes: Any, next_id: int) -> bool:
    if name not in (b".", b".."):
        token.append(os.fsdecode(name))
    return True


@contextlib.contextmanager
def walker(
    uri: DserverURI, token: str, directory: Path, *, is_writable: bool = False
) -> Iterator[Walker]:
    """Make a walker with a client of its own."""
    with client_for(uri, token, directory) as client:
        yield Walker(client, uri, is_writable=is_writable)


@contextlib.contextmanager
def client_for(uri: DserverURI, token: str, directory: Path) -> Iterator[Client]:
    """Make a client whose cache keeps no blocks, and that knows the user."""
    from dserverfs.settings import Settings

    settings = Settings({"DSERVER_TOKEN": token}, {})
    with Client(
        uri.server,
        settings,
        cache_directory=directory / "cache",
        cache_size=0,
        staging_directory=directory / "staging",
    ) as client:
        client.catalogue.check(uri)
        loaded(client.catalogue.user)
        yield client
