"""A dataset that was frozen elsewhere and is copied in: is it what its own metadata say?

Used by sealing, and where a user asks beforehand. No state, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dserverfs.base.disk_tables import File
from dserverfs.base.errors import IntegrityError, ProtocolError, UsageError
from dserverfs.base.hashes import MD5
from dserverfs.base.limits import is_uuid, name_is_valid, parse_timestamp
from dserverfs.base.model import Item
from dserverfs.writing.staging.survey import Survey

_EDITED = "; if it was edited on purpose, rm -r its .dtool makes a new dataset of it"


def require_admin(admin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the admin metadata, with its dates as numbers; raises UsageError if it is none."""
    uuid, name = admin.get("uuid"), admin.get("name")
    if not isinstance(uuid, str) or not is_uuid(uuid):
        raise UsageError(f".dtool/dtool: {uuid!r} is not a uuid")
    if not isinstance(name, str) or not name_is_valid(name):
        raise UsageError(f".dtool/dtool: {name!r} is not a dataset's name")
    for key in ("creator_username", "frozen_at"):
        if key not in admin:
            raise UsageError(f".dtool/dtool: has no {key}")
    dates = {key: _date(key, admin[key]) for key in ("frozen_at", "created_at") if key in admin}
    return {**admin, **dates}


def _date(key: str, value: object) -> float:
    try:
        return parse_timestamp(value)
    except ProtocolError as error:
        raise UsageError(f".dtool/dtool: {key}: {error}") from error


def require_same(
    found: Survey, manifest: Mapping[str, Any], md5_of: Callable[[File], str]
) -> dict[str, float]:
    """Return the manifest's timestamps by relpath; raises IntegrityError where files differ."""
    for difference in differences(found, manifest, md5_of):
        raise IntegrityError(f"{difference}{_EDITED}")
    return {
        entry["relpath"]: parse_timestamp(entry.get("utc_timestamp", 0.0))
        for entry in manifest.get("items", {}).values()
    }


def differences(
    found: Survey, manifest: Mapping[str, Any], md5_of: Callable[[File], str | None]
) -> Iterator[str]:
    """Yield what is not as in the manifest, one text for each file; raises UsageError.

    A file of which `md5_of` gives None is compared by its size alone.
    """
    if manifest.get("hash_function") != MD5:
        raise UsageError(f"its hash function {manifest.get('hash_function')!r} is not MD5")
    items = manifest.get("items", {})
    if not isinstance(items, dict):
        raise UsageError(".dtool/manifest.json: its items are no object")
    named = set()
    for identifier, entry in items.items():
        item = Item.from_json(identifier, entry)
        named.add(item.relpath)
        file = found.items.get(item.relpath)
        if file is None:
            yield f"{item.relpath}: is in the manifest, but not there"
        elif file.size_in_bytes != item.size_in_bytes or md5_of(file) not in (None, item.hash):
            yield f"{item.relpath}: is not what the manifest says"
    for relpath in sorted(found.items.keys() - named):
        yield f"{relpath}: is there, but not in the manifest"
