"""dservercore's Flask app, with the plugins of this package and none that happen to be installed.

`create` may be called more than once in a process. The app is safe to share
between threads.
"""

from __future__ import annotations

import importlib.metadata
import logging
import sqlite3
import sys
from typing import Any

import dservercore
from flask import Flask, Response
from sqlalchemy import event

from dserverfs import __version__
from dserverfs.base import wire_names
from dserverfs.server import datadir
from dserverfs.server.database import (
    changes,
    links,
    locks,
    part_uploads,
    passwords,
    retrieve,
    search,
    sessions,
    sql,
    stored_block_hashes,
    tokens,
    upload_place,
    uploads,
)
from dserverfs.server.database.file_locks import FileLocks
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.pages import views
from dserverfs.server.routes import answers, guesses, table
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
_MODULES_WITH_TABLES = (
    *(search, retrieve, uploads, upload_place, part_uploads),
    *(changes, passwords, tokens, links, sessions, stored_block_hashes, guesses),
)
_SECRETS = ["JWT_PRIVATE_KEY", "SECRET_KEY", "SQLALCHEMY_DATABASE_URI"]

# Worker threads wait for each other's transactions this long.
_BUSY_TIMEOUT_MS = 20_000


def create(directory: DataDirectory, stores: Stores, settings: ServerSettings) -> Flask:
    """Return the app of a data directory, with its tables made if they are missing.

    Raises UsageError for a setting that cannot be used.
    """
    settings.publish_expiry_s()
    _inject_plugins()
    app: Flask = dservercore.create_app(_config(directory))
    # It logs the headers of each request at DEBUG, tokens and all.
    app.logger.setLevel(max(logging.INFO, app.logger.getEffectiveLevel()))
    app.view_functions["config.server_versions"] = _versions
    locks.install(app.extensions, FileLocks(directory.path / "locks"))
    logins = Logins()
    token = directory.metrics_token()
    health, metrics = Health(stores, token), Metrics(token)
    table.install(app, table.Parts(stores, settings, logins, health, metrics))
    views.install(app, stores, settings, logins)
    RequestCheck(stores).install(app)
    answers.install(app)
    metrics.install(app)
    with app.app_context():
        event.listen(dservercore.sql_db.engine, "connect", _configure_connection)
        dservercore.sql_db.create_all()
        for module in _MODULES_WITH_TABLES:
            for statement in module.SCHEMA:
                sql.execute(statement)
        dservercore.sql_db.session.commit()
    return app


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


def _config(directory: DataDirectory) -> dict[str, Any]:
    """Return Flask's configuration; `/config/info` shows every key in capitals but `_SECRETS`."""
    private_key_pem = directory.private_key_pem()
    return {
        "API_TITLE": "dserver API",
        "API_VERSION": "v1",
        "OPENAPI_VERSION": "3.0.2",
        "SECRET_KEY": directory.secret_key(),
        "SQLALCHEMY_DATABASE_URI": f"sqlite:///{directory.database.absolute()}",
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


def _configure_connection(connection: sqlite3.Connection, _record: object) -> None:
    """Write-ahead log: readers do not wait for writers. FULL: registered means on the disk."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    cursor.close()
