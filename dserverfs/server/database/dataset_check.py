"""The rules for a dataset that is registered: those of uploads, for every other way in.

Used by the search plugin, which dservercore asks first at each registration: by a client
(PUT /uris), by the index of a bucket, by our own freeze. A copy of a dataset writes files
where its manifest says, so no relpath may lead anywhere else. A bucket of another server
may have other hashes and larger items than an upload to ours. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dserverfs.base import limits
from dserverfs.base.errors import UsageError
from dserverfs.base.limits import quoted
from dserverfs.base.model import identifier_of
from dserverfs.server.database import item_rules, upload_request
from dserverfs.server.database.dataset_info import readme_text
from dserverfs.server.database.forms import require
from dserverfs.server.database.item_rules import Rule
from dserverfs.server.database.upload_request import MAX_USERNAME_LENGTH


def check_dataset(info: Mapping[str, Any]) -> None:
    """Raise UsageError with the first fault of a dataset that dservercore is to register."""
    uri, base_uri, uuid = info["uri"], info["base_uri"], str(info["uuid"])
    require(limits.is_text(uri) and limits.is_text(base_uri), "its URI is no text")
    # dservercore asks for rights on the one and reads by the other.
    require(uri.rpartition("/")[0] == base_uri, f"{uri} is not in {base_uri}")
    require(limits.is_uuid(uuid) and uri.endswith(f"/{uuid}"), f"{uri} is not of {quoted(uuid)}")
    upload_request.check_name(info["name"])
    user = info["creator_username"]
    require(
        limits.is_text(user) and len(user) <= MAX_USERNAME_LENGTH and user.isprintable(),
        f"creator_username {quoted(user)} is no user's name",
    )
    for key in ("frozen_at", "created_at"):
        moment = info.get(key, 0)
        require(_is_date(moment), f"{key} {quoted(moment)} is not in the years 1 to 9999")
    for key, is_usable in (
        ("number_of_items", limits.count_is_usable),
        ("size_in_bytes", limits.size_is_usable),
    ):
        value = info.get(key)
        require(value is None or is_usable(value), f"{key} {quoted(value)} cannot be")
    upload_request.check_readme(readme_text(info))
    upload_request.checked_tags(info["tags"])
    for name, value in info["annotations"].items():
        require(limits.name_is_valid(name), f"annotation {quoted(name)}: not a name of dtool's")
        upload_request.require_encodable(f"annotation {name}", value)
    _check_manifest(info["manifest"])


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    function = manifest.get("hash_function", "")
    require(limits.is_text(function), f"hash_function {quoted(function)} is no name")
    items = manifest.get("items")
    if not isinstance(items, dict):
        raise UsageError("the manifest has no items", status=400)
    for identifier, item in items.items():
        item_rules.check_item(item, _RULES)
        if identifier != identifier_of(item["relpath"]):
            raise UsageError(
                f"identifier {quoted(identifier)} is not that of {quoted(item['relpath'])}",
                status=400,
            )
    total = sum(item["size_in_bytes"] for item in items.values())
    require(limits.size_is_usable(total), f"the items have {total} bytes together")
    item_rules.refuse_files_as_directories({item["relpath"] for item in items.values()})


def _is_date(value: object) -> bool:
    """Return whether it is a number of seconds, or dservercore's text of one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return False
    try:
        return limits.date_is_usable(float(value))
    except (ValueError, OverflowError):
        return False


_RULES = (
    Rule("relpath", 400, lambda relpath: isinstance(relpath, str), "is not a string"),
    item_rules.RELPATH,
    Rule("size_in_bytes", 400, limits.size_is_usable, "cannot be"),
    Rule("hash", 400, limits.hash_is_usable, "is none"),
    Rule(
        *("utc_timestamp", 400),
        lambda moment_s: not isinstance(moment_s, str) and _is_date(moment_s),
        "is not in the years 1 to 9999",
        0.0,
    ),
)
