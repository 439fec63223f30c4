"""The server as a WSGI application, which gunicorn runs in several processes.

    gunicorn --config python:dserverfs.server.gunicorn_conf
    gunicorn --workers 4 --worker-class gthread --threads 8 dserverfs.server.wsgi:application

The settings are DSERVER_DATA, DSERVER_BUCKET, DSERVER_PUBLIC_URL, DSERVER_TRUSTED_PROXIES,
DSERVER_ACCESS_LOG and the others that `settings` reads; the buckets are on other S3 servers.
`application` is made when it is asked for first, `create()` makes one. What is prepared at the
start is prepared by one process after the other, and nothing is open afterwards that processes
which are forked then would share: so it does not matter whether gunicorn loads the application
before it forks.

An error of the operator's is one line and EXIT_STATUS, upon which gunicorn ends; to other
servers it is a SystemExit as well.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from dserverfs.base import core_dumps
from dserverfs.base.errors import DserverfsError, UsageError
from dserverfs.server import log_format
from dserverfs.server.addresses import network_of, public_url
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.proxies import ClientAddresses
from dserverfs.server.store import signing
from dserverfs.server.store.settings import ServerSettings
from dserverfs.settings import BUCKET, DATA, PUBLIC_URL, TRUSTED_PROXIES, Settings, current

EXIT_STATUS = 4  # gunicorn's for an application that cannot be loaded: it starts no other worker
DEFAULT_BUCKET = "datasets"

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]

_log = logging.getLogger(__name__)


def create() -> Application:
    """Return the application that the settings describe; raises SystemExit if it cannot be."""
    try:
        return _create(Settings.load())
    except DserverfsError as error:
        print(f"dserverfs: {error}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_STATUS) from error


def __getattr__(name: str) -> Application:
    if name != "application":
        raise AttributeError(name)
    application = globals()[name] = create()
    return application


def _create(settings: Settings) -> Application:
    if not settings.allows_core_dumps():
        core_dumps.forbid()
    os.umask(0o077)
    log_format.configure()
    directory = DataDirectory(settings.server_directory(), f"{DATA} =")
    server_settings = _server_settings(settings)
    trusted = [
        network_of(TRUSTED_PROXIES, text.strip())
        for text in (settings.get(TRUSTED_PROXIES) or "").split(",")
        if text.strip()
    ]
    base_uri = f"s3://{_bucket(settings, server_settings)}"
    directory.share()
    # Read when prometheus_client is imported, which is below.
    os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(directory.metrics))
    os.makedirs(os.environ["PROMETHEUS_MULTIPROC_DIR"], mode=0o700, exist_ok=True)

    from dserverfs.server.routes.health import Health
    from dserverfs.server.store.stores import Stores
    from dserverfs.server.web import create_app
    from dserverfs.server.wsgi_bodies import LimitedBodies

    stores = Stores(None, server_settings.storage)
    if failing := Health(stores, "").look_at_stores([base_uri]).failing:
        _log.warning("%s: %s; /health/ready says when it answers", base_uri, failing[base_uri])
    else:
        stores.ensure_bucket(base_uri)
    app = create_app(directory, stores, server_settings, base_uri)
    stores.disconnect()
    return ClientAddresses(LimitedBodies(app, app.config["JWT_PUBLIC_KEY"]), trusted)


def _server_settings(settings: Settings) -> ServerSettings:
    url = settings.get(PUBLIC_URL)
    if url is None:
        return ServerSettings(current)
    return ServerSettings(current, public_url=public_url(PUBLIC_URL, url))


def _bucket(settings: Settings, server_settings: ServerSettings) -> str:
    """Return the bucket of the first base URI; raises UsageError if there is no store for it."""
    bucket = settings.get(BUCKET) or DEFAULT_BUCKET
    signing.require_bucket_name(bucket, is_foreign=True)
    if server_settings.storage(bucket) is None:
        raise UsageError(
            f"bucket {bucket}: DTOOL_S3_ENDPOINT_{bucket} is not set, and a store of its own has"
            f" `dserverfs serve` alone; set it and its keys, or {BUCKET} to another bucket"
        )
    return bucket
