"""The pages: datasets and search, one dataset, login.

    GET  /                            ?q=&tag=&creator=&base_uri=&sort=&page=
    GET  /browse/dataset/<uri>        ?part=&after=   some of its items
    GET  /browse/item/<uri>           ?path=          -> 303 to a signed URL
    GET  /browse/login                -> 303 to the start page
    POST /browse/login                username, password, back_to -> 303, with a cookie
    POST /browse/logout               -> 303
    GET  /browse/style.css

A <uri> is s3/bucket/uuid. Who is not logged in gets the form of a login in place of a page
(401), and only browsers get the start page: what asks for no HTML gets 404 there.
"""

from __future__ import annotations

import datetime
import re
import shlex
from http import HTTPStatus
from importlib import resources
from typing import Any

import dservercore.utils
from dservercore.extensions import sql_db
from dservercore.sort import SortParameters
from flask import Blueprint, Flask, Response, request
from flask_smorest.pagination import PaginationParameters

from dserverfs.base.errors import NotFound
from dserverfs.base.model import UUID, DserverURI
from dserverfs.server.database import item_pages, sessions
from dserverfs.server.database.retrieve import registered
from dserverfs.server.pages import readme
from dserverfs.server.pages.page_routing import (
    cookie_name,
    login_page,
    page,
    root,
    session_secret,
    view_of,
)
from dserverfs.server.routes import answers
from dserverfs.server.routes.logins import Logins
from dserverfs.server.routes.routing import Asked, Right, Route
from dserverfs.server.routes.signed_urls import SignedUrls
from dserverfs.server.store.settings import ServerSettings
from dserverfs.server.store.stores import Stores

