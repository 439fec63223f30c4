"""dtool's layout on disk: the paths in a dataset's directory, and its metadata read from them.

Used wherever a dataset is a directory: staged, on a disk, shown in a mount, or as
dtoolcore names what it reads (its keys are these paths). No state. Imports what the
broker's module has imported anyway.

    README.yml
    data/<relpath>                   the items
    .dtool/dtool                     the administrative metadata
    .dtool/manifest.json             of a frozen one
    .dtool/{overlays,annotations}/<name>.json
    .dtool/tags/<tag>                empty
    .dtool/{structure.json,README.txt}, .dtool/tmp_fragments/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base.errors import ProtocolError, UsageError
from dserverfs.base.limits import parse_json, parse_timestamp, understood
from dserverfs.base.model import Identifier, Item

README = "README.yml"
DATA = "data"
METADATA = ".dtool"
AT_THE_TOP = frozenset({README, DATA, METADATA})

ADMIN_METADATA = f"{METADATA}/dtool"
MANIFEST = f"{METADATA}/manifest.json"
STRUCTURE = f"{METADATA}/structure.json"
DTOOL_README = f"{METADATA}/README.txt"
OVERLAYS = f"{METADATA}/overlays"
ANNOTATIONS = f"{METADATA}/annotations"
TAGS = f"{METADATA}/tags"
FRAGMENTS = f"{METADATA}/tmp_fragments"
JSON = ".json"  # ends the names of overlays and annotations


class FrozenItems(NamedTuple):
    """The items of a frozen dataset, as its manifest has them."""

    hash_function: str
    items: dict[Identifier, Item]
    timestamps: dict[Identifier, float]  # epoch seconds


def read_frozen(directory: Path) -> tuple[Mapping[str, Any], FrozenItems]:
    """Return the administrative metadata and the items; raises UsageError unless it is frozen."""
    try:
        admin = read_json(directory / ADMIN_METADATA)
        manifest = read_json(directory / MANIFEST)
        with understood("its metadata"):
            is_frozen = admin["type"] == "dataset"
            items = {
                Identifier(identifier): Item.from_json(identifier, entry)
                for identifier, entry in manifest["items"].items()
            }
            timestamps = {
                Identifier(identifier): parse_timestamp(entry["utc_timestamp"])
                for identifier, entry in manifest["items"].items()
            }
            found = FrozenItems(str(manifest["hash_function"]), items, timestamps)
    except (UsageError, ProtocolError) as error:
        raise UsageError(f"{directory}: not a frozen dataset: {error}") from error
    if not is_frozen:
        raise UsageError(f"{directory}: is not frozen")
    return admin, found


def read_tags(directory: Path) -> list[str]:
    """Return the tags of the dataset in a directory, sorted; raises OSError."""
    tags = directory / TAGS
    return sorted(path.name for path in tags.iterdir()) if tags.is_dir() else []


def read_json(path: Path) -> Mapping[str, Any]:
    """Return a JSON object; raises UsageError for a file that holds none."""
    value = _json(path, path.name)
    if not isinstance(value, dict):
        raise UsageError(f"{path.name}: is not a JSON object")
    return value


def read_json_files(directory: Path) -> dict[str, Any]:
    """Return the overlays or annotations in a directory by name.

    Raises UsageError for any file that is not JSON, or has the name of another one but for its
    ending, and OSError.
    """
    found: dict[str, Any] = {}
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        name = path.name.removesuffix(JSON)
        if name in found:
            raise UsageError(
                f"{directory.name}/{name} and {directory.name}/{path.name}: a dataset has one of"
                " that name; remove one of the files, or rename it"
            )
        found[name] = _json(path, f"{directory.name}/{path.name}")
    return found


def _json(path: Path, name: str) -> Any:
    try:
        return parse_json(path.read_bytes(), "it")
    except (OSError, ProtocolError) as error:
        raise UsageError(f"{name}: cannot be read: {error}") from error
