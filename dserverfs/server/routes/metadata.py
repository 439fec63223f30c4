"""Extension of dservercore: changes of a dataset's README, tags, annotations, overlays and name.

Paths, requests and answers are those of dservercore's development branch where
it has them:

    PUT    /readmes/<uri>             {"readme"}   -> {"readme"}
    PUT    /tags/<uri>                {"tags"}     -> {"tags"}: all there are now
    POST   /tags/<uri>/<tag>                       -> {"tags"}
    DELETE /tags/<uri>/<tag>                       -> {"tags"}
    PUT    /annotations/<uri>/<name>  {"value"}    -> {"annotations"}: all there are now
    DELETE /annotations/<uri>/<name>               -> {"annotations"}

What this server adds; a client knows it by the name of this module in
`GET /config/versions`:

    PUT    /overlays/<uri>/<name>     {"value": {identifier: value}} -> {"overlays"}: the names
    DELETE /overlays/<uri>/<name>                                    -> {"overlays"}
    PUT    /names/<uri>               {"name"}     -> {"name"}

Other than there: values keep their types; a
change that was not made is not answered by 200. All need the right to register
in the dataset's base URI (403) and a dataset that is registered and stored (404).
Who may register and not search is answered with what he sent, and not with all there is.
To take away a tag, annotation or overlay that is not there changes nothing (200).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import dservercore.utils
from dservercore import UnknownURIError, utils_auth
from flask import Response, current_app
from flask_smorest import Blueprint

from dserverfs.base.errors import DserverfsError, NotFound, UsageError
from dserverfs.server.database.changes import Changes, Description
from dserverfs.server.database.stored_metadata import StoredMetadata
from dserverfs.server.database.upload_request import (
    check_annotation,
    check_name,
    check_overlay,
    check_readme,
    checked_tags,
    require_metadata_name,
)
from dserverfs.server.routes.answers import answer, json_body
from dserverfs.server.routes.extension import (
    Extension,
    may_search,
    report,
    require_register,
    stores,
)


class Metadata(Extension):
    """dservercore makes one per app."""

    def __init__(self) -> None:
        self._changes = Changes()

    def get_blueprint(self) -> Any:
        blueprint = Blueprint("metadata", __name__)
        protected = utils_auth.jwt_required()
        for method, rule, view in (
            ("PUT", "/readmes/<path:uri>", self.put_readme),
            ("PUT", "/tags/<path:uri>", self.put_tags),
            ("POST", "/tags/<path:uri>/<tag>", self.post_tag),
            ("DELETE", "/tags/<path:uri>/<tag>", self.delete_tag),
            ("PUT", "/annotations/<path:uri>/<name>", self.put_annotation),
            ("DELETE", "/annotations/<path:uri>/<name>", self.delete_annotation),
            ("PUT", "/overlays/<path:uri>/<name>", self.put_overlay),
            ("DELETE", "/overlays/<path:uri>/<name>", self.delete_overlay),
            ("PUT", "/names/<path:uri>", self.put_name),
        ):
            blueprint.add_url_rule(rule, view.__name__, protected(view), methods=[method])
        blueprint.register_error_handler(DserverfsError, report)
        return blueprint

    def put_readme(self, uri: str) -> Response:
        uri = _changeable(uri)
        readme = _string(json_body(), "readme")
        check_readme(readme)

        def change(stored: StoredMetadata, before: Description) -> Description:
            stored.update_readme(readme)
            return replace(before, readme=readme)

        return answer({"readme": self._changes.make(stores(), uri, change).readme})

    def put_tags(self, uri: str) -> Response:
        uri = _changeable(uri)
        tags = checked_tags(json_body().get("tags"))

        def change(stored: StoredMetadata, before: Description) -> Description:
            return replace(before, tags=stored.set_tags(tags))

        return self._tagged(uri, change, tags)

    def post_tag(self, uri: str, tag: str) -> Response:
        uri = _changeable(uri)
        checked_tags([tag])

        def change(stored: StoredMetadata, before: Description) -> Description:
            stored.put_tag(tag)
            return replace(before, tags=stored.tags())

        return self._tagged(uri, change, [tag])

    def delete_tag(self, uri: str, tag: str) -> Response:
        uri = _changeable(uri)
        checked_tags([tag])

        def change(stored: StoredMetadata, before: Description) -> Description:
            stored.delete_tag(tag)
            return replace(before, tags=stored.tags())

        return self._tagged(uri, change, [])

    def put_annotation(self, uri: str, name: str) -> Response:
        uri = _changeable(uri)
        value = _value(json_body())
        check_annotation(name, value)

        def change(stored: StoredMetadata, before: Description) -> Description:
            stored.put_annotation(name, value)
            return replace(before, annotations={**before.annotations, name: value})

        return self._annotated(uri, change, {name: value})

    def delete_annotation(self, uri: str, name: str) -> Response:
        uri = _changeable(uri)
        require_metadata_name("annotation", name)

        def change(stored: StoredMetadata, before: Description) -> Description:
            stored.delete_annotation(name)
            left = {key: value for key, value in before.annotations.items() if key != name}
            return replace(before, annotations=left)

        return self._annotated(uri, change, {})

    def put_overlay(self, uri: str, name: str) -> Response:
        uri = _changeable(uri)
        values = _value(json_body())
        check_overlay(name, values, _identifiers(uri))
        return self._overlaid(uri, lambda stored: stored.put_overlay(name, values), [name])

    def delete_overlay(self, uri: str, name: str) -> Response:
        uri = _changeable(uri)
        require_metadata_name("overlay", name)
        return self._overlaid(uri, lambda stored: stored.delete_overlay(name), [])

    def put_name(self, uri: str) -> Response:
        uri = _changeable(uri)
        name = _string(json_body(), "name")
        check_name(name)

        def change(stored: StoredMetadata, before: Description) -> Description:
            stored.put_name(name)
            return replace(before, name=name)

        return answer({"name": self._changes.make(stores(), uri, change).name})

    def _tagged(self, uri: str, change: Any, sent: Sequence[str]) -> Response:
        tags = self._changes.make(stores(), uri, change).tags
        return answer({"tags": tags if may_search(uri) else sorted(sent)})

    def _annotated(self, uri: str, change: Any, sent: Mapping[str, Any]) -> Response:
        annotations = self._changes.make(stores(), uri, change).annotations
        return answer({"annotations": annotations if may_search(uri) else sent})

    def _overlaid(self, uri: str, write: Any, sent: Sequence[str]) -> Response:
        """Change an overlay; overlays are in the bucket only."""
        names: list[str] = []

        def change(stored: StoredMetadata, before: Description) -> Description:
            write(stored)
            names.extend(stored.overlay_names())
            return before

        self._changes.make(stores(), uri, change)
        return answer({"overlays": names if may_search(uri) else sent})


def _changeable(path: str) -> str:
    """Return the URI in a path, as core routes take it; raises PermissionDenied."""
    uri: str = dservercore.utils.url_suffix_to_uri(path)
    require_register(uri.rpartition("/")[0])
    return uri


def _identifiers(uri: str) -> frozenset[str]:
    try:
        identifiers: frozenset[str] = current_app.retrieve.get_identifiers(uri)  # type: ignore[attr-defined]
    except UnknownURIError as error:
        raise NotFound(f"{uri} is not registered", uri=uri) from error
    return identifiers


def _string(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise UsageError(f"{key} is missing or not a string", status=422)
    return value


def _value(body: Mapping[str, Any]) -> Any:
    if "value" not in body:
        raise UsageError("value is missing", status=422)
    return body["value"]
