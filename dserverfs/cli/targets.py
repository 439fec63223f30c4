"""The items that a user names for `warm` and `pin`: by URIs, by paths in mounts, by a plan.

Of a path, the mount's daemon says what its items are and does what is done with the cache:
its server, token and cache are its own. Blocking.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base.dtool_layout import METADATA, README
from dserverfs.base.errors import DserverfsError
from dserverfs.base.items import REFUSED_PREFIX, block_length
from dserverfs.base.limits import understood
from dserverfs.base.model import Dataset, DserverURI, Identifier
from dserverfs.cli import local_items, mounted, remote_items
from dserverfs.cli.fetching import Found
from dserverfs.cli.item_globs import ItemGlobs
from dserverfs.cli.plans import Plan, Wish
from dserverfs.cli.remote_items import RemoteItem
from dserverfs.cli.whole_items import BytesSoFar, Summary, WholeItem
from dserverfs.client import Client
from dserverfs.reading.cache import maintenance, pinning
from dserverfs.reading.cache.maintenance import Room
from dserverfs.reading.open_item import MAX_BLOCKS_AT_ONCE

_TOGETHER = 500  # items that a cache or a mount is asked about


class UriTarget:
    """The items of datasets of a server."""

    def __init__(
        self,
        client: Client,
        server: str,
        datasets: Sequence[Dataset],
        chosen: ItemGlobs,
        summary: Summary,
    ) -> None:
        self.cache = str(client.cache.directory)
        self._client = client
        self._server = server
        self._datasets = datasets
        self._chosen = chosen
        self._summary = summary

    def room(self) -> Room:
        return maintenance.room(self._client.cache)

    def prepare(self) -> None:
        if self._chosen:
            return
        catalogue = self._client.catalogue
        for base_uri in dict.fromkeys(dataset.base_uri for dataset in self._datasets):
            self._attempt(DserverURI(self._server, base_uri), partial(catalogue.listed, base_uri))
        for dataset in self._datasets:
            self._attempt(catalogue.uri_of(dataset), partial(catalogue.keep, dataset))

    def _attempt(self, uri: DserverURI, step: Callable[[], object]) -> None:
        try:
            step()
        except DserverfsError as error:
            self._summary.fail(str(uri), str(error))

    def items(self) -> Iterator[Found]:
        reader = self._client.reader
        for some in self._some():
            contents = [item.content for item in some]
            pinned = pinning.pinned(self._client.cache, contents)
            for item, held in zip(some, reader.held(contents), strict=True):
                content, size = item.content, item.content.size_in_bytes
                yield Found(
                    remote_items.to_be_warmed(self._client, item),
                    held,
                    held == size and reader.has_all_verified(content) and not content.is_refused,
                    content.key in pinned,
                )

    def pin(self) -> None:
        self._client.reader.flush()
        for some in self._some():
            contents = [item.content for item in some]
            pinning.pin(self._client.cache, self._server, contents)

    def left_out(self) -> int:
        self._client.reader.flush()
        return sum(
            item.name not in self._summary.bad and not self._client.reader.has_all(item.content)
            for some in self._some()
            for item in some
        )

    def _some(self) -> Iterator[list[RemoteItem]]:
        """Yield the items that are meant, some at a time."""
        items = remote_items.items_of(self._client, self._datasets, self._chosen.has)
        while some := list(itertools.islice(items, _TOGETHER)):
            yield some


class PlanTarget:
    """The bytes that a plan wants of datasets of a server."""

    def __init__(self, client: Client, server: str, plan: Plan, summary: Summary) -> None:
        self.cache = str(client.cache.directory)
        self._client = client
        self._plan = {uri: wishes for uri, wishes in plan.items() if uri.server == server}
        self._summary = summary

    def room(self) -> Room:
        return maintenance.room(self._client.cache)

    def prepare(self) -> None:
        """Do nothing: a plan has no whole datasets."""

    def pin(self) -> None:
        raise AssertionError  # a plan is not pinned

    def items(self) -> Iterator[Found]:
        for uri, wishes in self._plan.items():
            try:
                yield from self._items(uri, wishes)
            except DserverfsError as error:
                self._summary.fail(str(uri), str(error))

    def left_out(self) -> int:
        self._client.reader.flush()
        return sum(
            not found.is_here and found.item.name not in self._summary.bad for found in self.items()
        )

    def _items(self, uri: DserverURI, wishes: Mapping[Identifier, Wish]) -> Iterator[Found]:
        catalogue, reader = self._client.catalogue, self._client.reader
        left = dict(wishes)
        for relpath, content in catalogue.contents(catalogue.dataset(uri)):
            wish = left.pop(content.identifier, None)
            if wish is None:
                continue
            name = f"{uri} {relpath}"
            if wish.hash != content.hash:
                self._summary.fail(name, f"has hash {content.hash}, the plan says {wish.hash}")
                continue
            if content.number_of_blocks > MAX_BLOCKS_AT_ONCE:
                self._summary.fail(name, "is larger than a plan can be of")
                continue
            blocks = wish.blocks(content.size_in_bytes)
            size = sum(block_length(content.size_in_bytes, block) for block in blocks)
            held = reader.held_in(content, blocks)
            item = RemoteItem(name, content)
            work = partial(remote_items.warm_blocks, self._client, item, blocks)
            yield Found(WholeItem(name, size, work), held, held == size, is_pinned=False)
        for wish in left.values():
            self._summary.fail(f"{uri} {wish.relpath}", "is not in the dataset")


class _Item(NamedTuple):
    """An item, as the mount's daemon describes it."""

    relpath: str
    held_in_bytes: int
    is_here: bool
    is_pinned: bool


