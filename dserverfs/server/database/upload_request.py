"""The body of `POST /signed-urls/upload`, checked: what a client may ask to store.

Pure. Nothing a hostile client sends gets past `parse` that a file system, dtool
or S3 could not hold: the answer is UsageError, with status 422 if the body is not
of the documented form and 400 if a value is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from dserverfs.base import limits, model
from dserverfs.base.errors import UsageError
from dserverfs.base.model import Identifier
from dserverfs.server.store import layout

HASH_FUNCTION = "md5sum_hexdigest"
MAX_METADATA_BYTES = 2048  # of S3, names and values of one object's user metadata
MAX_USERNAME_LENGTH = 255  # of dservercore's table

_MD5 = re.compile(r"[0-9a-f]{32}\Z")
_USERNAME = re.compile(r"[!-~]([ -~]*[!-~])?\Z")


@dataclass(frozen=True)
class UploadItem:
    relpath: str
    size_in_bytes: int
    md5: str
    utc_timestamp: float


@dataclass(frozen=True)
class UploadRequest:
    """A dataset as its client announces it, with every rule of `parse` kept."""

    uuid: model.UUID
    name: str
    creator_username: str
    frozen_at: float
    created_at: float | None
    items: Mapping[Identifier, UploadItem]
    tags: tuple[str, ...]
    annotations: Mapping[str, Any]
    overlays: Mapping[str, Mapping[str, Any]]

    @classmethod
    def parse(cls, body: Any, *, max_item_bytes: int) -> UploadRequest:
        """Return the request in a JSON body; raises UsageError with what is wrong with it."""
        entry = _object(body, "the body")
        uuid = _string(entry, "uuid")
        _require(limits.is_uuid(uuid), f"uuid {uuid!r} is not a uuid in lower case with hyphens")
        name = _string(entry, "name")
        check_name(name)
        hash_function = _string(entry, "hash_function")
        _require(
            hash_function == HASH_FUNCTION,
            f"hash_function {hash_function!r} is not {HASH_FUNCTION!r}, which S3 can check",
        )
        items = _items(entry.get("items"), max_item_bytes)
        return cls(
            uuid=model.UUID(uuid),
            name=name,
            creator_username=_username(entry),
            frozen_at=_timestamp(entry, "frozen_at"),
            created_at=None if entry.get("created_at") is None else _timestamp(entry, "created_at"),
            items=items,
            tags=checked_tags(entry.get("tags", [])),
            annotations=_annotations(entry.get("annotations", {})),
            overlays=_overlays(entry.get("overlays", {}), items),
        )

    def to_json(self) -> str:
        """Return what `from_json` reads; the form in which pending uploads are kept."""
        return json.dumps(
            {
                "uuid": self.uuid,
                "name": self.name,
                "creator_username": self.creator_username,
                "frozen_at": self.frozen_at,
                "created_at": self.created_at,
                "items": {
                    identifier: [item.relpath, item.size_in_bytes, item.md5, item.utc_timestamp]
                    for identifier, item in self.items.items()
                },
                "tags": self.tags,
                "annotations": self.annotations,
                "overlays": self.overlays,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> UploadRequest:
        entry = json.loads(text)
        entry["items"] = {key: UploadItem(*values) for key, values in entry["items"].items()}
        entry["tags"] = tuple(entry["tags"])
        return cls(**entry)

    @property
    def size_in_bytes(self) -> int:
        return sum(item.size_in_bytes for item in self.items.values())


def is_md5(value: Any) -> bool:
    """Return whether it is an MD5 as a manifest writes it."""
    return isinstance(value, str) and _MD5.match(value) is not None


def _items(value: Any, max_item_bytes: int) -> Mapping[Identifier, UploadItem]:
    if not isinstance(value, list):
        raise _malformed("items is not a list")
    items: dict[Identifier, UploadItem] = {}
    for position, data in enumerate(value):
        item = _item(_object(data, f"items[{position}]"), max_item_bytes)
        identifier = model.identifier_of(item.relpath)
        _require(identifier not in items, f"relpath {item.relpath!r} is there twice")
        items[identifier] = item
    refuse_files_as_directories({item.relpath for item in items.values()})
    return items


def _item(entry: Mapping[str, Any], max_item_bytes: int) -> UploadItem:
    relpath = _string(entry, "relpath")
    _require(
        limits.relpath_is_usable(relpath),
        f"relpath {relpath!r} is not a relative path of plain components",
    )
    _require(
        layout.metadata_size(relpath) <= MAX_METADATA_BYTES,
        f"relpath {relpath!r} is too long for the metadata of an S3 object",
    )
    md5 = _string(entry, "hash")
    _require(
        is_md5(md5),
        f"hash {md5!r} of {relpath!r} is not an MD5 as 32 hex digits in lower case",
    )
    size = entry.get("size_in_bytes")
    if isinstance(size, bool) or not isinstance(size, int):
        raise _malformed(f"size_in_bytes of {relpath!r} is not an integer")
    _require(
        0 <= size <= max_item_bytes,
        f"size_in_bytes {size} of {relpath!r} is not between 0 and {max_item_bytes}, "
        "the most that the store takes",
    )
    return UploadItem(relpath, size, md5, _timestamp(entry, "utc_timestamp"))


def refuse_files_as_directories(relpaths: Set[str]) -> None:
    """Raise UsageError if one of the relpaths is a directory of another."""
    for relpath in relpaths:
        parent = relpath.rpartition("/")[0]
        while parent:
            _require(
                parent not in relpaths, f"relpath {parent!r} is a file and a directory at once"
            )
            parent = parent.rpartition("/")[0]


def _username(entry: Mapping[str, Any]) -> str:
    username = _string(entry, "creator_username")
    _require(
        len(username) <= MAX_USERNAME_LENGTH and _USERNAME.match(username) is not None,
        f"creator_username {username!r} is not printable ASCII, which is all S3 metadata holds",
    )
    return username


def checked_tags(value: Any) -> tuple[str, ...]:
    """Return a list of tags, sorted; raises UsageError."""
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise _malformed("tags is not a list of strings")
    for tag in value:
        # A key that ends in /.. is another key to every server that normalises paths.
        _require(
            limits.name_is_valid(tag) and tag not in (".", ".."),
            f"tag {tag!r} is not a tag dtool accepts",
        )
    return tuple(sorted(set(value)))


def _annotations(value: Any) -> Mapping[str, Any]:
    annotations = _object(value, "annotations")
    for name, content in annotations.items():
        check_annotation(name, content)
    return annotations


def check_annotation(name: str, value: Any) -> None:
    """Raise UsageError for what dtool or its S3 broker could not read back."""
    require_metadata_name("annotation", name)
    require_encodable(f"annotation {name}", value)


def _overlays(
    value: Any, items: Mapping[Identifier, UploadItem]
) -> Mapping[str, Mapping[str, Any]]:
    overlays = _object(value, "overlays")
    for name, content in overlays.items():
        check_overlay(name, content, items.keys())
    return overlays


def check_overlay(name: str, value: Any, identifiers: Set[str]) -> None:
    """Raise UsageError unless `value` has values for items, all of them or some."""
    require_metadata_name("overlay", name)
    values = _object(value, f"overlay {name}")
    _require(
        values.keys() <= identifiers,
        f"overlay {name!r} has a value for what is no identifier of an item",
    )
    require_encodable(f"overlay {name}", value)


def require_metadata_name(kind: str, name: str) -> None:
    """Raise UsageError for a name of an overlay or annotation that could not be read back."""
    _require(
        limits.name_is_valid(name) and "." not in name,
        f"{kind} {name!r} is not a name dtool accepts, or has a dot, which dtool-s3 cannot read",
    )


def check_name(name: str) -> None:
    """Raise UsageError for a dataset's name that dtool does not accept."""
    _require(limits.name_is_valid(name), f"name {name!r} is not a dataset name dtool accepts")


def check_readme(readme: str) -> None:
    """Raise UsageError for a README that is too large or cannot be stored."""
    require_encodable("README.yml", readme)
    _require(
        len(readme.encode()) <= limits.MAX_README_BYTES,
        f"README.yml is larger than {limits.MAX_README_BYTES} bytes",
    )


def require_encodable(what: str, content: Any) -> None:
    """Refuse lone surrogates (JSON escapes make them), numbers that are not JSON, and depth."""
    _require(not limits.is_too_deep(content), f"{what} is nested too deeply")
    try:
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise UsageError(f"{what} holds text or a number that JSON cannot", status=400) from error


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _malformed(f"{what} is not a JSON object")
    return value


def _string(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise _malformed(f"{key} is missing or not a string")
    return value


def _timestamp(entry: Mapping[str, Any], key: str) -> float:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _malformed(f"{key} is missing or not a number")
    _require(
        limits.date_is_usable(value),
        f"{key} is not a number of seconds in the years 1 to 9999",
    )
    return float(value)


def _malformed(message: str) -> UsageError:
    return UsageError(message, status=422)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message, status=400)
