"""A route of ours: its address, the right it needs, its handler, and the form of its body.

`view_of` makes the Flask view of a route. It alone asks for tokens and rights, reads
bodies and finds the URI that a request is about; a handler begins where these are done.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import dservercore.utils
from dservercore import utils_auth
from flask import Response, request
from flask_jwt_extended import verify_jwt_in_request
from marshmallow import Schema

from dserverfs.base.errors import NotAuthenticated, PermissionDenied, ProtocolError, UsageError
from dserverfs.base.limits import parse_json
from dserverfs.server.database import forms
from dserverfs.server.routes.answers import answer


class Right(enum.Flag):
    """A right that a route needs of its caller, on the base URI that it is about."""

    NONE = 0  # not even a token
    USER = enum.auto()  # to be a user of this server
    SEARCH = enum.auto()
    REGISTER = enum.auto()


class Asked(NamedTuple):
    """One request, with its rights checked."""

    username: str  # "" if the route needs no token
    uri: str  # of the dataset or the base URI it is about; "" if it is about none
    body: Mapping[str, Any]  # as the form of the route loads it


Handler = Callable[..., "Mapping[str, Any] | Response"]


class Route(NamedTuple):
    """One row of the table.

    `handler` takes an `Asked`, and the other parts of the address by name. The URI is the
    part `uri` or `base_uri` of the address, else the `uri` of the body.
    """

    address: str  # "GET /readmes/<path:uri>": a method and one of Flask's rules
    right: Right
    handler: Handler
    form: Schema | None = None  # of the body; None: it is not read

    @property
    def method(self) -> str:
        return self.address.partition(" ")[0]

    @property
    def rule(self) -> str:
        return self.address.partition(" ")[2]


def view_of(route: Route) -> Callable[..., Response]:
    """Return the view: token, right, body, handler, in this order.

    Only where the URI is in the body, the body is read before the right is asked for.
    """

    @functools.wraps(route.handler)
    def view(**named: str) -> Response:
        if route.right:
            verify_jwt_in_request()
        about = uri_in_address(route, named)
        body = _body(route.form) if about is None else None
        if about is None:
            about = "" if body is None else str(body.get("uri", ""))
        base_uri = about if "<path:base_uri>" in route.rule else about.rpartition("/")[0]
        username = require(route.right, base_uri) if route.right else ""
        if body is None:
            body = _body(route.form)
        answered = route.handler(Asked(username, about, body), **named)
        return answered if isinstance(answered, Response) else answer(answered)

    return view


def require(right: Right, base_uri: str) -> str:
    """Return the caller's name; needs the token verified.

    Raises NotAuthenticated for one the server does not know where `right` has USER, and
    PermissionDenied without a right on the base URI.
    """
    username: str = utils_auth.get_jwt_identity()
    require_of(username, right, base_uri)
    return username


def require_of(username: str, right: Right, base_uri: str) -> None:
    """Raise as `require` unless the user has the right."""
    if Right.USER in right and not utils_auth.user_exists(username):
        raise NotAuthenticated(f"there is no user {username}", status=401)
    if Right.REGISTER in right and not utils_auth.may_register(username, base_uri):
        raise PermissionDenied(f"no permission to register in {base_uri}", uri=base_uri)
    if Right.SEARCH in right and not utils_auth.may_search(username, base_uri):
        raise PermissionDenied(f"no permission to search {base_uri}", uri=base_uri)


def uri_in_address(route: Route, named: dict[str, str]) -> str | None:
    """Take the URI out of the parts of the address; None if it has none."""
    if "base_uri" in named:
        return named.pop("base_uri")
    if "uri" not in named:
        return None
    uri = named.pop("uri")
    if route.rule.startswith("/signed-urls/"):
        return uri
    # Core routes, and ours beside them, take s3/bucket/uuid as well.
    return str(dservercore.utils.url_suffix_to_uri(uri))


def _body(form: Schema | None) -> Mapping[str, Any]:
    """Return the request's JSON object as `form` loads it; one that needs nothing may be missing.

    Raises UsageError: 400 for no JSON, 422 for another form.
    """
    if form is None:
        return {}
    if not request.content_length and not any(field.required for field in form.fields.values()):
        return forms.loaded(form, {})
    try:
        body = parse_json(request.get_data(cache=False), "the body")
    except ProtocolError as error:
        raise UsageError(str(error), status=400) from error
    return forms.loaded(form, body)


def may_search(uri: str) -> bool:
    """Return whether the caller may read the dataset."""
    return bool(utils_auth.may_access(utils_auth.get_jwt_identity(), uri))
