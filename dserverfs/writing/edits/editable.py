"""The files of a frozen dataset that can be changed, and how: one table of their kinds.

Used by the mount's edits, its trees and the broker. A *target* is a file whose content
is the server's: README.yml, a tag, an annotation, an overlay, the administrative
metadata with the dataset's name. A *temporary* name is one that programs use while
they rewrite a file. Any other name is refused, lest somebody copies results into a
frozen dataset and finds them gone after umount. No state.
"""

from __future__ import annotations

import enum
import functools
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from dserverfs.base.dtool_layout import (
    ADMIN_METADATA,
    ANNOTATIONS,
    JSON,
    METADATA,
    OVERLAYS,
    README,
    TAGS,
)
from dserverfs.base.errors import (
    CannotHold,
    ChangedMeanwhile,
    Frozen,
    NotFound,
    PermissionDenied,
    ProtocolError,
    UsageError,
)
from dserverfs.base.limits import parse_json
from dserverfs.base.model import Dataset
from dserverfs.base.versions import Version, version_of_json, version_of_text
from dserverfs.catalogue.catalogue import Catalogue
from dserverfs.catalogue.refreshed import loaded
from dserverfs.remote.metadata_api import MetadataWrites, require_metadata_name, require_name

# The directories whose names can change after the freeze.
DIRECTORIES_OF_METADATA = frozenset({TAGS, ANNOTATIONS, OVERLAYS})
DIRECTORIES = frozenset({"", METADATA}) | DIRECTORIES_OF_METADATA

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
    """A file of a frozen dataset that the server can change."""

    kind: Kind
    name: str  # of the tag, annotation or overlay; "" where there is one only
    path: str

    @property
    def can_be_removed(self) -> bool:
        return _ROUTES[self.kind].delete is not None

    def version_of(self, content: bytes) -> Version | None:
        """Return the version of a content; None where none is compared."""
        version_of = _ROUTES[self.kind].version_of
        return None if version_of is None else version_of(content)


def target_of(path: str) -> Target | None:
    """Return the target at a path of a dataset; None if the server cannot change it."""
    directory, _, name = path.rpartition("/")
    if path == README:
        return Target(Kind.README, "", path)
    if path == ADMIN_METADATA:
        return Target(Kind.NAME, "", path)
    if directory == TAGS:
        return Target(Kind.TAG, name, path)
    if directory in (ANNOTATIONS, OVERLAYS) and name.endswith(JSON):
        kind = Kind.ANNOTATION if directory == ANNOTATIONS else Kind.OVERLAY
        return Target(kind, name.removesuffix(JSON), path)
    return None


def is_temporary(path: str) -> bool:
    """Return whether programs use such a name only while they rewrite another file."""
    directory, _, name = path.rpartition("/")
    if directory not in DIRECTORIES or directory == TAGS:
        return False
    if _TEMPORARY.fullmatch(name) or name.startswith(README):
        return True
    if _VIM.match(name) and int(name) >= _VIM_FIRST and not (int(name) - _VIM_FIRST) % _VIM_STEP:
        return True
    return directory in (ANNOTATIONS, OVERLAYS) and f"{JSON}." in name


def is_made_as_temporary(path: str, flags: int, mode: int) -> bool:
    """Return whether a file is made as mkstemp(3) does, whose names say nothing."""
    directory = path.rpartition("/")[0]
    wanted = os.O_RDWR | os.O_EXCL
    return directory in DIRECTORIES - {TAGS} and flags & wanted == wanted and mode & 0o777 == 0o600


def content_of(target: Target, dataset: Dataset, catalogue: Catalogue) -> bytes:
    """Return the server's content; raises NotFound, and NotLoaded as the catalogue does."""
    content = _ROUTES[target.kind].read(catalogue, dataset, target.name)
    if content is None:
        raise NotFound(f"{dataset.uri}: no {target.path}")
    return content


