"""Changes of a dataset's metadata on the fake dserver: none, the development branch's, or ours.

dservercore's development branch has an index and a store. Its routes for one tag or
annotation write the index's set, plus or minus that one, over the store's; those for a
README and for all tags write what they are given, and answer 200 even for a dataset
that nobody knows. The index learns of it from plugins that are not released, else from
registering the dataset anew alone.
"""

from __future__ import annotations

import json
import urllib.parse
from typing import TYPE_CHECKING, Any

from dserverfs.base.limits import name_is_valid

if TYPE_CHECKING:
    from tests.support.quirky_server import Handler, QuirkyServer

OWN = {"dserverfs.server.signed_urls": "1", "dserverfs.server.metadata": "1"}
MASTER = {"dserver_signed_url_plugin": None}
BASE_URI = "s3://bucket"
ROUTES = ("readmes", "tags", "annotations", "overlays", "names", "uris")
_KEPT = ("base_uri", "uuid", "uri", "name", "creator_username")
_INDEXED = ("readme", "manifest", "tags", "annotations")
_REGISTERED = frozenset({*_KEPT, *_INDEXED, "type", "frozen_at"})
_OPTIONAL = frozenset({"created_at", "number_of_items", "size_in_bytes"})


def become(quirky: QuirkyServer, kind: str) -> None:
    """Make the fake a server of ours, of the development branch, or of dservercore 0.22.

    "following" is the development branch with plugins whose index learns of changes.
    """
    quirky.quirks.index_follows = kind == "following"
    kind = "master" if kind == "following" else kind
    plugins: dict[str, Any] = dict(OWN if kind == "own" else MASTER)
    release = {"own": "0.22.0", "master": "0.22.1.dev17+g1a2b3c4", "none": "0.22.0"}[kind]
    quirky.versions = {"dservercore": release, **plugins}
    quirky.quirks.changes = kind
    quirky.quirks.knows_items_false = kind == "own"
    quirky.register = [BASE_URI]


def change(handler: Handler, route: str, tail: str) -> None:
    """Answer PUT, POST or DELETE of `/<route>/<tail>`."""
    state = handler.server_state
    changes = state.quirks.changes
    ours = changes == "own"
    if route in ("overlays", "names") and not ours:
        handler.answer(404)
        return
    if changes == "none":
        handler.answer(405)
        return
    named = route == "annotations" or route == "overlays" or handler.command != "PUT"
    path = urllib.parse.unquote(tail)
    uri, _, name = path.rpartition("/") if named else (path, "", "")
    if route == "annotations" and handler.body.keys() - {"value"}:
        # All at once goes to the route of a single one.
        handler.answer(422, {"code": 422, "errors": {"json": {"annotations": ["Unknown field."]}}})
        return
    if "://" not in uri:
        uri = uri.replace("/", "://", 1)
    if uri.rpartition("/")[0] not in state.register:
        handler.answer(403)
        return
    described = state.described.get(uri)
    if described is None:
        handler.answer(404 if ours or named or route == "uris" else 200)
        return
    if ours and named and not name_is_valid(name):
        handler.answer(400, {"code": 400, "message": "no such name", "status": "Bad Request"})
        return
    if route == "uris":
        _register(handler, described, uri)
    elif ours:
        _change_both(handler, route, name, described, uri)
    else:
        _change_apart(handler, route, name, described, uri)


def _change_both(
    handler: Handler, route: str, name: str, described: dict[str, Any], uri: str
) -> None:
    """Change index and store, as ours does."""
    state = handler.server_state
    if route == "readmes":
        described["readme"] = handler.body["readme"]
        put_readme(state, uri, described["readme"])
        handler.answer(200, {"readme": described["readme"]})
    elif route == "names":
        for entry in state.entries:
            if entry["uri"] == uri:
                entry["name"] = handler.body["name"]
        handler.answer(200, {"name": handler.body["name"]})
    elif route == "tags":
        described["tags"] = _tags_of(handler, described["tags"], name)
        put_tags(state, uri, described["tags"])
        handler.answer(200, {"tags": described["tags"]})
    elif route == "annotations":
        described["annotations"] = _annotations_of(handler, described["annotations"], name)
        put_annotations(state, uri, described["annotations"])
        handler.answer(200, {"annotations": described["annotations"]})
    else:
        key = f"{uri.rpartition('/')[2]}/overlays/{name}.json"
        if handler.command == "DELETE":
            described["overlays"].pop(name, None)
            state.objects.pop(key, None)
        else:
            described["overlays"][name] = handler.body["value"]
            state.objects[key] = json.dumps(handler.body["value"]).encode()
        handler.answer(200, {"overlays": described["overlays"]})


