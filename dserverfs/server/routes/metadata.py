"""Routes that change a frozen dataset: its README, tags, annotations, overlays and name.

Paths, requests and answers are those of dservercore's development branch where
it has them:

    PUT    /readmes/<uri>             {"readme"}   -> {"readme"}
    PUT    /tags/<uri>                {"tags"}     -> {"tags"}: all there are now
    POST   /tags/<uri>/<tag>                       -> {"tags"}
    DELETE /tags/<uri>/<tag>                       -> {"tags"}
    PUT    /annotations/<uri>/<name>  {"value"}    -> {"annotations"}: all there are now
    DELETE /annotations/<uri>/<name>               -> {"annotations"}

This server adds, as `dserverfs_metadata` in `GET /config/versions` says:

    PUT    /overlays/<uri>/<name>     {"value": {identifier: value}} -> {"overlays"}: the names
    DELETE /overlays/<uri>/<name>                                    -> {"overlays"}
    PUT    /names/<uri>               {"name"}     -> {"name"}

Other than there, values keep their types, and an answer of 200 means that the change is
made. All need the right to register in the dataset's base URI (403) and a dataset that is
registered and stored (404). A caller who may register and not search gets the values that
were sent back, and no others. Deleting a tag, annotation or overlay that is not there
changes nothing (200).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from marshmallow import fields

from dserverfs.server.database import forms
from dserverfs.server.database.changes import Changes, Description
from dserverfs.server.database.retrieve import registered
from dserverfs.server.database.stored_metadata import StoredMetadata
from dserverfs.server.database.upload_request import (
    check_annotation,
    check_name,
    check_overlay,
    check_readme,
    checked_tags,
    require_metadata_name,
)
from dserverfs.server.routes.routing import Asked, may_search
from dserverfs.server.store.stores import Stores

README = forms.form(readme=fields.String(required=True, validate=check_readme))
TAGS = forms.form(tags=forms.Strings(required=True))
NAME = forms.form(name=fields.String(required=True, validate=check_name))
VALUE = forms.form(value=fields.Raw(required=True, allow_none=True))

Write = Callable[[StoredMetadata], object]


class Metadata:
    """The handlers of one app."""

    def __init__(self, stores: Stores) -> None:
        self._changes = Changes(stores)

    def put_readme(self, asked: Asked) -> Mapping[str, Any]:
        readme = asked.body["readme"]

        def change(stored: StoredMetadata, before: Description) -> Description:
            stored.update_readme(readme)
            return replace(before, readme=readme)

        return {"readme": self._changes.make(asked.uri, change).readme}

    def put_tags(self, asked: Asked) -> Mapping[str, Any]:
        tags = checked_tags(asked.body["tags"])
        return self._tagged(asked.uri, lambda stored: stored.set_tags(tags), tags)

    def post_tag(self, asked: Asked, tag: str) -> Mapping[str, Any]:
        checked_tags([tag])
        return self._tagged(asked.uri, lambda stored: stored.put_tag(tag), [tag])

    def delete_tag(self, asked: Asked, tag: str) -> Mapping[str, Any]:
        checked_tags([tag])
        return self._tagged(asked.uri, lambda stored: stored.delete_tag(tag), [])

    def put_annotation(self, asked: Asked, name: str) -> Mapping[str, Any]:
        value = asked.body["value"]
        check_annotation(name, value)
        return self._annotated(
            asked.uri, name, lambda stored: stored.put_annotation(name, value), {name: value}
        )

    def delete_annotation(self, asked: Asked, name: str) -> Mapping[str, Any]:
        require_metadata_name("annotation", name)
        return self._annotated(asked.uri, name, lambda stored: stored.delete_annotation(name), {})

    def put_overlay(self, asked: Asked, name: str) -> Mapping[str, Any]:
        values = asked.body["value"]
        check_overlay(name, values, registered().get_identifiers(asked.uri))
        return self._overlaid(asked.uri, lambda stored: stored.put_overlay(name, values), [name])

    def delete_overlay(self, asked: Asked, name: str) -> Mapping[str, Any]:
        require_metadata_name("overlay", name)
        return self._overlaid(asked.uri, lambda stored: stored.delete_overlay(name), [])

    def put_name(self, asked: Asked) -> Mapping[str, Any]:
        name = asked.body["name"]

        def change(stored: StoredMetadata, before: Description) -> Description:
            stored.put_name(name)
            return replace(before, name=name)

        return {"name": self._changes.make(asked.uri, change).name}

    def _tagged(self, uri: str, write: Write, sent: Sequence[str]) -> Mapping[str, Any]:
        def change(stored: StoredMetadata, before: Description) -> Description:
            write(stored)
            return replace(before, tags=stored.tags())

        tags = self._changes.make(uri, change).tags
        return {"tags": tags if may_search(uri) else sorted(sent)}

    def _annotated(
        self, uri: str, name: str, write: Write, sent: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Change an annotation; `sent` has its value, unless it is deleted."""

        def change(stored: StoredMetadata, before: Description) -> Description:
            write(stored)
            others = {key: value for key, value in before.annotations.items() if key != name}
            return replace(before, annotations={**others, **sent})

        annotations = self._changes.make(uri, change).annotations
        return {"annotations": annotations if may_search(uri) else sent}

    def _overlaid(self, uri: str, write: Write, sent: Sequence[str]) -> Mapping[str, Any]:
        """Change an overlay; overlays are in the bucket only."""
        names: list[str] = []

        def change(stored: StoredMetadata, before: Description) -> Description:
            write(stored)
            names.extend(stored.overlay_names())
            return before

        self._changes.make(uri, change)
        return {"overlays": names if may_search(uri) else sent}
