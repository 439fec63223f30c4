"""The table of our routes: method, address, right, handler and the form of the body.

Their wire protocol is in the docstrings of the modules that have the handlers. Those in
REPLACED are routes of dservercore with answers of ours; its other routes stay as they are.
"""

from __future__ import annotations

from typing import NamedTuple

from flask import Flask

from dserverfs.server.database import upload_request
from dserverfs.server.routes import (
    accounts,
    block_hashes,
    core_views,
    health,
    metadata,
    multipart,
    publications,
    signed_urls,
)
from dserverfs.server.routes.logins import Logins
from dserverfs.server.routes.metrics import Metrics
from dserverfs.server.routes.routing import Right, Route, view_of
from dserverfs.server.store.settings import ServerSettings
from dserverfs.server.store.stores import Stores

# On one line each, so that rights can be compared at a glance.
N, U, S, R = Right.NONE, Right.USER, Right.SEARCH, Right.REGISTER

REPLACED = {
    "annotations.annotations": Route(
        "GET /annotations/<path:uri>", U | S, core_views.get_annotations
    ),
    "me.me_summary_get": Route("GET /me/summary", U, core_views.get_summary),
    "manifests.manifest": Route("GET /manifests/<path:uri>", U | S, core_views.get_manifest),
}


class Parts(NamedTuple):
    """What the handlers of one app share."""

    stores: Stores
    settings: ServerSettings
    logins: Logins
    health: health.Health
    metrics: Metrics


def routes(parts: Parts) -> tuple[Route, ...]:
    """Return the routes of an app, with handlers of its own."""
    stores, settings, logins, healthy, metrics = parts
    signing = signed_urls.SignedUrls(stores)
    pieces = multipart.Multipart(stores)
    hashes = block_hashes.BlockHashes(stores)
    changing = metadata.Metadata(stores)
    publishing = publications.Publications(stores, settings)
    login = accounts.Accounts(logins)
    return (
        Route("GET /config/health", N, accounts.get_health),
        Route("GET /health", N, healthy.get_alive),
        Route("GET /health/ready", N, healthy.get_ready),
        Route("GET /metrics", N, metrics.get_metrics),
        Route("POST /token", N, login.post_token, accounts.LOGIN),
        Route("POST /auth/token", N, login.post_auth_token, accounts.LOGIN),
        Route("POST /auth/refresh", U, accounts.post_refresh),
        Route("GET /auth/info", N, accounts.get_auth_info),
        Route("GET /signed-urls/dataset/<path:uri>", S, signing.get_dataset),
        Route("GET /signed-urls/item/<path:uri>/<identifier>", S, signing.get_item),
        Route("POST /signed-urls/items/<path:uri>", S, signing.post_items, signed_urls.ITEMS),
        Route("GET /signed-urls/uploads", U, signing.get_uploads),
        Route("GET /signed-urls/upload/<path:uri>", R, signing.get_upload),
        Route("DELETE /signed-urls/upload/<path:uri>", R, signing.delete_upload),
        Route(
            "POST /signed-urls/upload/<path:base_uri>", R, signing.post_upload, upload_request.FORM
        ),
        Route(
            "POST /signed-urls/upload-complete",
            R,
            signing.post_upload_complete,
            signed_urls.COMPLETE,
        ),
        Route("POST /signed-urls/upload-parts", R, pieces.post_begin, multipart.BEGIN),
        Route("POST /signed-urls/upload-parts/sign", R, pieces.post_sign, multipart.SIGN),
        Route(
            "POST /signed-urls/upload-parts/complete", R, pieces.post_complete, multipart.COMPLETE
        ),
        Route("POST /signed-urls/block-hashes/<path:uri>", R, hashes.post_block_hashes),
        Route(
            "POST /signed-urls/block-hashes-complete",
            R,
            hashes.post_block_hashes_complete,
            block_hashes.COMPLETE,
        ),
        Route(
            "POST /signed-urls/publish/<path:uri>",
            S | R,
            publishing.post_publish,
            publications.FORM,
        ),
        Route("DELETE /signed-urls/publish/<path:uri>", R, publishing.delete_publish),
        Route("GET /published/<token>", N, publishing.get_published),
        Route("GET /published/<token>/http_manifest.json", N, publishing.get_http_manifest),
        Route("PUT /readmes/<path:uri>", R, changing.put_readme, metadata.README),
        Route("PUT /tags/<path:uri>", R, changing.put_tags, metadata.TAGS),
        Route("POST /tags/<path:uri>/<tag>", R, changing.post_tag),
        Route("DELETE /tags/<path:uri>/<tag>", R, changing.delete_tag),
        Route("PUT /annotations/<path:uri>/<name>", R, changing.put_annotation, metadata.VALUE),
        Route("DELETE /annotations/<path:uri>/<name>", R, changing.delete_annotation),
        Route("PUT /overlays/<path:uri>/<name>", R, changing.put_overlay, metadata.VALUE),
        Route("DELETE /overlays/<path:uri>/<name>", R, changing.delete_overlay),
        Route("PUT /names/<path:uri>", R, changing.put_name, metadata.NAME),
    )


def install(app: Flask, parts: Parts) -> None:
    """Give dservercore's app our routes."""
    core_views.list_by_search()
    for endpoint, route in REPLACED.items():
        app.view_functions[endpoint] = view_of(route)
    for route in routes(parts):
        endpoint = route.handler.__name__
        app.add_url_rule(route.rule, endpoint, view_of(route), methods=[route.method])