class EditableFiles:
    """The targets of the datasets of one server. Thread-safe; blocks, but for `present`."""

    def __init__(self, writes: MetadataWrites, catalogue: Catalogue) -> None:
        self._writes = writes
        self._catalogue = catalogue

    def require_changeable(self, dataset: Dataset, target: Target | None) -> None:
        """Raise UsageError for a name that dtool refuses, Frozen or PermissionDenied.

        A temporary file has no target; it may become a README.
        """
        kind, writes = target.kind if target else Kind.README, self._writes
        needs_all = _ROUTES[kind].needs_all
        if target is not None:
            _ROUTES[kind].require_name(target.name)
        if not (writes.supports_all() if needs_all else writes.supports(dataset)):
            lacks = "has no route to change"
            if writes.supported() and not needs_all:
                lacks = "does not say of a dataset this large what it has of"
            raise Frozen(
                f"{dataset.uri}: is frozen, and its server {lacks} {kind.value}",
                uri=dataset.uri,
            )
        user = loaded(self._catalogue.user)
        if dataset.base_uri not in user.register_base_uris:
            raise PermissionDenied(
                f"{dataset.uri}: user {user.username} may not register in {dataset.base_uri},"
                " and so not change what is there",
                uri=dataset.uri,
            )

    def present(self, target: Target, dataset: Dataset) -> bytes:
        """Return the server's content as it is now; raises NotFound, and NotLoaded if it is old."""
        if target.kind is Kind.README:
            self._catalogue.renew_readme(dataset)
        else:
            self._catalogue.renew_metadata(dataset)
        return content_of(target, dataset, self._catalogue)

    def content(self, target: Target, dataset: Dataset) -> bytes:
        """Return the server's content; raises NotFound."""
        return loaded(lambda: content_of(target, dataset, self._catalogue))

    def exists(self, target: Target, dataset: Dataset) -> bool:
        try:
            self.content(target, dataset)
        except NotFound:
            return False
        return True

    def put(
        self, target: Target, dataset: Dataset, content: bytes, read: Version | None = None
    ) -> None:
        """Replace a target on the server; raises as MetadataWrites, UsageError and CannotHold.

        Raises ChangedMeanwhile if the server has another version than was `read`.
        """
        route = _ROUTES[target.kind]
        value = _value(target, content)
        if target.kind is Kind.NAME and not self._is_another_name(target, dataset, value):
            return
        try:
            route.put(self._writes, dataset, target.name, value, read)
        except ChangedMeanwhile:
            self._catalogue.forget(dataset)  # so that the other's is read next
            raise
        self._catalogue.forget(dataset)

    def delete(self, target: Target, dataset: Dataset) -> None:
        """Delete a tag, an annotation or an overlay on the server."""
        route = _ROUTES[target.kind]
        assert route.delete is not None
        route.delete(self._writes, dataset, target.name)
        self._catalogue.forget(dataset)

    def _is_another_name(self, target: Target, dataset: Dataset, wanted: Any) -> bool:
        """Return whether administrative metadata has another name, and nothing else, than now.

        Raises UsageError for other changes: dtool writes all of it to change the name.
        """
        now = parse_json(self.content(target, dataset), dataset.uri)
        if not isinstance(now, dict):
            raise ProtocolError(f"{dataset.uri}: its administrative metadata is no object")
        if {**wanted, "name": ""} != {**now, "name": ""}:
            raise UsageError(f"{dataset.uri}: of {target.path} only the name can be changed")
        if not isinstance(wanted.get("name"), str):
            raise UsageError(f"{dataset.uri}: {target.path} has no name")
        return bool(wanted != now)


def _value(target: Target, content: bytes) -> Any:
    """Return the value that a file's content stands for; raises UsageError and CannotHold."""
    if target.kind is Kind.README:
        return content
    if target.kind is Kind.TAG:
        if content:
            raise CannotHold(f"{target.path}: a tag has no content")
        return None
    try:
        value = parse_json(content, target.path)
    except ProtocolError as error:
        raise UsageError(str(error)) from error
    if target.kind is not Kind.ANNOTATION and not isinstance(value, dict):
        raise UsageError(f"{target.path}: is no JSON object")
    return value


class _Route(NamedTuple):
    """How one kind of target is read from the server and written to it."""

    read: Callable[[Catalogue, Dataset, str], bytes | None]  # None: the server has none
    put: Callable[[MetadataWrites, Dataset, str, Any, Version | None], None]
    delete: Callable[[MetadataWrites, Dataset, str], None] | None = None  # None: there is one
    require_name: Callable[[str], None] = lambda name: None
    version_of: Callable[[bytes], Version] | None = None  # None: no versions are compared
    needs_all: bool = False  # only this project's servers have the route


_ROUTES = {
    Kind.README: _Route(
        lambda catalogue, dataset, _: catalogue.readme(dataset),
        lambda writes, dataset, _, text, read: writes.put_readme(dataset, text, read),
        version_of=version_of_text,
    ),
    Kind.NAME: _Route(
        lambda catalogue, dataset, _: catalogue.metadata(dataset).admin_metadata,
        lambda writes, dataset, _, value, read: writes.rename(dataset, value["name"]),
        needs_all=True,
    ),
    Kind.TAG: _Route(
        lambda catalogue, dataset, tag: b"" if tag in catalogue.metadata(dataset).tags else None,
        lambda writes, dataset, tag, value, read: writes.put_tag(dataset, tag),
        lambda writes, dataset, tag: writes.delete_tag(dataset, tag),
        functools.partial(require_name, "tag"),
    ),
    Kind.ANNOTATION: _Route(
        lambda catalogue, dataset, name: catalogue.metadata(dataset).annotations.get(name),
        lambda writes, *change: writes.put_annotation(*change),
        lambda writes, dataset, name: writes.delete_annotation(dataset, name),
        functools.partial(require_metadata_name, "annotation"),
        version_of_json,
    ),
    Kind.OVERLAY: _Route(
        lambda catalogue, dataset, name: catalogue.metadata(dataset).overlays.get(name),
        lambda writes, *change: writes.put_overlay(*change),
        lambda writes, dataset, name: writes.delete_overlay(dataset, name),
        functools.partial(require_metadata_name, "overlay"),
        version_of_json,
        needs_all=True,
    ),
}