def _change_apart(
    handler: Handler, route: str, name: str, described: dict[str, Any], uri: str
) -> None:
    """Write the store's, of the index's, which learns of it or does not."""
    state = handler.server_state
    given = "" if not state.quirks.refuses_no_value else handler.body.get("value")
    if (
        route == "annotations"
        and handler.command == "PUT"
        and handler.body.get("value", given) is None
    ):
        errors = {"json": {"value": ["Field may not be null."]}}
        handler.answer(422, {"code": 422, "errors": errors, "status": "Unprocessable Entity"})
        return
    key = route.removesuffix("s") if route == "readmes" else route
    if route == "readmes":
        value: Any = handler.body["readme"]
    elif route == "tags":
        value = _tags_of(handler, described["tags"], name)
    else:
        value = _annotations_of(handler, described["annotations"], name)
    if isinstance(value, dict):
        value.pop(state.quirks.drops, None)
    elif isinstance(value, list) and state.quirks.drops in value:
        value.remove(state.quirks.drops)
    if state.quirks.index_follows:
        described[key] = value
    if not state.quirks.loses_changes:
        put = {"readmes": put_readme, "tags": put_tags, "annotations": put_annotations}[route]
        put(state, uri, value)
    handler.answer(200, {key: value})


def _tags_of(handler: Handler, before: list[str], name: str) -> list[str]:
    if handler.command == "PUT":
        return list(handler.body["tags"])
    others = [tag for tag in before if tag != name]
    return [*others, name] if handler.command == "POST" else others


def _annotations_of(handler: Handler, before: dict[str, Any], name: str) -> dict[str, Any]:
    others = {other: value for other, value in before.items() if other != name}
    if handler.command == "DELETE":
        return others
    return {**others, name: handler.body.get("value")}


def _register(handler: Handler, described: dict[str, Any], uri: str) -> None:
    """Replace what the index has of a dataset."""
    state, body = handler.server_state, handler.body
    dates = [body.get(name) for name in ("frozen_at", "created_at") if name in body]
    if body.keys() - _REGISTERED - _OPTIONAL or not all(isinstance(date, str) for date in dates):
        handler.answer(422, {"code": 422, "errors": {}, "status": "Unprocessable Entity"})
        return
    if _REGISTERED - body.keys() or body["uri"] != uri or body["type"] != "dataset":
        handler.answer(400)
        return
    described.update({key: body[key] for key in _INDEXED})
    entry = {
        **{key: body[key] for key in _KEPT},
        "frozen_at": float(body["frozen_at"]),
        "created_at": float(body.get("created_at", body["frozen_at"])),
        "number_of_items": body.get("number_of_items"),
        "size_in_bytes": body.get("size_in_bytes"),
        "uploaded_by": handler.username,
    }
    state.entries[:] = [entry if found["uri"] == uri else found for found in state.entries]
    handler.answer(200, "")


# The store, which dtool-s3 writes to as well


def put_readme(state: QuirkyServer, uri: str, readme: Any) -> None:
    state.objects[f"{uri.rpartition('/')[2]}/README.yml"] = readme.encode()


def put_tags(state: QuirkyServer, uri: str, tags: Any) -> None:
    """Make these the store's tags; what is no name is left out."""
    state.described[uri]["stored"]["tags"] = sorted(filter(name_is_valid, set(tags)))


def put_annotations(state: QuirkyServer, uri: str, annotations: Any) -> None:
    """Make these the store's annotations."""
    prefix = f"{uri.rpartition('/')[2]}/annotations/"
    for key in [key for key in state.objects if key.startswith(prefix)]:
        del state.objects[key]
    for name, value in annotations.items():
        state.objects[f"{prefix}{name}.json"] = json.dumps(value).encode()
    state.described[uri]["stored"]["annotations"] = dict(annotations)
