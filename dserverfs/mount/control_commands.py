"""The commands that a mount's daemon obeys: describe, freeze, discard, drain, log more or less.

Used by the mount, behind the control socket. Requests come in threads; all work
on the tree is done in the daemon's event loop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dserverfs.base.errors import DserverfsError, IntegrityError, NotFound, UsageError
from dserverfs.base.items import ItemContent
from dserverfs.base.limits import quoted, size_is_usable, understood
from dserverfs.base.model import DserverURI
from dserverfs.base.progress import Progress
from dserverfs.catalogue.refreshed import NotLoaded
from dserverfs.mount.cache_commands import CacheCommands, FoundItem
from dserverfs.mount.channel import messages
from dserverfs.mount.control import Answer
from dserverfs.mount.recent_errors import RecentErrors
from dserverfs.mount.taking_over import Replacement
from dserverfs.mount.traces import Traces
from dserverfs.reading.block_reader import BlockReader
from dserverfs.reading.cache.block_cache import CacheUsage
from dserverfs.remote.contact import Away
from dserverfs.remote.site_cache import SiteCache
from dserverfs.remote.tokens import TokenSource, expires_at
from dserverfs.tree import description, number_journal
from dserverfs.tree.frozen_dataset import DatasetTree
from dserverfs.tree.mount_tree import InFrozen, Inode, Tree
from dserverfs.writing.edits.edits import DatasetEdits
from dserverfs.writing.edits.journal import UnsentEdit
from dserverfs.writing.freezer import Freezer
from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.staging.survey import Layout

R = TypeVar("R")
logger = logging.getLogger(__name__)

PROGRESS_S = 0.2  # between two lines of progress


class _Request(NamedTuple):
    """The arguments of a command; those it does not have are 0, or empty."""

    command: str
    inode: Inode
    inodes: list[Inode]
    layout: Layout | None
    timeout_s: float
    asked_by: int
    level: str
    below: str  # a path below the inode
    trace: int

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> _Request:
        """Return the request in a JSON object; raises ProtocolError."""
        with understood("the request"):
            layout = request.get("layout")
            return cls(
                str(request.get("command")),
                _inode(request.get("inode", 0)),
                [_inode(each) for each in request.get("inodes", ())],
                Layout(layout) if layout else None,
                float(request.get("timeout_s", 0.0)),
                int(request.get("asked_by", 0)),
                str(request.get("level", "")).upper(),
                str(request.get("below", "")),
                int(request.get("trace", 0)),
            )


def _inode(value: object) -> Inode:
    """Return an inode number; raises ValueError for what no file of ours can have."""
    if not isinstance(value, int) or not size_is_usable(value):
        raise ValueError(f"{quoted(value)} is no inode")
    return Inode(value)


def _set_log_level(level: str) -> dict[str, str | None]:
    """Have this process log from a level on; return that level and the log's file."""
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise UsageError(f"{level!r}: no such level of a log")
    root = logging.getLogger()
    logger.info("the level of this log is %s from now on", level.lower())
    root.setLevel(level)
    files = [each.baseFilename for each in root.handlers if isinstance(each, logging.FileHandler)]
    return {"level": level.lower(), "file": files[0] if files else None}


