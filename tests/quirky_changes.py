"""Changes of a dataset's metadata on the fake dserver: none, the development branch's, or ours.

dservercore's development branch changes its index first and the store after,
and answers 200 whatever the store said, even for a dataset nobody knows.
"""

from __future__ import annotations

import json
import urllib.parse
from typing import TYPE_CHECKING, Any

from dserverfs.limits import name_is_valid

if TYPE_CHECKING:
    from tests.quirky_server import Handler, QuirkyServer

OWN = {"dserverfs.server.signed_urls": "1", "dserverfs.server.metadata": "1"}
MASTER = {"dserver_signed_url_plugin": None}
BASE_URI = "s3://bucket"
ROUTES = ("readmes", "tags", "annotations", "overlays", "names")


def become(quirky: QuirkyServer, kind: str) -> None:
    """Make the fake a server of ours, of the development branch, or of dservercore 0.22."""
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
    named = handler.command != "PUT" or route in ("annotations", "overlays")
    path = urllib.parse.unquote(tail)
    uri, _, name = path.rpartition("/") if named else (path, "", "")
    if route == "annotations" and handler.command == "PUT" and "value" not in handler.body:
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
        handler.answer(404 if ours else 200)
        return
    if ours and named and not name_is_valid(name):
        handler.answer(400, {"code": 400, "message": "no such name", "status": "Bad Request"})
        return
    stored = {} if state.quirks.loses_changes else state.objects
    _apply(handler, route, name, described, stored, uri)


def _apply(
    handler: Handler,
    route: str,
    name: str,
    described: dict[str, Any],
    objects: dict[str, bytes],
    uri: str,
) -> None:
    uuid = uri.rpartition("/")[2]
    if route == "readmes":
        described["readme"] = handler.body["readme"]
        objects[f"{uuid}/README.yml"] = described["readme"].encode()
        handler.answer(200, {"readme": described["readme"]})
    elif route == "names":
        for entry in handler.server_state.entries:
            if entry["uri"] == uri:
                entry["name"] = handler.body["name"]
        handler.answer(200, {"name": handler.body["name"]})
    elif route == "tags":
        tags = set(described["tags"]) - {name}
        if handler.command == "POST":
            tags.add(name)
        if objects:  # they are the store's as well as the index's
            described["tags"] = sorted(tags)
        handler.answer(200, {"tags": sorted(tags)})
    else:
        key = f"{uuid}/{route}/{name}.json"
        if handler.command == "DELETE":
            described[route].pop(name, None)
            objects.pop(key, None)
        else:
            described[route][name] = handler.body["value"]
            objects[key] = json.dumps(handler.body["value"]).encode()
        handler.answer(200, {route: described[route]})
