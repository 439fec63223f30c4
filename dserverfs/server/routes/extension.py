"""What the extensions of dservercore have in common: their base class, rights and errors."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from dservercore import ExtensionABC, UnknownURIError, utils_auth
from dservercore.extensions import sql_db
from flask import Response, current_app

from dserverfs.base.errors import (
    Conflict,
    DserverfsError,
    IntegrityError,
    NotAuthenticated,
    NotFound,
    PermissionDenied,
    Unreachable,
    Unsupported,
    UsageError,
)
from dserverfs.server.routes.answers import error_answer
from dserverfs.server.store.stores import Stores

STORES = "dserverfs_stores"  # among the app's extensions: its configuration is shown to users

_STATUS: tuple[tuple[type[DserverfsError], HTTPStatus], ...] = (
    (UsageError, HTTPStatus.BAD_REQUEST),
    (PermissionDenied, HTTPStatus.FORBIDDEN),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Conflict, HTTPStatus.CONFLICT),
    (Unsupported, HTTPStatus.NOT_IMPLEMENTED),
    (Unreachable, HTTPStatus.BAD_GATEWAY),
    (IntegrityError, HTTPStatus.BAD_GATEWAY),  # the store has what no dtool wrote
)


class Extension(ExtensionABC):  # type: ignore[misc]
    """An extension that only adds routes: define `get_blueprint`.

    ExtensionABC leaves it to each extension to define the others.
    """

    def init_app(self, app: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def register_dataset(self, dataset_info: Mapping[str, Any]) -> None:
        pass

    def delete_dataset(self, dataset_uri: str) -> None:
        pass

    def get_config(self) -> dict[str, Any]:
        return {}

    def get_config_secrets_to_obfuscate(self) -> list[str]:
        return []


def stores() -> Stores:
    """Return the stores of the app that answers this request."""
    found: Stores = current_app.extensions[STORES]
    return found


def require_user() -> str:
    """Return who asks; raises NotAuthenticated for one the server does not know."""
    username: str = utils_auth.get_jwt_identity()
    if not utils_auth.user_exists(username):
        raise NotAuthenticated(f"there is no user {username}", status=401)
    return username


def require_search(uri: str) -> str:
    """Return who asks; raises PermissionDenied without the right to search the dataset's base."""
    username: str = utils_auth.get_jwt_identity()
    if not utils_auth.may_access(username, uri):
        raise PermissionDenied(f"no permission to search {uri.rpartition('/')[0]}", uri=uri)
    return username


def require_register(base_uri: str) -> str:
    """Return who asks; raises PermissionDenied without the right to register there."""
    username: str = utils_auth.get_jwt_identity()
    if not utils_auth.may_register(username, base_uri):
        raise PermissionDenied(f"no permission to register in {base_uri}", uri=base_uri)
    return username


def may_search(uri: str) -> bool:
    """Return whether who asks may read what there is of a dataset."""
    return bool(utils_auth.may_access(utils_auth.get_jwt_identity(), uri))


def registered_identifiers(uri: str) -> frozenset[str]:
    """Return the identifiers of a dataset's items; raises NotFound if it is not registered."""
    try:
        identifiers: frozenset[str] = current_app.retrieve.get_identifiers(uri)  # type: ignore[attr-defined]
    except UnknownURIError as error:
        raise NotFound(f"{uri} is not registered", uri=uri) from error
    return identifiers


def report(error: DserverfsError) -> Response:
    """Answer with the error's own status, else that of its class."""
    sql_db.session.rollback()
    if error.status is not None:
        return error_answer(HTTPStatus(error.status), str(error))
    for cls, status in _STATUS:
        if isinstance(error, cls):
            return error_answer(status, str(error))
    return error_answer(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