@dataclass(frozen=True)
class Commander:
    """Answers the commands of one mount."""

    uri: DserverURI
    mountpoint: Path
    tree: Tree
    staging: Staging | None
    freezer: Freezer
    edits: DatasetEdits
    reader: BlockReader
    cached: CacheCommands
    traces: Traces
    tokens: TokenSource
    recent_errors: RecentErrors
    cache_usage: Callable[[], CacheUsage | None]
    site_cache: SiteCache | None
    look: Callable[[], Away | None]  # at the server
    in_loop: Callable[[Callable[[], Any]], Any]  # calls a function in the event loop; blocks
    forget_name: Callable[[Inode, str], None]  # has the kernel forget an entry of a directory
    replacement: Replacement
    terminate: Callable[[], None]  # ends this daemon; in the event loop

    def __call__(self, request: dict[str, Any]) -> Iterator[Answer]:
        """Yield the answers to a request.

        One of `status`, `staged`, `errors`, `compared`, `reading`, `server`, `pending`, `notes`,
        `unsent`, `items`, `room`, `pin`, `unpin`, `release`, `trace`, `traced`, `freeze`,
        `discard`, `drain`, `restart`, `token`, `mount` and `log`.
        """
        asked = _Request.of(request)
        command = asked.command
        if command == "status":
            yield {"result": self._status(asked.inode)}
        elif command == "staged":
            yield {"result": description.to_be_read(self._staged(asked.inode), self.freezer)}
        elif command == "errors":
            yield {"result": self._errors(asked.inode, asked.below)}
        elif command == "compared":
            yield {"result": self.reader.report.counts._asdict()}
        elif command == "reading":
            yield {"result": self._reading()}
        elif command == "server":
            yield {"result": self._server()}
        elif command == "pending":
            yield {"result": self._pending()}
        elif command == "notes":
            yield {"result": [each._asdict() for each in self.freezer.notes().values()]}
        elif command == "unsent":
            yield {"result": self._unsent(self.edits.unsent())}
        elif command == "items":
            yield {"result": self.cached.items(self._items(asked.inodes))}
        elif command == "room":
            yield {"result": self.cached.room()}
        elif command == "pin":
            yield {"result": self.cached.pin(self._items(asked.inodes))}
        elif command == "unpin":
            yield {"result": self.cached.unpin(self._items(asked.inodes))}
        elif command == "release":
            self.cached.release()
            yield {"result": None}
        elif command == "trace":
            yield {"result": self.in_loop(lambda: self.traces.begin(asked.asked_by))}
        elif command == "traced":
            yield {"result": self._traced(asked.trace)}
        elif command == "freeze":
            yield from self._freeze(asked.inode, asked.layout)
        elif command == "discard":
            yield {"result": self._discard(asked.inode)}
        elif command == "drain":
            yield from self._drain(asked.timeout_s, asked.asked_by)
        elif command == "restart":
            self.replacement.begin()
            try:
                yield {"result": os.getpid()}
            finally:  # also if who asked is gone: requests wait for the other daemon
                self.in_loop(self.terminate)
        elif command == "token":
            yield {"result": self._token()}
        elif command == "mount":
            told = {"uri": str(self.uri), "path": str(self.mountpoint), "pid": os.getpid()}
            versions = {"numbers": number_journal.formats(), "channel": messages.VERSION}
            yield {"result": {**told, **versions}}
        elif command == "log":
            yield {"result": _set_log_level(asked.level)}
        else:
            raise UsageError(f"{command!r}: no such command; is the mount of an older dserverfs?")

    def _token(self) -> dict[str, Any]:
        """Return where the token comes from, and when it ends or why there is none."""
        found: dict[str, Any] = {"source": self.tokens.describe()}
        try:
            found["expires_at"] = expires_at(self.tokens.token())
            found["user"] = self.tokens.subject()
        except DserverfsError as error:
            found["reason"] = str(error)
        return found

    def _reading(self) -> dict[str, Any]:
        """Return how full the cache is, how the site's is, and what comes from the store."""
        usage, site_cache = self.cache_usage(), self.site_cache
        return {
            "site_cache": None if site_cache is None else site_cache.state()._asdict(),
            "cache": None if usage is None else usage._asdict(),
            "bytes_per_s": self.reader.report.bytes_per_s(),
        }

    def _server(self) -> dict[str, Any]:
        """Return whether the server answers, and since when not; asks it."""
        away = self.look()
        if away is None:
            return {"answers": True}
        return {"answers": False, "since_at": away.since_s, "reason": away.reason}

    def _status(self, inode: Inode) -> dict[str, Any]:
        def describe() -> dict[str, Any] | StagedDataset:
            place = self.tree.locate(inode)
            if (frozen := place.frozen()) is not None:
                found = description.of_frozen(*frozen, self.uri.server)
                uri = frozen.tree.dataset.uri
                unsent = [one for one in self.edits.unsent() if one.note.dataset.uri == uri]
                if noted := self.freezer.notes().get(uri):
                    found["notes"] = noted.notes
                return {**found, "unsent": self._unsent(unsent)} if unsent else found
            if place.staged is not None:
                return place.staged.staged
            return {"state": "directory", "uri": str(self._uri_at(inode))}

        found = self._loaded(describe)
        if isinstance(found, StagedDataset):
            return description.of_staged(found, self.freezer)
        if found["state"] == "frozen":
            found["server"] = self._server()
            with contextlib.suppress(DserverfsError):  # of the server, which is away
                found["cached"] = self._cached(inode)
            if found["server"]["answers"]:
                with contextlib.suppress(DserverfsError):
                    found["compared"] = self._compared(inode)
        return found

    def _uri_at(self, inode: Inode) -> DserverURI:
        """Return the URI of what a directory that is above datasets shows."""
        base_uri = self.tree.base_uri_at(inode)
        return self.uri if base_uri is None else DserverURI(self.uri.server, base_uri)

    def _errors(self, inode: Inode, below: str) -> list[dict[str, Any]]:
        """Return the last errors at or below a path, which leads on from an inode by `below`."""
        top = self.in_loop(lambda: self.tree.describe(inode))
        return [error._asdict() for error in self.recent_errors.below(top, below)]

    def _compared(self, inode: Inode) -> str:
        """Return how the item is compared, or those of the dataset; asks the server."""

        tree, content = self._located(inode)
        report = self.reader.report
        return report.of_dataset(tree.dataset) if content is None else report.of_item(content)

    def _cached(self, inode: Inode) -> dict[str, int] | None:
        """Return how much of the item, or of the dataset, is in the cache."""
        tree, content = self._located(inode)
        self.reader.flush()
        return self.cached.described(tree.contents() if content is None else [content])

    def _located(self, inode: Inode) -> tuple[DatasetTree, ItemContent | None]:
        """Return the dataset that an inode is in, and the item if it is one."""

        def locate() -> tuple[DatasetTree, ItemContent | None]:
            frozen = self.tree.locate(inode).frozen()
            if frozen is None:
                raise NotFound("it is not in a frozen dataset any more")
            tree, number = frozen
            content = tree.content(number) if tree.item(number) else None
            return tree, content if isinstance(content, ItemContent) else None

        return self._loaded(locate)

    def _items(self, inodes: Sequence[Inode]) -> list[FoundItem]:
        """Return those of the inodes that are of items."""

        def items() -> list[FoundItem]:
            found = []
            for inode in inodes:
                frozen = self.tree.locate(inode).frozen()
                if frozen is not None and frozen.tree.item(frozen.number) is not None:
                    with contextlib.suppress(IntegrityError):  # refused: it cannot be read
                        content = frozen.tree.content(frozen.number)
                        assert isinstance(content, ItemContent)
                        found.append(FoundItem(inode, content))
            return found

        return self._loaded(items)

    def _traced(self, number: int) -> dict[str, Any]:
        """End a trace and return what was read, in no order."""
        trace = self.in_loop(lambda: self.traces.end(number))
        items = [item.facts(self.uri.server) for item in trace.items.values()]
        return {"items": items, "left_out": trace.left_out}

    def _unsent(self, changes: list[UnsentEdit]) -> list[dict[str, Any]]:
        return [description.of_unsent(change, self.uri.server) for change in changes]

    def _discard(self, inode: Inode) -> str:
        """Discard a staged dataset, or what was written into a frozen one and is not sent."""
        frozen = self._frozen(inode)
        if frozen is not None:
            dataset = frozen.tree.dataset
            path = self._loaded(lambda: frozen.tree.path(frozen.number)) or ""
            self.edits.discard(dataset, path)
            return f"what was written to {dataset.name}/{path}"
        staged = self._staged(inode)
        self.freezer.discard(staged)
        base_uri, name = staged.record.base_uri, staged.record.name
        # Else the kernel shows it for as long as it was told to believe in it.
        self.forget_name(self.in_loop(lambda: self.tree.directory_of(base_uri)), name)
        return name

    def _freeze(self, inode: Inode, layout: Layout | None) -> Iterator[Answer]:
        frozen = self._frozen(inode)
        if frozen is not None:
            yield {"result": {"uri": self._dserver_uri(frozen.tree.dataset.uri), "notes": []}}
            return
        staged = self._staged(inode)
        job = self.freezer.freeze(staged, layout)
        yield from self._progress(staged, job)
        try:
            result = job.result()
        except DserverfsError as error:
            name = staged.record.name
            goes_on = (
                "; it stays staged, and is tried again by itself"
                if self.freezer.goes_on(staged)
                else ""
            )
            said = str(error).removeprefix(f"{name}: ")
            raise UsageError(f"{name}: {said}{goes_on}") from error
        yield {"result": {"uri": self._dserver_uri(result.uri), "notes": result.notes}}

    def _drain(self, timeout_s: float, asked_by: int) -> Iterator[Answer]:
        """Freeze what may be frozen; the result is what stays staged."""
        end_s = time.monotonic() + timeout_s
        jobs = self.freezer.drain(asked_by=asked_by)
        uploads: dict[StagedDataset, Progress] = {}
        while time.monotonic() < end_s:
            done, going = wait_for([job for _, job in jobs], timeout=PROGRESS_S)
            for staged, _ in jobs:
                if (progress := self.freezer.progress(staged)) is not None:
                    uploads[staged] = progress
            yield {
                "progress": {"datasets_done": len(done), "datasets_total": len(jobs)},
                "uploads": [sum(numbers) for numbers in zip(*uploads.values(), strict=True)],
            }
            if not going:
                break
        self.edits.flush(max(end_s - time.monotonic(), 0.0))
        yield {"result": self._pending(asked_by)}

    def _progress(self, staged: StagedDataset, job: Future[Any]) -> Iterator[Answer]:
        while not job.done():
            wait_for([job], timeout=PROGRESS_S)
            doing = self.freezer.doing(staged)
            if doing is not None:
                # Commands of 0.1.0 know the fields of `progress`, and no other.
                yield {"progress": doing.progress._asdict(), "phase": doing.phase}

    def _staged(self, inode: Inode) -> StagedDataset:
        def find() -> StagedDataset:
            place = self.tree.locate(inode)
            if (frozen := place.frozen()) is not None:
                raise UsageError(f"{frozen.tree.dataset.name}: is frozen")
            if (tree := place.staged) is None:
                raise UsageError("not a dataset, but a directory above datasets")
            if place.number != tree.ROOT:
                raise UsageError(f"not a dataset, but something in {tree.staged.record.name}")
            return tree.staged

        return self._loaded(find)

    def _frozen(self, inode: Inode) -> InFrozen | None:
        return self._loaded(lambda: self.tree.locate(inode).frozen())

    def _pending(self, asked_by: int = 0) -> list[dict[str, Any]]:
        server = self.uri.server
        return description.of_all_staged(self.staging, self.freezer, server, asked_by=asked_by)

    def _loaded(self, call: Callable[[], R]) -> R:
        """Return what `call`, made in the event loop, returns; loads what it lacks."""
        while True:
            try:
                found: R = self.in_loop(call)
                return found
            except NotLoaded as missing:
                missing.load()

    def _dserver_uri(self, uri: str) -> str:
        base_uri, _, uuid = uri.rpartition("/")
        return f"{DserverURI(self.uri.server, base_uri)}/{uuid}"
