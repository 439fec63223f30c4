"""Files that were staged with a dataset and are no part of it: they outlast the freeze.

Used by the freezer, before it deletes what was staged. They are moved to the staged dataset's
`kept_directory`, with their paths. A crash in between leaves each file in one of the two
places, and the next mount moves the rest. Blocking on the local disk.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.dtool_layout import DATA, METADATA, README
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.local_files import files_below, make_private, named, subdirectories
from dserverfs.base.model import identifier_of
from dserverfs.writing.staging.dataset import KEPT, StagedDataset
from dserverfs.writing.staging.sealing import has_dtool_layout


class Kept(NamedTuple):
    """The files that one freeze left over."""

    directory: Path
    number_of_files: int
    size_in_bytes: int


def keep(staged: StagedDataset, local: LocalDataset) -> None:
    """Move what is no part of the dataset out of what is about to be deleted; raises OSError."""
    has_metadata = has_dtool_layout(staged, local)
    root = f"{DATA}/" if has_metadata else ""
    for relpath, _ in files_below(staged.tree):
        if relpath == README or (has_metadata and relpath.startswith(f"{METADATA}/")):
            continue
        if relpath.startswith(root) and _is_item(relpath[len(root) :], local):
            continue
        kept = staged.kept_directory / relpath
        make_private(kept.parent)
        os.rename(staged.tree / relpath, kept)


def all_kept(directory: Path) -> list[Kept]:
    """Return what the freezes of a staging directory left over, and nobody deleted. OSError."""
    found = []
    for server in sorted(subdirectories(directory)):
        for base_uri in sorted(subdirectories(server)):
            for path in named(base_uri, f"{KEPT}*"):
                with contextlib.suppress(FileNotFoundError):  # it is deleted just now
                    sizes = [
                        each.stat(follow_symlinks=False).st_size for _, each in files_below(path)
                    ]
                    found.append(Kept(path, len(sizes), sum(sizes)))
    return found


def _is_item(relpath: str, local: LocalDataset) -> bool:
    try:
        return identifier_of(relpath) in local.items
    except UnicodeEncodeError:  # below an excluded directory, where nobody looked
        return False
