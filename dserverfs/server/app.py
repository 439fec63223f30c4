"""dservercore's Flask app, with the plugins of this package and none that happen to be installed.

`create` may be called more than once in a process. The app is safe to share
between threads.
"""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from pathlib import Path
from typing import Any

import dservercore
from flask import Flask, Response
from sqlalchemy import create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from dserverfs import __version__
from dserverfs.base import wire_names
from dserverfs.base.errors import DserverfsError
from dserverfs.server import datadir
from dserverfs.server.database import connections, copying, locks, trouble, upgrading
from dserverfs.server.database.connections import Address
from dserverfs.server.database.file_locks import FileLocks
from dserverfs.server.database.locks import Locks
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.pages import views
from dserverfs.server.routes import answers, table
from dserverfs.server.routes.answers import answer
from dserverfs.server.routes.health import Health
from dserverfs.server.routes.logins import Logins
from dserverfs.server.routes.metrics import Metrics
from dserverfs.server.routes.request_check import RequestCheck
from dserverfs.server.store.settings import ServerSettings
from dserverfs.server.store.stores import Stores

_PLUGINS = {
    "search": ("dserverfs.server.database.search:Search",),
    "retrieve": ("dserverfs.server.database.retrieve:Retrieve",),
    "extension": (),
}
_SECRETS = (
    *("JWT_PRIVATE_KEY", "SECRET_KEY"),
    *("SQLALCHEMY_DATABASE_URI", "SQLALCHEMY_ENGINE_OPTIONS"),
)


def create(directory: DataDirectory, stores: Stores, settings: ServerSettings) -> Flask:
    """Return the app of a data directory, with its tables as this version has them.

    Raises UsageError for a setting or a database that cannot be used, and NotConnected if
    PostgreSQL does not answer, which may pass.
    """
    settings.publish_expiry_s()
    address = directory.address(settings)
    app = on_database(directory, stores, settings, address)
    try:
        with app.app_context():
            copying.require_whole(address.shown)
        directory.keep_address(address)
    except BaseException:
        close(app)
        raise
    return app


def on_database(
    directory: DataDirectory, stores: Stores, settings: ServerSettings, address: Address
) -> Flask:
    """Return the app on a database that the directory is not told of; raises as `create`."""
    connections.check(address)
    _inject_plugins()
    app: Flask = dservercore.create_app(_config(directory, address))
    # It logs the headers of each request at DEBUG, tokens and all.
    app.logger.setLevel(max(logging.INFO, app.logger.getEffectiveLevel()))
    app.view_functions["config.server_versions"] = _versions
    logins = Logins()
    token = directory.metrics_token()
    health, metrics = Health(stores, token), Metrics(token)
    table.install(app, table.Parts(stores, settings, logins, health, metrics))
    views.install(app, stores, settings, logins)
    RequestCheck(stores).install(app)
    answers.install(app)
    metrics.install(app)
    try:
        _prepare_database(app, address, directory.path / "locks")
    except BaseException:
        close(app)
        raise
    return app


def close(app: Flask) -> None:
    """Close the connections of an app to its database; no context of it has any by then."""
    with app.app_context():
        dservercore.sql_db.engine.dispose()
        locks.of(app.extensions).dispose()


def _prepare_database(app: Flask, address: Address, lock_file: Path) -> None:
    with app.app_context():
        engine = dservercore.sql_db.engine
        if address.is_postgresql:
            options = {
                **connections.engine_options(address),
                **connections.lock_engine_options(),
            }
            locks.install(app.extensions, Locks(create_engine(address.sqlalchemy_url, **options)))
        else:
            event.listen(engine, "connect", connections.configure_sqlite)
            locks.install(app.extensions, Locks(FileLocks(lock_file)))
        try:
            upgrading.upgrade(engine, address.shown)
        except SQLAlchemyError as error:
            raise DserverfsError(
                f"database {address.shown} {trouble.meaning(error)}: {error.__cause__ or error}"
            ) from error


def _inject_plugins() -> None:
    """Replace the plugins that dservercore found among the installed packages.

    Lists, for they are read more than once, and in both modules, for
    `dservercore.utils` has names of its own for them.
    """
    for group, values in _PLUGINS.items():
        entry_points = [
            importlib.metadata.EntryPoint(value, value, f"dservercore.{group}") for value in values
        ]
        setattr(dservercore, f"{group}_entrypoints_iterator", entry_points)
        if "dservercore.utils" in sys.modules:
            setattr(sys.modules["dservercore.utils"], f"{group}_entrypoints_iterator", entry_points)


def _config(directory: DataDirectory, address: Address) -> dict[str, Any]:
    """Return Flask's configuration; `/config/info` shows every key in capitals but `_SECRETS`."""
    private_key_pem = directory.private_key_pem()
    return {
        "API_TITLE": "dserver API",
        "API_VERSION": "v1",
        "OPENAPI_VERSION": "3.0.2",
        "SECRET_KEY": directory.secret_key(),
        "SQLALCHEMY_DATABASE_URI": address.sqlalchemy_url,
        "SQLALCHEMY_ENGINE_OPTIONS": connections.engine_options(address),
        "SQLALCHEMY_TRACK_MODIFICATIONS": False,
        "JWT_ALGORITHM": "RS256",
        "JWT_PRIVATE_KEY": private_key_pem,
        "JWT_PUBLIC_KEY": datadir.public_key_pem(private_key_pem),
        "JWT_TOKEN_LOCATION": "headers",
        "JWT_HEADER_NAME": "Authorization",
        "JWT_HEADER_TYPE": "Bearer",
        "CORS_EXPOSE_HEADERS": ["X-Pagination", "X-Sort"],
        "DSERVERFS_ABILITIES": list(wire_names.NAMES),
        "CONFIG_SECRETS_TO_OBFUSCATE": list(_SECRETS),
    }


def _versions() -> Response:
    """Answer /config/versions with the names that clients of ours and of upstream look for.

    dservercore would name each plugin by its top-level package only, so that a client
    could not tell which plugins there are.
    """
    versions = {"dservercore": dservercore.__version__}
    return answer({"versions": versions | wire_names.published(__version__)})
