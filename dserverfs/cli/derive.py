"""`dserverfs derive`: begins a dataset with the items of a frozen one, and notes which that was."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dserverfs.base.dtool_layout import ADMIN_METADATA, ANNOTATIONS, DATA, JSON, README
from dserverfs.cli.arguments import Commands, example, say

SOURCE = "source_dataset_{}"  # annotations, as dtoolcore's `DerivedDataSetCreator` names them


def add(commands: Commands) -> None:
    parser = commands.add_parser("derive", help="begin a dataset with the items of another one")
    parser.description = (
        "Make DIR, a new dataset in a mount, with a copy of the items of DATASET, and note in it"
        " which dataset that was. It waits for `dserverfs freeze DIR`."
    )
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="a frozen one in a mount, or the URI of one in the base URI of DIR",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="new, beside other datasets")
    parser.epilog = example("dserverfs derive ~/lab/my-results ~/lab/my-results-corrected")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.base.errors import DserverfsError
    from dserverfs.cli.whole_items import EXIT_FAILED, Summary, WholeItem

    directory: Path = arguments.directory
    parent = directory.absolute().parent
    source = _source(arguments.dataset, parent)
    origin = _origin(source)
    items, copies = source / DATA, directory / DATA
    _require_space(items, parent)
    _make(directory, source)
    summary = Summary()
    incomplete = f"{directory}: is incomplete: dserverfs discard {directory}, and derive it again"
    try:
        summary.run(
            "copying",
            (
                WholeItem(relpath, size, partial(_copy, items / relpath, copies / relpath))
                for relpath, size in _files(items)
            ),
        )
        if not summary.failed:
            _note(directory, origin)
    except (KeyboardInterrupt, DserverfsError):
        say(incomplete, file=sys.stderr)
        raise
    if summary.failed:
        say(summary.text("", "could not be copied"))
        say(incomplete)
        return EXIT_FAILED
    say(summary.text(f"{directory}: copied from {origin['uri']}", ""))
    return 0


def _make(directory: Path, source: Path) -> None:
    """Make a staged dataset that waits for a command; raises UsageError."""
    from dserverfs.base.errors import UsageError
    from dserverfs.cli import mounted
    from dserverfs.tree.filesystem import FREEZE_ATTRIBUTE

    beside = f"{directory}: is not where datasets are, as {source.parent / directory.name} would be"
    try:
        parent = mounted.find(directory.absolute().parent)
    except UsageError as error:
        raise UsageError(f"{beside}: {error}") from None
    if mounted.last(parent.ask("status"))["state"] != "directory":
        raise UsageError(beside)
    with _told():
        directory.mkdir()
        os.setxattr(directory, FREEZE_ATTRIBUTE, b"manual")  # while there is nothing in it
        (directory / DATA).mkdir()


def _note(directory: Path, origin: dict[str, Any]) -> None:
    """Write into a dataset which one it was derived from; raises UsageError."""
    from dserverfs.cli import readme

    with _told():
        (directory / ANNOTATIONS).mkdir(parents=True)
        for key in ("name", "uri", "uuid"):
            path = directory / ANNOTATIONS / f"{SOURCE.format(key)}{JSON}"
            path.write_text(json.dumps(origin[key]), "utf-8")
        (directory / README).write_text(readme.derived(origin["uri"]), "utf-8")


def _source(dataset: str, beside: Path) -> Path:
    """Return the directory of a dataset that is named by its path, or by its URI in `beside`."""
    from dserverfs.base.errors import UsageError
    from dserverfs.base.model import DserverURI
    from dserverfs.cli.remote_items import is_uri

    if not is_uri(dataset):
        return Path(dataset)
    wanted = DserverURI.parse(dataset)
    path = beside / ".uuid" / str(wanted.uuid)
    if wanted.uuid is None or not path.is_dir() or _origin(path)["uri"] != str(wanted):
        raise UsageError(f"{dataset}: is not a dataset in {beside}: give its path in a mount")
    return path


def _origin(source: Path) -> dict[str, Any]:
    """Return the facts of a frozen dataset at a path; raises UsageError unless it is one."""
    from dserverfs.base.errors import UsageError
    from dserverfs.cli import mounted

    facts: dict[str, Any] = mounted.last(mounted.find(source).ask("status"))
    if facts["state"] != "frozen" or not (source / ADMIN_METADATA).is_file():
        raise UsageError(f"{source}: is not a frozen dataset")
    return facts


def _require_space(items: Path, parent: Path) -> None:
    """Raise UsageError unless the disk for staged datasets has room for all items."""
    from dserverfs.base.disk_space import free_in_bytes
    from dserverfs.base.errors import UsageError
    from dserverfs.cli.progress import size

    needed = sum(size_in_bytes for _, size_in_bytes in _files(items))
    with _told():
        free = free_in_bytes(parent)
    if needed > free:
        raise UsageError(
            f"{items}: has {size(needed)}, and the disk for new datasets has {size(free)} free;"
            " dserverfs cache clear frees what the cache holds"
        )


def _files(root: Path) -> Iterator[tuple[str, int]]:
    """Yield the path and the size of each file below a directory; raises UsageError."""
    from dserverfs.base.local_files import files_below

    with _told():
        for path, entry in files_below(root):
            yield path, entry.stat().st_size


def _copy(item: Path, copy: Path) -> None:
    """Copy a file with its time; raises UsageError. The mount compares what it reads."""
    with _told():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(item, copy)
        status = item.stat()
        os.utime(copy, ns=(status.st_mtime_ns, status.st_mtime_ns))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    from dserverfs.base.errors import UsageError

    try:
        yield
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
