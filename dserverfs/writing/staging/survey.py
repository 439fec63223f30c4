"""A staged directory read as a dataset: its items with their relpaths, and its metadata.

Used by sealing. Reads names and small metadata files, no items. Two layouts:

    dtool   only `data/`, `README.yml` and `.dtool/` at the top: `data/` holds the items
    items   no `data/` and no `.dtool/` at the top: every file but a top-level
            README.yml is an item, with its path as relpath

`data/` or `.dtool/` beside anything else is ambiguous, and only a person can decide. With
`.dtool/dtool` it is dtool's layout; files beside it, but for READMEs that dtool replaced
(`README.yml-<timestamp>`), are left out if a person says so by the command.

Files with an excluded name are no items, and count for no layout; what is in the manifest of a
dataset that was frozen elsewhere is an item whatever its name.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dserverfs.base import utf8_names
from dserverfs.base.disk_tables import FileTable
from dserverfs.base.dtool_layout import (
    ADMIN_METADATA,
    ANNOTATIONS,
    AT_THE_TOP,
    DATA,
    MANIFEST,
    METADATA,
    OVERLAYS,
    README,
    read_json,
    read_json_files,
    read_tags,
)
from dserverfs.base.errors import CannotHold, NotUTF8, UsageError
from dserverfs.base.excluded import NOTHING, Excluded
from dserverfs.base.limits import MAX_README_BYTES

_REPLACED = f"{README}-"  # what dtool's disk broker calls a README that it replaced
NAMED = 5  # of what is lost
REMEMBERED = 1000


def is_item_at_the_top(name: str) -> bool:
    """Return whether a name at the top, where no layout is chosen yet, is an item's, or of some."""
    return name not in AT_THE_TOP


class Layout(enum.Enum):
    ITEMS = "items"
    DTOOL = "dtool"


class Ambiguous(UsageError):
    """The files can be read as either layout: a person has to say which it is."""


class StillProto(UsageError):
    """dtool made it, and dtool's own freeze has to end it."""


@dataclass
class Lost:
    """Files that are not kept in a dataset: their number, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, relpath: str) -> None:
        self.count += 1
        if len(self.first) < REMEMBERED:
            self.first.append(relpath)

    def __str__(self) -> str:
        more = f" and {self.count - NAMED} more" if self.count > NAMED else ""
        return f"{', '.join(self.first[:NAMED])}{more}"


@dataclass(frozen=True)
class Survey:
    """A staged directory, as it would be frozen."""

    layout: Layout
    items: FileTable
    readme: bytes
    admin_metadata: Mapping[str, Any] | None  # of a dataset that was frozen elsewhere
    manifest: Mapping[str, Any] | None  # of the same
    tags: list[str]
    annotations: Mapping[str, Any]
    overlays: Mapping[str, Any]
    left_over: list[str] = field(default_factory=list)  # names at the top that are no part of it
    empty_directories: Lost = field(default_factory=Lost)
    executables: Lost = field(default_factory=Lost)
    excluded: Lost = field(default_factory=Lost)  # directories end in /, and count as one

    @property
    def size_in_bytes(self) -> int:
        return self.items.size_in_bytes

    def losses(self) -> str | None:
        """Return in one line what a dataset cannot keep of it; None if it keeps everything."""
        lost = []
        if self.empty_directories.count:
            lost.append(f"empty directories: {self.empty_directories}")
        if self.executables.count:
            lost.append(f"executable bits: {self.executables}")
        return f"not kept in the dataset: {'; '.join(lost)}" if lost else None


def survey(
    tree: Path,
    wanted: Layout | None = None,
    *,
    excluded: Excluded = NOTHING,
    by_itself: bool = False,
) -> Survey:
    """Look at what there is. Raises Ambiguous, StillProto, UsageError for what cannot be frozen.

    `wanted` decides where the layout is ambiguous. With `by_itself` no user is there to
    say that something may be left out. Raises OSError as the disk does.
    """
    utf8_names.require()
    names = os.listdir(tree)
    top = sorted(name for name in names if name in AT_THE_TOP or name not in excluded)
    is_dtools = (tree / ADMIN_METADATA).is_file()
    layout = wanted or _layout(top, is_dtools=is_dtools, by_itself=by_itself)
    if layout is Layout.DTOOL and not (tree / DATA).is_dir():
        raise Ambiguous(f"{DATA} is a file: say what it is with dserverfs freeze --layout items")
    if layout is Layout.ITEMS:
        found = _Found(tree, excluded)
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
            found.excluded,
        )
    admin = read_json(tree / ADMIN_METADATA) if (tree / ADMIN_METADATA).exists() else None
    if admin is not None and admin.get("type") != "dataset":
        raise StillProto(
            "it is a proto dataset that dtool made: freeze it with dtool freeze, or remove .dtool"
        )
    manifest = None if admin is None else read_json(tree / MANIFEST)
    found = _Found(tree / DATA, excluded, _relpaths(manifest))
    found.walk(tree / DATA)
    for name in sorted(set(names).difference(top)):
        found.excluded.add(f"{name}/" if (tree / name).is_dir() else name)
    return Survey(
        layout,
        found.items,
        _readme(tree),
        admin,
        manifest,
        read_tags(tree),
        read_json_files(tree / ANNOTATIONS),
        read_json_files(tree / OVERLAYS),
        [name for name in top if name not in AT_THE_TOP],
        found.empty_directories,
        found.executables,
        found.excluded,
    )


def _layout(top: list[str], *, is_dtools: bool, by_itself: bool) -> Layout:
    if DATA not in top and METADATA not in top:
        return Layout.ITEMS
    beside = [name for name in top if name not in AT_THE_TOP]
    if is_dtools and DATA in top:
        beside = [name for name in beside if not name.startswith(_REPLACED)]
        if not by_itself:
            return Layout.DTOOL
    if beside or DATA not in top:
        other = beside[0] if beside else "no data/"
        raise Ambiguous(
            f"{DATA if DATA in top else METADATA}/ is there beside {other}:"
            " say what it is with dserverfs freeze --layout items|dtool"
        )
    return Layout.DTOOL


def _relpaths(manifest: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the paths that a manifest has; whether it is a good one is found out later."""
    items = (manifest or {}).get("items")
    entries = items.values() if isinstance(items, dict) else ()
    return frozenset(str(each.get("relpath")) for each in entries if isinstance(each, dict))