class _File(NamedTuple):
    """A file in a mount."""

    path: Path
    inode: int
    size_in_bytes: int
    item: _Item | None  # None: it is none


class PathTarget:
    """The items at or below a path in a mount."""

    def __init__(self, path: Path, chosen: ItemGlobs, summary: Summary) -> None:
        self._path = path
        self._mount = mounted.find(path)
        self._chosen = chosen
        self._summary = summary
        self.cache = str(self._asked("room")["directory"])

    def room(self) -> Room:
        answer = self._asked("room")
        with understood("the mount's answer"):
            return Room(**{name: answer[name] for name in Room._fields})

    def prepare(self) -> None:
        """Have READMEs and all that is in `.dtool` read, which the mount keeps."""
        if self._chosen:
            return
        for file in self._files():
            if file.item is None and _is_of_a_frozen_dataset(file.path):
                try:
                    local_items.read(file.path)
                except DserverfsError as error:
                    self._summary.fail(str(file.path), str(error))

    def items(self) -> Iterator[Found]:
        for file in self._files():
            if file.item is None or not self._chosen.has(file.item.relpath):
                continue
            name, size = str(file.path), file.size_in_bytes
            item, so_far = file.item, BytesSoFar()
            work = WholeItem(name, size, partial(_have_read, file.path, so_far), so_far)
            yield Found(work, item.held_in_bytes, item.is_here, item.is_pinned)

    def pin(self) -> None:
        self._tell("pin")

    def unpin(self) -> int:
        """Let the items be evicted again; return how many were pinned."""
        unpinned = self._tell("unpin")
        self._asked("release")
        return unpinned

    def left_out(self) -> int:
        return sum(
            not found.is_here and found.item.name not in self._summary.bad for found in self.items()
        )

    def _tell(self, command: str) -> int:
        """Give the mount a command about all items; return the sum of what it answers."""
        done = 0
        meant = (
            file
            for file in self._files()
            if file.item is not None and self._chosen.has(file.item.relpath)
        )
        while some := list(itertools.islice(meant, _TOGETHER)):
            done += int(self._asked(command, inodes=[file.inode for file in some]))
        return done

    def _files(self) -> Iterator[_File]:
        """Yield each file with what the mount says of it; what cannot be listed is a failure."""
        files = self._walk()
        while some := list(itertools.islice(files, _TOGETHER)):
            answer = self._asked("items", inodes=[status.st_ino for _, status in some])
            with understood("the mount's answer"):
                items = {inode: _Item(*rest) for inode, *rest in answer}
            for path, status in some:
                yield _File(path, status.st_ino, status.st_size, items.get(status.st_ino))

    def _walk(self) -> Iterator[tuple[Path, os.stat_result]]:
        if not self._path.is_dir():
            yield self._path, os.lstat(self._path)
            return
        for below, directories, names in os.walk(self._path, onerror=self._cannot_be_listed):
            directories.sort()
            for name in sorted(names):
                path = Path(below, name)
                try:
                    yield path, os.lstat(path)
                except OSError as error:
                    self._summary.fail(str(path), f"cannot be looked at: {error.strerror}")

    def _cannot_be_listed(self, error: OSError) -> None:
        self._summary.fail(str(error.filename), f"cannot be listed: {error.strerror}")

    def _asked(self, command: str, **parameters: Any) -> Any:
        return mounted.last(self._mount.ask(command, **parameters))


def _is_of_a_frozen_dataset(path: Path) -> bool:
    """Return whether what is no item may be of a frozen dataset, and no file that is staged."""
    return path.name == README or METADATA in path.parts or path.name.startswith(REFUSED_PREFIX)


def _have_read(path: Path, so_far: BytesSoFar) -> None:
    """Read a file, which its mount keeps; raises IntegrityError if it cannot be read."""
    local_items.read(path, so_far)
