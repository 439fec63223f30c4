"""Which names in a frozen dataset's directories a server can change, which are for rewriting them.

Used by the edits of frozen datasets. A *target* is a file whose content is the
server's: README.yml, a tag, an annotation, an overlay, the administrative
metadata with the dataset's name. A *temporary* name is one that programs use while
they rewrite a file; any other name is refused, lest somebody copies results into a
frozen dataset and finds them gone after umount. No state.
"""

from __future__ import annotations

import enum
import os
import re
from typing import Any, NamedTuple

from dserverfs.base.errors import CannotHold, Frozen, NotFound, ProtocolError, UsageError
from dserverfs.base.limits import parse_json
from dserverfs.base.model import Dataset
from dserverfs.catalogue.catalogue import Catalogue
from dserverfs.catalogue.refreshed import loaded
from dserverfs.remote.metadata_api import MetadataWrites, require_metadata_name, require_name
from dserverfs.remote.versions import Version, version_of_json, version_of_text

README = "README.yml"
ADMIN_METADATA = ".dtool/dtool"
TAGS = ".dtool/tags"
ANNOTATIONS = ".dtool/annotations"
OVERLAYS = ".dtool/overlays"
# Where there may be something else than what was frozen.
DIRECTORIES_OF_METADATA = frozenset({TAGS, ANNOTATIONS, OVERLAYS})
DIRECTORIES = frozenset({"", ".dtool"}) | DIRECTORIES_OF_METADATA
_JSON = ".json"

_TEMPORARY = re.compile(r"[.~#].+|.+[~#]|sed[A-Za-z0-9]{6}", re.DOTALL)
_VIM_FIRST, _VIM_STEP = 4913, 123  # vim tries whether it can make a file, of that name or later
_VIM = re.compile(r"\d{4,5}\Z")


class Kind(enum.Enum):
    README = "README"
    NAME = "the name"
    TAG = "tags"
    ANNOTATION = "annotations"
    OVERLAY = "overlays"


class Target(NamedTuple):
    """What a file of a frozen dataset stands for."""

    kind: Kind
    name: str  # of the tag, annotation or overlay; "" for what there is one of
    path: str

    @property
    def can_be_removed(self) -> bool:
        return self.kind not in (Kind.README, Kind.NAME)


def target_of(path: str) -> Target | None:
    """Return what a path in a dataset stands for, if the server can change it."""
    directory, _, name = path.rpartition("/")
    if path == README:
        return Target(Kind.README, "", path)
    if path == ADMIN_METADATA:
        return Target(Kind.NAME, "", path)
    if directory == TAGS:
        return Target(Kind.TAG, name, path)
    if directory in (ANNOTATIONS, OVERLAYS) and name.endswith(_JSON):
        kind = Kind.ANNOTATION if directory == ANNOTATIONS else Kind.OVERLAY
        return Target(kind, name.removesuffix(_JSON), path)
    return None


def is_temporary(path: str) -> bool:
    """Return whether programs call a file so for as long as they rewrite another."""
    directory, _, name = path.rpartition("/")
    if directory not in DIRECTORIES or directory == TAGS:
        return False
    if _TEMPORARY.fullmatch(name) or name.startswith("README.yml"):
        return True
    if _VIM.match(name) and int(name) >= _VIM_FIRST and not (int(name) - _VIM_FIRST) % _VIM_STEP:
        return True
    return directory in (ANNOTATIONS, OVERLAYS) and f"{_JSON}." in name


def is_made_as_temporary(path: str, flags: int, mode: int) -> bool:
    """Return whether a file is made as mkstemp(3) does, whose names say nothing."""
    directory = path.rpartition("/")[0]
    wanted = os.O_RDWR | os.O_EXCL
    return directory in DIRECTORIES - {TAGS} and flags & wanted == wanted and mode & 0o777 == 0o600


def require_usable(target: Target) -> None:
    """Raise UsageError for a name that dtool, or its S3 broker, would not accept."""
    if target.kind is Kind.TAG:
        require_name("tag", target.name)
    elif target.kind is Kind.ANNOTATION:
        require_metadata_name("annotation", target.name)
    elif target.kind is Kind.OVERLAY:
        require_metadata_name("overlay", target.name)


