"""From a row of the table of pages to a view: session, right, handler, HTML.

As `routes.routing` has it for JSON, with its rights; but the user is known by the session that
a cookie names, and answers and errors are pages. Links in them are relative: a server may be
reached below a prefix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from flask import Request, Response, abort, current_app, g, request

from dserverfs.base.errors import PermissionDenied
from dserverfs.server.database import sessions
from dserverfs.server.database.links import hash_of
from dserverfs.server.pages import rendering
from dserverfs.server.routes.routing import Asked, Route, require_of, uri_in_address


def view_of(route: Route) -> Callable[..., Response]:
    """Return the view: is the form ours, session, right, handler, in this order."""

    @functools.wraps(route.handler)
    def view(**named: str) -> Response:
        if route.rule == "/" and not _asks_for_a_page(request):
            abort(HTTPStatus.NOT_FOUND)  # as dservercore answers a program there
        is_sent = route.method == "POST"
        if is_sent:
            _require_own_form(request)
        uri = uri_in_address(route, named) or ""
        username = g.username = sessions.username_of(session_secret())
        if route.right and not username:
            return login_page(HTTPStatus.UNAUTHORIZED, here())
        require_of(username, route.right, uri.rpartition("/")[0])
        asked = Asked(username, uri, request.form if is_sent else request.args)
        answered = route.handler(asked, **named)
        assert isinstance(answered, Response)  # no page answers with JSON
        return answered

    return view


def page(
    template: str,
    values: Mapping[str, Any],
    username: str = "",
    status: HTTPStatus = HTTPStatus.OK,
) -> Response:
    """Return a page for that user, or for one who is not logged in."""
    content = rendering.render(template, {"root": root(), "username": username, **values})
    return Response(content, status, mimetype="text/html")


def login_page(status: HTTPStatus, back_to: str, message: str = "") -> Response:
    """Return the form of a login, which leads `back_to` an address below the root."""
    return page("login.html", {"back_to": back_to, "message": message}, status=status)


def root() -> str:
    """Return the way from the page that is asked for to the start page."""
    path = str(request.environ["REQUEST_URI"]).partition("?")[0]
    return "../" * (path.count("/") - 1) or "./"


def here() -> str:
    """Return the address that is asked for, as the way to it from the start page."""
    return str(request.environ["REQUEST_URI"]).lstrip("/")


def cookie_name() -> str:
    """Return this server's name for its cookie: a host's ports have their cookies together."""
    return f"dserverfs_{hash_of(current_app.config['JWT_PUBLIC_KEY'])[:8]}"


def session_secret() -> str:
    return request.cookies.get(cookie_name(), "")


def _asks_for_a_page(asked: Request) -> bool:
    """Return whether it is a browser that asks: a program takes anything, or JSON."""
    return any(kind == "text/html" and quality > 0 for kind, quality in asked.accept_mimetypes)


def _require_own_form(asked: Request) -> None:
    """Raise PermissionDenied if a page of another server sends the form.

    To a server with https, or on its own machine, a browser says whose page it is in
    Sec-Fetch-Site, to every server in Origin. What sends neither is no browser.
    """
    site, origin = asked.headers.get("Sec-Fetch-Site"), asked.headers.get("Origin")
    if site is not None:
        is_own = site in ("same-origin", "none")
    else:
        is_own = origin is None or origin.partition("://")[2] == asked.host
    if not is_own:
        raise PermissionDenied("the form was sent from a page of another server")