SESSION_LIFE = datetime.timedelta(days=7)  # as a token for a password
DATASETS_PER_PAGE = 25
ITEMS_PER_PAGE = 100
_SORTS = {
    "newest": ("newest first", ["-frozen_at"]),
    "oldest": ("oldest first", ["frozen_at"]),
    "name": ("by name", ["name", "-frozen_at"]),
    "creator": ("by creator", ["creator_username", "name"]),
}
_BACK_TO = re.compile(r"(browse/[!-~]*|\?[!-~]*)?")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # With `no-referrer` browsers say `Origin: null` of our own forms. No other server is told.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Pages:
    """The handlers of one app."""

    def __init__(self, signing: SignedUrls, settings: ServerSettings, logins: Logins) -> None:
        self._signing = signing
        self._settings = settings
        self._logins = logins

    def get_start(self, asked: Asked) -> Response:
        """List datasets that the user may search, as many as a page has."""
        text, tag, creator, base_uri = (
            asked.body.get(name, "").strip() for name in ("q", "tag", "creator", "base_uri")
        )
        sort = asked.body.get("sort", "")
        sort = sort if sort in _SORTS else "newest"
        query: dict[str, Any] = {
            **({"free_text": text} if text else {}),
            **({"tags": [tag]} if tag else {}),
            **({"creator_usernames": [creator]} if creator else {}),
            **({"base_uris": [base_uri]} if base_uri else {}),
        }
        pages = PaginationParameters(int(asked.body.get("page", "1")), DATASETS_PER_PAGE)
        datasets = dservercore.utils.search_datasets_by_user(
            asked.username, query, pages, SortParameters(_SORTS[sort][1])
        )
        chosen = {"q": text, "tag": tag, "creator": creator, "base_uri": base_uri, "sort": sort}
        count = pages.item_count or 0  # None: the user may search nothing
        return page(
            "start.html",
            {
                "chosen": chosen,
                "query": {name: value for name, value in chosen.items() if value},
                "sorts": {name: words for name, (words, _) in _SORTS.items()},
                "datasets": datasets,
                "count": count,
                "page": pages.page,
                "last_page": max(1, -(-count // DATASETS_PER_PAGE)),
            },
            asked.username,
        )

    def get_dataset(self, asked: Asked) -> Response:
        """Show a dataset, with some of its items."""
        uri = asked.uri
        dataset = dservercore.utils.get_dataset_by_user_and_uri(asked.username, uri)
        if dataset is None:
            raise NotFound(f"{uri} is not registered", uri=uri)
        facts = dataset.as_dict()
        client_uri = DserverURI(self._settings.server, facts["base_uri"], UUID(facts["uuid"]))
        part, after = asked.body.get("part", ""), asked.body.get("after", "")
        kept = registered()
        return page(
            "dataset.html",
            {
                "dataset": facts,
                "client_uri": shlex.quote(str(client_uri)),
                "server": shlex.quote(self._settings.login_address),
                "readme": readme.read(kept.get_readme_text(uri)),
                "tags": kept.get_tags(uri),
                "annotations": kept.get_annotations(uri),
                "part": part,
                "after": after,
                "found": item_pages.page_of(uri, after=after, part=part, count=ITEMS_PER_PAGE),
            },
            asked.username,
        )

    def get_item(self, asked: Asked) -> Response:
        """Send the browser to the item in the store, by a URL that is signed now."""
        return _redirect(self._signing.download_url(asked.uri, asked.body.get("path", "")))

    def get_login(self, asked: Asked) -> Response:
        return _redirect(root())

    def post_login(self, asked: Asked) -> Response:
        """Begin a session for a password."""
        username, password = (asked.body.get(name, "") for name in ("username", "password"))
        back_to = asked.body.get("back_to", "")
        if not _BACK_TO.fullmatch(back_to):
            back_to = ""
        if refusal := self._logins.refusal(username, password):
            return login_page(refusal.status, back_to, refusal.message)
        sessions.end(session_secret())
        secret = sessions.begin(username, SESSION_LIFE)
        sql_db.session.commit()
        response = _redirect(root() + back_to)
        # Behind a proxy this server does not see https; the browser, whose cookie it is, says so.
        is_https = request.is_secure or request.headers.get("Origin", "").startswith("https:")
        response.set_cookie(
            cookie_name(), secret, secure=is_https, httponly=True, samesite="Lax", path="/"
        )
        return response

    def post_logout(self, asked: Asked) -> Response:
        sessions.end(session_secret())
        sql_db.session.commit()
        response = _redirect(root())
        response.delete_cookie(cookie_name(), path="/")
        return response

    def get_style(self, asked: Asked) -> Response:
        style = resources.files("dserverfs.server.pages").joinpath("style.css").read_bytes()
        headers = {"Cache-Control": "public, max-age=3600"}
        return Response(style, mimetype="text/css", headers=headers)


def routes(stores: Stores, settings: ServerSettings, logins: Logins) -> tuple[Route, ...]:
    """Return the rows of the table of rights for pages."""
    pages = Pages(SignedUrls(stores), settings, logins)
    U, S, N = Right.USER, Right.SEARCH, Right.NONE  # as in the table of the other routes
    return (
        Route("GET /", U, pages.get_start),
        Route("GET /browse/dataset/<path:uri>", U | S, pages.get_dataset),
        Route("GET /browse/item/<path:uri>", U | S, pages.get_item),
        Route("GET /browse/login", N, pages.get_login),
        Route("POST /browse/login", N, pages.post_login),
        Route("POST /browse/logout", N, pages.post_logout),
        Route("GET /browse/style.css", N, pages.get_style),
    )


def install(app: Flask, stores: Stores, settings: ServerSettings, logins: Logins) -> None:
    """Give the app the pages; their errors are pages, too."""
    blueprint = Blueprint("pages", __name__)
    for route in routes(stores, settings, logins):
        view = view_of(route)
        blueprint.add_url_rule(route.rule, view.__name__, view, methods=[route.method])
    for kind in answers.HANDLED:
        blueprint.register_error_handler(kind, _show)
    blueprint.after_request(_protect)
    app.register_blueprint(blueprint)


def _show(error: Exception) -> Response:
    told = answers.told(error)
    values = {"title": told.status.phrase, "message": told.message}
    shown = page("error.html", values, status=told.status)
    if told.retry_after_s:
        shown.headers["Retry-After"] = str(told.retry_after_s)
    return shown


def _protect(response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _redirect(where: str) -> Response:
    return Response(status=HTTPStatus.SEE_OTHER, headers={"Location": where})