class _Found:
    """The files found by a walk through a directory."""

    def __init__(self, root: Path, excluded: Excluded, named: frozenset[str] = frozenset()) -> None:
        """Those that are `named` are items whatever is excluded."""
        self._excluded = excluded
        self._named = named
        self.items = FileTable(root)
        self.empty_directories = Lost()
        self.executables = Lost()
        self.excluded = Lost()

    def walk(self, root: Path, *, skip: str | None = None) -> None:
        """Collect every file but `skip` at the top."""
        pending = [(str(root), "", False)]
        while pending:
            directory, prefix, is_excluded = pending.pop()
            is_empty = True
            for entry in _sorted_entries(directory):
                if not prefix and entry.name == skip:
                    continue
                relpath = prefix + entry.name
                _require_text(relpath)
                status = entry.stat(follow_symlinks=False)
                is_directory = stat.S_ISDIR(status.st_mode)
                no_item = is_excluded or entry.name in self._excluded
                if no_item and (not self._named if is_directory else relpath not in self._named):
                    self.excluded.add(f"{relpath}/" if is_directory else relpath)
                    continue
                is_empty = False
                if is_directory:
                    pending.append((entry.path, f"{relpath}/", no_item))
                elif stat.S_ISREG(status.st_mode):
                    self._add(relpath, status)
                else:
                    raise CannotHold(f"{relpath}: is neither a file nor a directory")
            if is_empty and prefix and not is_excluded:
                self.empty_directories.add(prefix.rstrip("/"))

    def _add(self, relpath: str, status: os.stat_result) -> None:
        if status.st_mode & 0o111:
            self.executables.add(relpath)
        self.items.add(relpath, status.st_size, status.st_mtime_ns)


def _sorted_entries(directory: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        yield from sorted(entries, key=lambda entry: entry.name)


def _require_text(relpath: str) -> None:
    try:
        relpath.encode("utf-8")
    except UnicodeEncodeError:
        raise NotUTF8(f"{relpath!r}: is not UTF-8") from None


def _readme(tree: Path) -> bytes:
    """Return the README; raises UsageError for one that no server takes."""
    try:
        with (tree / README).open("rb") as file:
            content = file.read(MAX_README_BYTES + 1)
        content.decode("utf-8")
    except FileNotFoundError:
        return b""
    except IsADirectoryError:
        raise UsageError(f"{README}: is a directory, and has to be a text") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{README}: is no text in UTF-8 (its byte {error.start} is not): convert it, as"
            f" iconv -f latin1 -t utf-8 does, or give it another name"
        ) from None
    if len(content) > MAX_README_BYTES:
        raise UsageError(
            f"{README}: is larger than {MAX_README_BYTES} bytes, the most a dataset's README can"
            " have: give it another name, and it is an item"
        )
    return content
