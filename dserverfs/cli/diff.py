"""`dserverfs diff`: shows what a freeze would make of a staged dataset."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dserverfs.base.printable import counted
from dserverfs.cli.arguments import Commands, example, say

if TYPE_CHECKING:
    from dserverfs.base.disk_tables import DiskDict
    from dserverfs.writing.staging.survey import Survey

EXIT_WOULD_FAIL = 1


def add(commands: Commands) -> None:
    parser = commands.add_parser("diff", help="show what a freeze would make of a dataset")
    parser.description = (
        "Show the items that `dserverfs freeze DIR` would make, what it would leave out, and the"
        " metadata. Changes nothing. Exits with 1 if DIR could not be frozen."
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="the dataset, in a mount")
    parser.add_argument(
        "--layout", choices=["items", "dtool"], help="read DIR as freeze does with this option"
    )
    parser.add_argument(
        "--hash", action="store_true", help="read all files, and show the MD5 of each"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.epilog = example("dserverfs diff ~/lab/my-results")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.cli import mounted

    staged: dict[str, Any] = mounted.last(mounted.find(arguments.directory).ask("staged"))
    found = _surveyed(staged, arguments.layout)
    hashes = _hashed(staged, found) if arguments.hash else None
    refused = list(_refused(staged, found, hashes))
    if arguments.json:
        _print_json(staged, found, hashes, refused)
    else:
        _print(staged, found, hashes, refused)
    return EXIT_WOULD_FAIL if refused else 0


def _surveyed(staged: dict[str, Any], layout: str | None) -> Survey:
    """Return what is there, as the daemon would read it; raises UsageError."""
    from dserverfs.base.errors import UsageError
    from dserverfs.base.excluded import Excluded
    from dserverfs.writing.staging.survey import Layout, survey

    try:
        with _still_there(staged):
            return survey(
                _tree_of(staged),
                Layout(layout) if layout else None,
                excluded=Excluded(staged["exclude"]),
            )
    except UsageError as error:
        raise UsageError(f"{staged['name']}: cannot be frozen: {error}") from error


def _hashed(staged: dict[str, Any], found: Survey) -> DiskDict:
    """Return the MD5 of each item by its path. What is hashed here the freeze need not hash."""
    from dserverfs.base.disk_tables import DiskDict
    from dserverfs.cli.progress import ProgressLine
    from dserverfs.writing.staging.file_hashes import Hashes

    hashed = DiskDict()
    with (
        ProgressLine() as line,
        _still_there(staged),
        Hashes(Path(staged["directory"]) / "hashes", _tree_of(staged)) as hashes,
    ):
        hashes.each(
            found.items.largest_first(),
            lambda path, md5: hashed.__setitem__(str(path), md5),
            totals=(found.size_in_bytes, len(found.items)),
            on_progress=partial(line.progress, "hashing"),
        )
    return hashed


def _refused(staged: dict[str, Any], found: Survey, hashes: DiskDict | None) -> Iterator[str]:
    """Yield what keeps it from being frozen, one text for each reason."""
    from dserverfs.base.errors import DserverfsError
    from dserverfs.writing.staging import frozen_elsewhere

    limit = staged["max_item_bytes"]
    for relpath, file in found.items.items():
        if limit is not None and file.size_in_bytes > limit:
            yield f"{relpath}: has more than {limit} bytes, the most this server can have stored"
    if found.admin_metadata is None or found.manifest is None:
        return
    try:
        frozen_elsewhere.require_admin(found.admin_metadata)
        yield from frozen_elsewhere.differences(
            found,
            found.manifest,
            lambda file: None if hashes is None else hashes[str(file.path)],
        )
    except DserverfsError as error:  # of metadata that are none
        yield str(error)


@contextlib.contextmanager
def _still_there(staged: dict[str, Any]) -> Iterator[None]:
    """Raise UsageError, which says why, for what the disk says of its files."""
    from dserverfs.base.errors import UsageError

    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(
            f"{staged['name']}: changed while it was read, or is not staged any more: look again"
        ) from error
    except OSError as error:
        raise UsageError(f"{_tree_of(staged)}: cannot be read: {error.strerror}") from error


def _tree_of(staged: dict[str, Any]) -> Path:
    from dserverfs.writing.staging.dataset import TREE

    return Path(staged["directory"]) / TREE


def _print(
    staged: dict[str, Any], found: Survey, hashes: DiskDict | None, refused: list[str]
) -> None:
    from dserverfs.base.printable import listed
    from dserverfs.cli.progress import size

    for relpath, file in found.items.items():
        md5 = "" if hashes is None else f"{hashes[str(file.path)]}  "
        say(f"{md5}{size(file.size_in_bytes):>10}  {relpath}")
    readme = size(len(found.readme)) if found.readme else "none"
    say(
        f"{staged['name']}: {counted(len(found.items), 'item')}, {size(found.size_in_bytes)}, for"
        f" {staged['base_uri']}"
    )
    if found.manifest is not None:
        say(f"a copy of the frozen dataset {(found.admin_metadata or {}).get('uuid')}")
    say(f"README.yml: {readme}")
    for kind, names in _metadata(found).items():
        if names:
            say(f"{kind}: {listed(names)}")
    if found.excluded.count:
        say(f"excluded: {found.excluded}")
    if found.left_over:
        say(f"left out: {listed(found.left_over)}")
    if losses := found.losses():
        say(losses)
    for note in staged.get("notes", ()):
        say(note)
    if staged["open_files"]:
        say(f"open for writing: {counted(staged['open_files'], 'file')}, to be closed first")
    if staged["reason"]:
        state = staged["state"] if staged["armed"] else "waits for dserverfs freeze"
        say(f"{state}: {staged['reason']}")
    for reason in refused:
        say(f"cannot be frozen: {reason}")


def _print_json(
    staged: dict[str, Any], found: Survey, hashes: DiskDict | None, refused: list[str]
) -> None:
    """Print one object; each item has a line, for there may be a million of them."""
    facts = {
        **{key: staged[key] for key in ("name", "base_uri", "state", "armed", "reason")},
        "uuid": (found.admin_metadata or staged).get("uuid"),
        "open_files": staged["open_files"],
        "layout": found.layout.value,
        "number_of_items": len(found.items),
        "size_in_bytes": found.size_in_bytes,
        "readme_size_in_bytes": len(found.readme),
        **_metadata(found),
        "excluded": found.excluded.first,
        "number_of_excluded": found.excluded.count,
        "left_out": found.left_over,
        "empty_directories": found.empty_directories.first,
        "executables": found.executables.first,
        "refused": staged.get("refused", []),
        "cannot_be_frozen": refused,
    }
    print(f'{json.dumps(facts, indent=2)[:-2]},\n  "items": [', end="")
    separator = ""
    for relpath, file in found.items.items():
        item: dict[str, Any] = {"relpath": relpath, "size_in_bytes": file.size_in_bytes}
        if hashes is not None:
            item["hash"] = hashes[str(file.path)]
        print(f"{separator}\n    {json.dumps(item)}", end="")
        separator = ","
    print("\n  ]\n}")


def _metadata(found: Survey) -> dict[str, list[str]]:
    return {
        "tags": found.tags,
        "annotations": sorted(found.annotations),
        "overlays": sorted(found.overlays),
    }