def require_route(writes: MetadataWrites, dataset: Dataset, target: Target | None) -> None:
    """Raise Frozen if the server surely has no route for it; None: for anything at all.

    May ask the server.
    """
    kind = target.kind if target else Kind.README
    needs_all = kind in (Kind.OVERLAY, Kind.NAME)
    if not (writes.supports_all() if needs_all else writes.supports(dataset)):
        lacks = "has no route to change"
        if writes.supported() and not needs_all:
            lacks = "does not say of a dataset this large what it has of"
        raise Frozen(
            f"{dataset.uri}: is frozen, and its server {lacks} {kind.value}",
            uri=dataset.uri,
        )


def version_of(target: Target, content: bytes) -> Version:
    """Return the version of a target's content."""
    return version_of_text(content) if target.kind is Kind.README else version_of_json(content)


def renew(target: Target, dataset: Dataset, catalogue: Catalogue) -> None:
    """Have what the server has now before it is changed; raises NotLoaded, once, if it is old."""
    if target.kind is Kind.README:
        catalogue.renew_readme(dataset)
    else:
        catalogue.renew_metadata(dataset)


def content_of(target: Target, dataset: Dataset, catalogue: Catalogue) -> bytes:
    """Return what the server has; raises NotFound, and NotLoaded as the catalogue does."""
    if target.kind is Kind.README:
        return catalogue.readme(dataset)
    metadata = catalogue.metadata(dataset)
    if target.kind is Kind.NAME:
        return metadata.admin_metadata
    if target.kind is Kind.TAG:
        if target.name in metadata.tags:
            return b""
    elif target.kind is Kind.ANNOTATION:
        if target.name in metadata.annotations:
            return metadata.annotations[target.name]
    elif target.name in metadata.overlays:
        return metadata.overlays[target.name]
    raise NotFound(f"{dataset.uri}: no {target.path}")


def send(
    target: Target,
    content: bytes,
    dataset: Dataset,
    writes: MetadataWrites,
    catalogue: Catalogue,
    read: Version | None = None,
) -> None:
    """Make the server's what was written; raises UsageError for what it cannot be, or as `writes`.

    Raises ChangedMeanwhile if the server has something else than was `read` before. Blocks.
    """
    require_usable(target)
    if target.kind is Kind.README:
        writes.put_readme(dataset, content, read)
    elif target.kind is Kind.TAG:
        if content:
            raise CannotHold(f"{target.path}: a tag has no content")
        writes.put_tag(dataset, target.name)
    elif target.kind is Kind.ANNOTATION:
        writes.put_annotation(dataset, target.name, _json_of(target, content), read)
    elif target.kind is Kind.OVERLAY:
        values = _json_of(target, content)
        if not isinstance(values, dict):
            raise UsageError(f"{target.path}: is no JSON object of a value for each identifier")
        writes.put_overlay(dataset, target.name, values, read)
    else:
        _send_name(target, content, dataset, writes, catalogue)


def delete(target: Target, dataset: Dataset, writes: MetadataWrites) -> None:
    """Take a tag, an annotation or an overlay away from the dataset; blocks. Raises Frozen."""
    require_usable(target)
    if target.kind is Kind.TAG:
        writes.delete_tag(dataset, target.name)
    elif target.kind is Kind.ANNOTATION:
        writes.delete_annotation(dataset, target.name)
    elif target.kind is Kind.OVERLAY:
        writes.delete_overlay(dataset, target.name)
    else:
        raise Frozen(f"{dataset.uri}: a dataset has a {target.path}", uri=dataset.uri)


def _send_name(
    target: Target,
    content: bytes,
    dataset: Dataset,
    writes: MetadataWrites,
    catalogue: Catalogue,
) -> None:
    """Rename the dataset, as `dtool name` does by writing all of its administrative metadata."""
    wanted = _json_of(target, content)
    now = parse_json(loaded(lambda: content_of(target, dataset, catalogue)), dataset.uri)
    if not isinstance(now, dict):
        raise ProtocolError(f"{dataset.uri}: its administrative metadata is no object")
    if not isinstance(wanted, dict) or {**wanted, "name": ""} != {**now, "name": ""}:
        raise UsageError(f"{dataset.uri}: of {target.path} only the name can be changed")
    name = wanted.get("name")
    if not isinstance(name, str):
        raise UsageError(f"{dataset.uri}: {target.path} has no name")
    if name != now.get("name"):
        writes.rename(dataset, name)


def _json_of(target: Target, content: bytes) -> Any:
    try:
        return parse_json(content, target.path)
    except ProtocolError as error:
        raise UsageError(str(error)) from error
