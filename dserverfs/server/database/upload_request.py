"""The body of `POST /signed-urls/upload`: a dataset that a client asks to store, checked.

Pure. No value of a hostile client gets past `of` that a file system, dtool or S3 could
not hold; see `forms` for how it is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from typing import Any, NamedTuple

from marshmallow import fields

from dserverfs.base import limits, model
from dserverfs.base.errors import UsageError
from dserverfs.base.hashes import MD5
from dserverfs.base.model import Identifier
from dserverfs.server.database import forms, item_rules
from dserverfs.server.database.forms import require
from dserverfs.server.database.item_rules import Rule
from dserverfs.server.store import layout

MAX_METADATA_BYTES = 2048  # of S3, names and values of one object's user metadata
MAX_USERNAME_LENGTH = 255  # of dservercore's table

_MD5 = re.compile(r"[0-9a-f]{32}\Z")
_USERNAME = re.compile(r"[!-~]([ -~]*[!-~])?\Z")


class UploadItem(NamedTuple):
    relpath: str
    size_in_bytes: int
    md5: str
    utc_timestamp: float


class UploadRequest(NamedTuple):
    """A dataset as its client announces it, with every rule of `of` kept."""

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
    def parse(cls, body: object, *, max_item_bytes: int) -> UploadRequest:
        """Return the request in a JSON body; raises UsageError with its fault."""
        return cls.of(forms.loaded(FORM, body), max_item_bytes=max_item_bytes)

    @classmethod
    def of(cls, loaded: Mapping[str, Any], *, max_item_bytes: int) -> UploadRequest:
        """Return the request in a body that FORM has loaded; raises UsageError."""
        values = {key: value for key, value in loaded.items() if key != "hash_function"}
        values["items"] = items = _items(values["items"], max_item_bytes)
        values["tags"] = checked_tags(values["tags"])
        for name, content in values["annotations"].items():
            check_annotation(name, content)
        for name, content in values["overlays"].items():
            check_overlay(name, content, items.keys())
        return cls(**values)

    def to_json(self) -> str:
        """Return the text that `from_json` reads; pending uploads are kept so."""
        return json.dumps(self._asdict())

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


def _items(entries: list[Any], max_item_bytes: int) -> Mapping[Identifier, UploadItem]:
    rules = _rules(max_item_bytes)
    items: dict[Identifier, UploadItem] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UsageError(f"items[{position}] is not a JSON object", status=422)
        item_rules.check_item(entry, rules)
        relpath = entry["relpath"]
        identifier = model.identifier_of(relpath)
        require(identifier not in items, f"relpath {relpath!r} is there twice")
        items[identifier] = UploadItem(
            relpath, entry["size_in_bytes"], entry["hash"], float(entry["utc_timestamp"])
        )
    item_rules.refuse_files_as_directories({item.relpath for item in items.values()})
    return items


def _rules(max_item_bytes: int) -> tuple[Rule, ...]:
    return (
        Rule("relpath", 422, _is_string, "is not a string"),
        item_rules.RELPATH,
        Rule(
            *("relpath", 400),
            lambda relpath: layout.metadata_size(relpath) <= MAX_METADATA_BYTES,
            "is too long for the metadata of an S3 object",
        ),
        Rule("hash", 422, _is_string, "is not a string"),
        Rule("hash", 400, is_md5, "is not an MD5 as 32 hex digits in lower case"),
        Rule("size_in_bytes", 422, forms.is_integer, "is not an integer"),
        Rule(
            *("size_in_bytes", 400),
            lambda size: 0 <= size <= max_item_bytes,
            f"is not between 0 and {max_item_bytes}, the most that the store takes",
        ),
        Rule("utc_timestamp", 422, forms.is_number, "is not a number"),
        Rule("utc_timestamp", 400, limits.date_is_usable, "is not in the years 1 to 9999"),
    )


def _is_string(value: object) -> bool:
    return isinstance(value, str)


def _check_uuid(uuid: str) -> None:
    require(limits.is_uuid(uuid), f"uuid {uuid!r} is not a uuid in lower case with hyphens")


def _check_hash_function(name: str) -> None:
    require(
        name == MD5,
        f"hash_function {name!r} is not {MD5!r}, which S3 can check",
    )


def _check_username(username: str) -> None:
    require(
        len(username) <= MAX_USERNAME_LENGTH and _USERNAME.match(username) is not None,
        f"creator_username {username!r} is not printable ASCII, which is all S3 metadata holds",
    )


def checked_tags(tags: list[str]) -> tuple[str, ...]:
    """Return tags, sorted, each once; raises UsageError."""
    for tag in tags:
        # A key that ends in /.. is another key to every server that normalises paths.
        require(
            limits.name_is_valid(tag) and tag not in (".", ".."),
            f"tag {tag!r} is not a tag dtool accepts",
        )
    return tuple(sorted(set(tags)))


def check_annotation(name: str, value: Any) -> None:
    """Raise UsageError for an annotation that dtool or its S3 broker could not read back."""
    require_metadata_name("annotation", name)
    require_encodable(f"annotation {name}", value)


def check_overlay(name: str, value: Any, identifiers: Set[str]) -> None:
    """Raise UsageError unless `value` has values for items, all of them or some."""
    require_metadata_name("overlay", name)
    if not isinstance(value, dict):
        raise UsageError(f"overlay {name} is not a JSON object", status=422)
    require(
        value.keys() <= identifiers,
        f"overlay {name!r} has a value for what is no identifier of an item",
    )
    require_encodable(f"overlay {name}", value)


def require_metadata_name(kind: str, name: str) -> None:
    """Raise UsageError for a name of an overlay or annotation that could not be read back."""
    require(
        limits.name_is_valid(name) and "." not in name,
        f"{kind} {name!r} is not a name dtool accepts, or has a dot, which dtool-s3 cannot read",
    )


def check_name(name: str) -> None:
    """Raise UsageError for a dataset's name that dtool does not accept."""
    require(limits.name_is_valid(name), f"name {name!r} is not a dataset name dtool accepts")


def check_readme(readme: str) -> None:
    """Raise UsageError for a README that is too large or cannot be stored."""
    require_encodable("README.yml", readme)
    require(
        len(readme.encode()) <= limits.MAX_README_BYTES,
        f"README.yml is larger than {limits.MAX_README_BYTES} bytes",
    )


def require_encodable(what: str, content: Any) -> None:
    """Refuse lone surrogates (JSON escapes make them), numbers that are not JSON, and depth."""
    require(not limits.is_too_deep(content), f"{what} is nested too deeply")
    try:
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise UsageError(f"{what} holds text or a number that JSON cannot", status=400) from error


FORM = forms.form(
    uuid=fields.String(required=True, validate=_check_uuid),
    name=fields.String(required=True, validate=check_name),
    hash_function=fields.String(required=True, validate=_check_hash_function),
    creator_username=fields.String(required=True, validate=_check_username),
    frozen_at=forms.Seconds(required=True),
    created_at=forms.Seconds(load_default=None, allow_none=True),
    items=fields.Raw(required=True, validate=lambda value: isinstance(value, list)),
    tags=forms.Strings(load_default=list),
    annotations=fields.Dict(load_default=dict),
    overlays=fields.Dict(load_default=dict),
)
