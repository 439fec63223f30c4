"""A mount without a kernel: dserverfs's parts as its daemon puts them together, asked by paths.

Each request runs as a task of the daemon's process, as a FUSE request does in its event
loop: code of the loop is one at a time and never waits for network or disk, which is
checked; what blocks runs in a task of its own, within the limits of the real mount.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from dserverfs.base.errors import DserverfsError, NotFound
from dserverfs.base.hashes import Policy
from dserverfs.base.items import ItemContent
from dserverfs.base.model import DserverURI
from dserverfs.catalogue.refreshed import NotLoaded
from dserverfs.client import Client
from dserverfs.reading.open_item import OpenItem
from dserverfs.settings import Settings
from dserverfs.tree.attributes import Changes
from dserverfs.tree.filesystem import FREEZE_ATTRIBUTE, FileSystem
from dserverfs.tree.mount_tree import ROOT, Inode, Tree
from dserverfs.tree.open_files import OpenFile
from dserverfs.tree.steps import Limit, TookTooLong, Unloaded, WouldBlock
from tests.simulation.scheduler import Process, Scheduler
from tests.simulation.threads import Lock

R = TypeVar("R")

SERVER = "lab.sim"
METADATA_S, READ_S = 30.0, 120.0
LIMITS_S = {Limit.DISK: 120.0, Limit.WRITE: 120.0, Limit.EDIT: 60.0, Limit.FREEZE: 25.0}


class Failed(OSError):
    """A request was answered with an error; `cause` is what the daemon raised."""

    def __init__(self, number: int, cause: BaseException | None, what: str) -> None:
        super().__init__(number, f"{os.strerror(number)}: {what}: {cause}")
        self.cause = cause


class Died(Failed):
    """The daemon died: ENOTCONN, or what was not answered by then."""


def settings_for(token: str) -> Settings:
    values = {f"DSERVER_TOKEN_{SERVER}": token, "DSERVER_PROTOCOL": "https"}
    return Settings({**values, "HOME": "/nowhere"}, {})


class Daemon:
    """One mount of the whole server."""

    def __init__(
        self,
        scheduler: Scheduler,
        process: Process,
        token: str,
        directory: Path,
        *,
        freeze_delay_s: float | None,
        cache_size: int,
        verify: Policy,
        read_only: bool = False,
    ) -> None:
        self.scheduler = scheduler
        self.process = process
        self.loop = Lock()
        self.client = Client(
            SERVER,
            settings_for(token),
            cache_directory=directory / "cache",
            cache_size=cache_size,
            verify=verify,
            staging_directory=directory / "staging",
            freeze_delay_s=freeze_delay_s,
        )
        self._read_only = read_only
        self.fs: FileSystem | None = None
        self.handles = 0

    # Life, in tasks of the process

    def start(self) -> None:
        """Do what the daemon does before it answers; raises what keeps it from that."""
        client = self.client.open()
        client.catalogue.check(DserverURI(SERVER))
        staging = edits = None
        if not self._read_only:
            client.edits.open(lambda dataset: True)
            edits = client.edits
            staging = client.staging.open()
            for base_uri in staging.base_uris():
                for staged in staging.datasets(base_uri):
                    client.freezer.resume(staged)
            client.freezer.open(staging.left_behind)
        tree = Tree(DserverURI(SERVER), client.catalogue, self.scheduler.wall_ns(), staging, edits)
        self.tree = tree
        self.fs = FileSystem(tree, client.freezer, client.give_way, staging=staging, edits=edits)

    def umount(self) -> None:
        """End as the daemon does after umount."""
        if not self._read_only:
            self.client.edits.take_as_closed()
        self.client.close()

    # Requests, from tasks of other processes

    def request(self, what: str, call: Callable[[], R]) -> R:
        """Return what the daemon answers; raises Failed."""
        box: list[Any] = []

        def answer() -> None:
            try:
                box.append((call(), None))
            except (DserverfsError, OSError) as error:
                box.append((None, error))

        if self.process.is_dead:
            raise Died(errno.ENOTCONN, None, what)
        task = self.scheduler.spawn(what, self.process, answer)
        self.scheduler.join(task)
        if not box:
            if task.error is not None:
                raise task.error
            raise Died(errno.ENOTCONN, None, what)
        result, error = box[0]
        if error is not None:
            number = error.errno if isinstance(error, OSError) else errno.EIO
            if isinstance(error, NotFound):
                number = errno.ENOENT
            raise Failed(number or errno.EIO, error, what) from error
        return cast("R", result)

    @contextmanager
    def in_loop(self) -> Iterator[None]:
        self.loop.acquire()
        before = self.scheduler.as_loop(True)
        try:
            yield
        finally:
            self.scheduler.as_loop(before)
            self.loop.release()

    def answer(self, ask: Callable[[], R]) -> R:
        """Return what `ask` returns, loading what it lacks."""
        end_s = self._now_s() + METADATA_S + LIMITS_S[Limit.DISK]
        while True:
            try:
                with self.in_loop():
                    return ask()
            except NotLoaded as missing:
                if self._now_s() >= end_s:
                    raise TookTooLong("loading took too long") from None
                self._load(missing)

    def finish(self, steps: Generator[WouldBlock | Unloaded, Any, R]) -> R:
        """Return what steps return, making each of their calls in a thread."""
        send: Callable[[], Any] = lambda: next(steps)  # noqa: E731
        try:
            while True:
                with self.in_loop():
                    step = send()
                try:
                    if isinstance(step, Unloaded):
                        self._load(step.missing)
                        result = self.answer(step.ask)
                    else:
                        result = self.in_thread(step.call, LIMITS_S[step.limit])
                except (DserverfsError, OSError) as error:
                    send = lambda error=error: steps.throw(error)  # type: ignore[misc]  # noqa: E731
                else:
                    send = lambda result=result: steps.send(result)  # type: ignore[misc]  # noqa: E731
        except StopIteration as ended:
            return cast("R", ended.value)
        finally:
            steps.close()

    def in_thread(self, call: Callable[[], R], timeout_s: float) -> R:
        """Return what `call` returns in a task of its own; raises TookTooLong, and it goes on."""
        future: Future[R] = Future()

        def run() -> None:
            try:
                future.set_result(call())
            except (DserverfsError, OSError) as error:
                future.set_exception(error)

        task = self.scheduler.spawn("call", self.process, run)
        self.scheduler.join(task, timeout_s)
        if not future.done():
            if task.error is not None:
                raise task.error
            raise TookTooLong("took too long")
        return future.result()

    def _load(self, missing: NotLoaded) -> None:
        if missing.begin is None:
            self.in_thread(missing.load, METADATA_S)
        else:
            with self.in_loop():
                load = missing.begin()
            if not wait([load.future], LIMITS_S[Limit.DISK]).done:
                raise TookTooLong("loading took too long")
            load.future.result()

    def _now_s(self) -> float:
        return self.scheduler.monotonic_ns() / 1e9


class Open:
    """A file that a program has open in a mount."""

    def __init__(self, daemon: Daemon, handle: OpenItem | OpenFile, name: str) -> None:
        self._daemon = daemon
        self._handle = handle
        self._name = name
        self.is_item = isinstance(handle, OpenItem)
        daemon.handles += 1

    def read(self, offset: int, size: int) -> bytes:
        daemon, handle = self._daemon, self._handle
        if isinstance(handle, OpenItem):
            return daemon.request(
                f"read {self._name}", lambda: self._read_item(handle, offset, size)
            )
        return daemon.request(
            f"read {self._name}", lambda: bytes(daemon.finish(handle.read(offset, size)))
        )

    def _read_item(self, item: OpenItem, offset: int, size: int) -> bytes:
        """Read as `mount.waiting` does, without its event loop."""
        daemon = self._daemon
        buffer = memoryview(bytearray(size))
        with daemon.in_loop():
            data = item.read_nowait(offset, size, buffer)
        if data is not None:
            return bytes(data)
        end_s = daemon._now_s() + READ_S
        while True:
            with daemon.in_loop():
                wanted = item.request_blocks(offset, size)
            futures = [each for each in wanted if isinstance(each, Future)]
            if not self._done(item, futures, end_s, offset, size):
                continue
            blocks = [each.result() if isinstance(each, Future) else each for each in wanted]
            with daemon.in_loop():
                pending = item.verification_pending()
            if pending is None:
                break
            if self._done(item, [pending], end_s, offset, size):
                pending.result()
        with daemon.in_loop():
            cut = item.cut_nowait(blocks, offset, size)
        if cut is None:
            cut = daemon.in_thread(lambda: item.cut(blocks, offset, size), READ_S)
        return bytes(cut)

    def _done(
        self, item: OpenItem, futures: list[Any], end_s: float, offset: int, size: int
    ) -> bool:
        left_s = end_s - self._daemon._now_s()
        if futures and wait(futures, max(left_s, 0.0)).not_done:
            item.give_up(offset, size)
            raise TookTooLong("took too long")
        return True

    def write(self, data: bytes, offset: int) -> int:
        handle = cast("OpenFile", self._handle)
        daemon = self._daemon
        return daemon.request(
            f"write {self._name}", lambda: daemon.finish(handle.write(offset, data))
        )

    def fsync(self) -> None:
        handle = cast("OpenFile", self._handle)
        daemon = self._daemon
        daemon.request(f"fsync {self._name}", lambda: daemon.finish(handle.sync(data_only=False)))

    def close(self) -> None:
        """As close(2): RELEASE follows, which tells no error."""
        daemon, handle = self._daemon, self._handle

        def release() -> None:
            with daemon.in_loop():
                handle.close()

        daemon.handles -= 1
        daemon.request(f"close {self._name}", release)


class Files:
    """The files of a mount as a program sees them: by path, with an errno for each failure."""

    def __init__(self, daemon: Daemon, pid: int) -> None:
        self._daemon = daemon
        self._pid = pid

    @property
    def _fs(self) -> FileSystem:
        if self._daemon.fs is None:
            raise Died(errno.ENOTCONN, None, "not mounted")
        return self._daemon.fs

    def stat(self, path: str) -> Any:
        return self._daemon.request(f"stat {path}", lambda: self._find(path))

    def listdir(self, path: str) -> list[str]:
        """Return the names; raises Failed as opendir and readdir do."""
        daemon = self._daemon

        def ask() -> list[str]:
            inode = Inode(self._find(path).number)
            directory = daemon.answer(lambda: self._fs.opendir(inode))
            names: list[str] = []
            cookie = 0

            def more() -> bool:
                nonlocal cookie
                for _ in range(20):
                    entry = next(entries[0], None)
                    if entry is None:
                        return False
                    names.append(entry.name)
                    cookie = entry.cookie
                return True

            entries: list[Iterator[Any]] = []

            def begin_and_go_on() -> bool:
                entries[:] = [directory.behind(cookie)]
                return more()

            while daemon.answer(begin_and_go_on):
                pass
            return names

        return daemon.request(f"ls {path}", ask)

    def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> Open:
        daemon = self._daemon

        def ask() -> Open:
            if flags & os.O_CREAT:
                try:
                    inode = Inode(self._find(path).number)
                except NotFound:
                    parent, name = self._parent(path)
                    made, _ = daemon.finish(self._fs.create(parent, name, mode, flags, self._pid))
                    return Open(daemon, made, path)
            else:
                inode = Inode(self._find(path).number)
            found = daemon.finish(self._fs.open(inode, flags, self._pid))
            if isinstance(found, ItemContent):
                return Open(daemon, OpenItem(daemon.client.reader, found), path)
            return Open(daemon, found, path)

        return daemon.request(f"open {path}", ask)

    def mkdir(self, path: str) -> None:
        self._change(
            "mkdir", path, lambda parent, name: self._fs.mkdir(parent, name, 0o755, self._pid)
        )

    def unlink(self, path: str) -> None:
        self._change("rm", path, lambda parent, name: self._fs.unlink(parent, name, self._pid))

    def rmdir(self, path: str) -> None:
        self._change("rmdir", path, lambda parent, name: self._fs.rmdir(parent, name, self._pid))

    def rename(self, old: str, new: str) -> None:
        def ask() -> None:
            old_parent, old_name = self._parent(old)
            new_parent, new_name = self._parent(new)
            steps = self._fs.rename(old_parent, old_name, new_parent, new_name, 0, self._pid)
            self._daemon.finish(steps)

        self._daemon.request(f"mv {old} {new}", ask)

    def truncate(self, path: str, size: int) -> None:
        def ask() -> None:
            inode = Inode(self._find(path).number)
            changes = Changes(size_in_bytes=size)
            self._daemon.finish(self._fs.setattr(inode, changes, None, self._pid))

        self._daemon.request(f"truncate {path}", ask)

    def freeze(self, path: str) -> None:
        """As `dserverfs freeze` does."""

        def ask() -> None:
            inode = Inode(self._find(path).number)
            self._daemon.finish(self._fs.setxattr(inode, FREEZE_ATTRIBUTE, b"1"))

        self._daemon.request(f"freeze {path}", ask)

    def is_directory(self, path: str) -> bool:
        return bool(self.stat(path).is_directory)

    def read(self, path: str) -> bytes:
        """Return a whole file."""
        file = self.open(path)
        try:
            content = b""
            while piece := file.read(len(content), 48 * 1024):
                content += piece
            return content
        finally:
            file.close()

    # In the daemon

    def _change(self, what: str, path: str, change: Callable[[Inode, bytes], Any]) -> None:
        def ask() -> None:
            parent, name = self._parent(path)
            self._daemon.finish(change(parent, name))

        self._daemon.request(f"{what} {path}", ask)

    def _parent(self, path: str) -> tuple[Inode, bytes]:
        parent, _, name = path.rpartition("/")
        return Inode(self._find(parent).number), name.encode()

    def _find(self, path: str) -> Any:
        daemon = self._daemon
        inode = ROOT
        attributes = daemon.answer(lambda: self._fs.getattr(ROOT))
        for name in path.split("/") if path else ():
            parent, text = inode, name.encode()
            attributes = daemon.answer(lambda: self._fs.lookup(parent, text, self._pid))  # noqa: B023
            inode = Inode(attributes.number)
        return attributes
