"""What a staged directory would be as a dataset: which files are items, and under what relpath.

Used by sealing. Reads names and small metadata files, no items. Two layouts:

    dtool   only `data/`, `README.yml` and `.dtool/` at the top: `data/` holds the items
    items   no `data/` and no `.dtool/` at the top: every file but a top-level
            README.yml is an item, with its path as relpath

`data/` or `.dtool/` beside anything else is ambiguous, and only a person can decide.
"""

from __future__ import annotations

import enum
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dserverfs.errors import CannotHold, NotUTF8, UsageError

README = "README.yml"
DATA = "data"
METADATA = ".dtool"


class Layout(enum.Enum):
    ITEMS = "items"
    DTOOL = "dtool"


class Ambiguous(UsageError):
    """The files can be read as either layout: a person has to say which it is."""


class StillProto(UsageError):
    """dtool made it, and dtool's own freeze has to end it."""


@dataclass(frozen=True)
class File:
    """A file as it was found: whether it is the same later can be told by comparing."""

    path: Path
    size_in_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True)
class Survey:
    """A staged directory, as it would be frozen."""

    layout: Layout
    items: Mapping[str, File]  # by relpath
    readme: bytes
    admin_metadata: Mapping[str, Any] | None  # of a dataset that was frozen elsewhere
    manifest: Mapping[str, Any] | None  # of the same
    tags: list[str]
    annotations: Mapping[str, Any]
    overlays: Mapping[str, Any]
    left_over: list[str] = field(default_factory=list)  # names at the top that are no part of it
    empty_directories: int = 0
    executables: int = 0

    @property
    def size_in_bytes(self) -> int:
        return sum(file.size_in_bytes for file in self.items.values())

    def losses(self) -> str | None:
        """Return in one line what a dataset cannot keep of it; None if it keeps everything."""
        lost = []
        if self.empty_directories:
            lost.append(f"{self.empty_directories} empty directories")
        if self.executables:
            lost.append(f"the executable bits of {self.executables} files")
        return f"not kept in the dataset: {' and '.join(lost)}" if lost else None


def survey(tree: Path, wanted: Layout | None = None) -> Survey:
    """Look at what there is. Raises Ambiguous, StillProto, UsageError for what cannot be frozen.

    `wanted` decides where the layout is ambiguous. Raises OSError as the disk does.
    """
    top = sorted(os.listdir(tree))
    layout = wanted or _layout(top)
    if layout is Layout.DTOOL and not (tree / DATA).is_dir():
        raise Ambiguous(f"{DATA} is a file: say what it is with dserverfs freeze --layout items")
    if layout is Layout.ITEMS:
        found = _Found(tree)
        found.walk(tree, skip=README)
        return Survey(
            layout,
            found.items,
            _readme(tree),
            None,
            None,
            [],
            {},
            {},
            [],
            found.empty_directories,
            found.executables,
        )
    found = _Found(tree / DATA)
    found.walk(tree / DATA)
    metadata = tree / METADATA
    admin = _json(metadata / "dtool") if (metadata / "dtool").exists() else None
    if admin is not None and admin.get("type") != "dataset":
        raise StillProto(
            "it is a proto dataset that dtool made: freeze it with dtool freeze, or remove .dtool"
        )
    tags = metadata / "tags"
    return Survey(
        layout,
        found.items,
        _readme(tree),
        admin,
        None if admin is None else _json(metadata / "manifest.json"),
        sorted(os.listdir(tags)) if tags.is_dir() else [],
        _json_files(metadata / "annotations"),
        _json_files(metadata / "overlays"),
        [name for name in top if name not in (DATA, README, METADATA)],
        found.empty_directories,
        found.executables,
    )


def _layout(top: list[str]) -> Layout:
    if DATA not in top and METADATA not in top:
        return Layout.ITEMS
    beside = [name for name in top if name not in (DATA, README, METADATA)]
    if beside or DATA not in top:
        other = beside[0] if beside else "no data/"
        raise Ambiguous(
            f"{DATA if DATA in top else METADATA}/ is there beside {other}:"
            " say what it is with dserverfs freeze --layout items|dtool"
        )
    return Layout.DTOOL


class _Found:
    """What a walk through a directory finds."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self.items: dict[str, File] = {}
        self.empty_directories = 0
        self.executables = 0

    def walk(self, root: Path, *, skip: str | None = None) -> None:
        """Collect every file but `skip` at the top."""
        pending = [(str(root), "")]
        while pending:
            directory, prefix = pending.pop()
            entries = 0
            for entry in _sorted_entries(directory):
                entries += 1
                if not prefix and entry.name == skip:
                    continue
                relpath = prefix + entry.name
                _require_text(relpath)
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    pending.append((entry.path, f"{relpath}/"))
                elif stat.S_ISREG(status.st_mode):
                    self._add(entry.path, relpath, status)
                else:
                    raise CannotHold(f"{relpath}: is neither a file nor a directory")
            if not entries and prefix:
                self.empty_directories += 1

    def _add(self, path: str, relpath: str, status: os.stat_result) -> None:
        self.executables += bool(status.st_mode & 0o111)
        self.items[relpath] = File(
            Path(path),
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
        )


def _sorted_entries(directory: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        yield from sorted(entries, key=lambda entry: entry.name)


def _require_text(relpath: str) -> None:
    try:
        relpath.encode("utf-8")
    except UnicodeEncodeError:
        raise NotUTF8(f"{relpath!r}: is not UTF-8") from None


def _readme(tree: Path) -> bytes:
    try:
        return (tree / README).read_bytes()
    except FileNotFoundError:
        return b""


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path.name}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path.name}: is not a JSON object")
    return value


def _json_files(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        return {}
    found = {}
    for path in sorted(directory.iterdir()):
        try:
            found[path.name.removesuffix(".json")] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{directory.name}/{path.name}: cannot be read: {error}") from error
    return found
