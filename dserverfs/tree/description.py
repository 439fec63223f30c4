"""The facts of a path in a mount: for `dserverfs status` and for extended attributes.

Pure but for the tree; raises NotLoaded as the tree does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dserverfs.base.dtool_layout import DATA, METADATA, README
from dserverfs.base.errors import DserverfsError
from dserverfs.base.local_files import files_below
from dserverfs.base.model import DserverURI
from dserverfs.tree.frozen_dataset import DatasetTree
from dserverfs.writing.edits.journal import UnsentEdit
from dserverfs.writing.freezer import Freezer
from dserverfs.writing.staging import refused_files
from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.staging.survey import survey

OVERLAY = "overlay."
# Those of the facts that are extended attributes as well.
ATTRIBUTES = frozenset(
    {"uuid", "uri", "name", "creator_username", "frozen_at", "identifier", "hash"}
)
_LOOKS = 3  # at a directory whose files come and go


def of_frozen(tree: DatasetTree, number: int, server: str) -> dict[str, Any]:
    """Return the facts of a dataset, and of the item if `number` is one's."""
    dataset = tree.dataset
    facts: dict[str, Any] = {
        "state": "frozen",
        "uuid": dataset.uuid,
        "uri": str(DserverURI(server, dataset.base_uri, dataset.uuid)),
        "name": dataset.name,
        "creator_username": dataset.creator_username,
        "frozen_at": dataset.frozen_at,
    }
    item = tree.item(number)
    if item is None:
        return facts
    facts |= {
        "identifier": item.identifier,
        "relpath": item.relpath,
        "size_in_bytes": item.size_in_bytes,
        "hash": item.hash,
    }
    for name, value in tree.overlay_values(item.identifier).items():
        facts[f"{OVERLAY}{name}"] = value
    return facts


def of_staged(
    staged: StagedDataset, freezer: Freezer | None, *, asked_by: int = 0
) -> dict[str, Any]:
    """Return the facts of a staged dataset; looks at its files on the disk.

    `asked_by` is a process for which nothing waits.
    """
    facts = {
        **_in_short(staged),
        "waits_for": freezer.waits_for(staged, asked_by=asked_by) if freezer else None,
        "creator_username": staged.record.creator_username,
        "created_at": staged.record.created_at,
        **_refused(staged),
        **_amount(staged),
    }
    doing = freezer.doing(staged) if freezer else None
    if doing is not None:
        phase, progress, bytes_per_s, left_s = doing
        facts["progress"] = {
            "phase": phase,
            **progress._asdict(),
            "bytes_per_s": bytes_per_s,
            "left_s": left_s,
        }
    return facts


def to_be_read(staged: StagedDataset, freezer: Freezer) -> dict[str, Any]:
    """Return the facts that one needs who reads the files of a staged dataset; reads nothing."""
    return {
        **_in_short(staged),
        **_refused(staged),
        "exclude": staged.excluded.patterns,
        "max_item_bytes": freezer.max_item_bytes,
    }


def of_all_staged(
    staging: Staging | None, freezer: Freezer, server: str, *, asked_by: int = 0
) -> list[dict[str, Any]]:
    """Return the facts of all that is staged, and of what is but cannot be used."""
    if staging is None:
        return []
    base_uris = list(staging.base_uris())
    all_staged = [
        of_staged(staged, freezer, asked_by=asked_by)
        for base_uri in base_uris
        for staged in staging.datasets(base_uri)
        if staged.frozen_as is None
    ]
    for base_uri in base_uris:
        uri = DserverURI(server, base_uri)
        for directory, reason in staging.unusable(base_uri).items():
            all_staged.append(of_unusable(directory, uri, reason))
    return all_staged


def of_unusable(directory: Path, base_uri: DserverURI, reason: str) -> dict[str, Any]:
    """Return the facts of a staged dataset of which a file of ours is damaged."""
    return {
        "state": "unusable",
        "armed": False,
        "reason": reason,
        "waits_for": None,
        "name": directory.name,
        "base_uri": str(base_uri),
        "created_at": 0.0,
        "directory": str(directory),
        "open_files": 0,
        "number_of_items": None,
        "size_in_bytes": None,
    }


def of_unsent(change: UnsentEdit, server: str) -> dict[str, Any]:
    """Return the facts of what was written into a frozen dataset and is not sent yet."""
    note, dataset = change.note, change.note.dataset
    return {
        "dataset": str(DserverURI(server, dataset.base_uri, dataset.uuid)),
        "name": dataset.name,
        "path": note.path,
        "file": str(change.local),
        "size_in_bytes": change.size_in_bytes,
        "changed_at": note.changed_at,
        "reason": note.reason,
    }


def attributes(tree: DatasetTree, number: int, server: str) -> dict[str, str]:
    """Return the extended attributes of a number in a frozen dataset, by name."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in of_frozen(tree, number, server).items()
        if name in ATTRIBUTES or name.startswith(OVERLAY)
    }


def _in_short(staged: StagedDataset) -> dict[str, Any]:
    record = staged.record
    return {
        "state": record.shown_state,
        "armed": record.armed and not record.manual,
        "reason": record.reason or staged.problem,
        "name": record.name,
        "base_uri": str(DserverURI(record.server, record.base_uri)),
        "uuid": record.uuid or record.id,
        "directory": str(staged.directory),
        "open_files": staged.writers,
    }


def _refused(staged: StagedDataset) -> dict[str, Any]:
    """Return the files that were refused and are not there since; no facts if there are none."""
    refused = staged.refused.missing()
    if not refused:
        return {}
    return {
        "refused": [each._asdict() for each in refused],
        "notes": refused_files.told(refused),
    }


def _amount(staged: StagedDataset) -> dict[str, Any]:
    """Return the number of items and their bytes; where the layout is unclear, of all files.

    None, and why, if they cannot be counted: it is not empty then.
    """
    excluded = problem = None
    for _ in range(_LOOKS):
        try:
            found = survey(staged.tree, excluded=staged.excluded)
            number_of_items, size_in_bytes = len(found.items), found.size_in_bytes
            excluded = str(found.excluded) or None
        except (DserverfsError, OSError, ValueError):
            try:
                number_of_items, size_in_bytes = _amount_of_files(staged.tree)
            except OSError as error:
                problem = f"its files cannot be counted: {error.filename}: {error.strerror}"
                if isinstance(error, FileNotFoundError):  # it changes while it is looked at
                    continue
                break
        return {
            "number_of_items": number_of_items,
            "size_in_bytes": size_in_bytes,
            "excluded": excluded,
        }
    return {"number_of_items": None, "size_in_bytes": None, "not_counted": problem}


def _amount_of_files(tree: Path) -> tuple[int, int]:
    """Return the number and bytes of what may be items: with `.dtool` beside it, that in `data`."""
    top = tree / DATA if (tree / METADATA).is_dir() else tree
    files = [
        entry.stat()
        for relpath, entry in files_below(top)
        if entry.is_file() and (top != tree or relpath not in (README, METADATA))
    ]
    return len(files), sum(status.st_size for status in files)
