"""`dserverfs serve`: puts the embedded server together and runs it until told to stop.

The main thread starts the store, then only waits: for a signal, for the end of
the store, for a fault of the web server, whose loop has a thread of its own
beside its 8 workers. It must not end before everything else does, for the store
dies with it.
"""

from __future__ import annotations

import datetime
import getpass
import logging
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dservercore
import dservercore.utils
import waitress.server
import waitress.wasyncore
from flask import Flask

from dserverfs.errors import DserverfsError, UsageError
from dserverfs.server import accounts, app
from dserverfs.server.datadir import DataDirectory, write_private
from dserverfs.server.objects import ObjectStore
from dserverfs.server.seaweedfs import RunningStore, SeaweedFS
from dserverfs.server.signals import Signals, Stopped

THREADS = 8
TOKEN_LIFE = datetime.timedelta(days=365)  # and a new one at every start
_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]\Z")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    data: Path
    host: str
    port: int  # 0: any free one
    bucket: str

    @classmethod
    def from_arguments(cls, *, data: str | None, host: str, port: int, bucket: str) -> ServeOptions:
        """Check what was given on the command line; raises UsageError."""
        if not 0 <= port <= 65535:
            raise UsageError(f"--port {port}: not between 0 and 65535")
        if not _BUCKET.match(bucket):
            raise UsageError(
                f"--bucket {bucket}: not 3 to 63 characters of a-z, 0-9 and '-', "
                "beginning and ending with a letter or digit"
            )
        path = default_data_directory() if data is None else Path(data).absolute()
        return cls(path, host, port, bucket)


def default_data_directory() -> Path:
    home = os.environ.get("XDG_DATA_HOME")
    base = Path(home) if home and os.path.isabs(home) else Path.home() / ".local" / "share"
    return base / "dserverfs" / "server"


def serve(options: ServeOptions) -> int:
    """Run the server until SIGINT or SIGTERM; return 0 then. Raises DserverfsError."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("dservercore").setLevel(logging.WARNING)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    os.umask(0o077)
    directory = DataDirectory(options.data)
    with Signals() as signals:
        try:
            with (
                _listening(options.host, options.port) as listener,
                directory.locked(),
                SeaweedFS(directory.store, bucket=options.bucket).running(signals) as running,
            ):
                _run(options, directory, running, listener, signals)
        except Stopped:
            pass
    _log.info("stopped")
    return 0


def _run(
    options: ServeOptions,
    directory: DataDirectory,
    running: RunningStore,
    listener: socket.socket,
    signals: Signals,
) -> None:
    store = running.wait_ready(signals)
    flask = app.create(
        database=directory.database,
        private_key_pem=directory.private_key_pem(),
        secret_key=directory.secret_key(),
        store=store,
    )
    _prepare_owner(flask, directory, store)
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with _web_server(flask, listener, signals) as web:
        print(f"dserver URL: http://{address}")
        print(f"base URI: dserver://{address}/s3/{options.bucket}")
        print(f"token file: {directory.token_file}", flush=True)
        while True:
            signals.wait()
            if running.ended() is not None:
                raise running.failure()
            if web.fault is not None:
                raise DserverfsError(f"the web server ended: {web.fault}") from web.fault


def _prepare_owner(flask: Flask, directory: DataDirectory, store: ObjectStore) -> None:
    """Make the first user with all rights on the base URI, and that user's new token."""
    username = directory.load_or_create("username", _login_name).strip()
    base_uri = store.storage.base_uri
    with flask.app_context():
        if not dservercore.utils.user_exists(username):
            dservercore.utils.register_users([{"username": username, "is_admin": True}])
        password_is_new = not (directory.path / "password").exists()
        password = directory.load_or_create("password", lambda: secrets.token_urlsafe(12) + "\n")
        if password_is_new or not accounts.has_password(username):
            accounts.set_password(username, password.strip())
            dservercore.sql_db.session.commit()
        if not dservercore.utils.base_uri_exists(base_uri):
            dservercore.utils.register_base_uri(base_uri)
            dservercore.utils.register_permissions(
                base_uri,
                {
                    "users_with_search_permissions": [username],
                    "users_with_register_permissions": [username],
                },
            )
        write_private(directory.token_file, accounts.new_token(username, TOKEN_LIFE) + "\n")


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return "root"


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that holds the address, though nobody is answered before the loop runs."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror}") from error
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError as error:
            raise UsageError(
                f"cannot listen on {host} port {port}: {error.strerror}; "
                "give another --port (0 takes any free one)"
            ) from error
        yield listener


class _WebServer:
    """waitress in a thread of its own."""

    def __init__(self, flask: Flask, listener: socket.socket, signals: Signals) -> None:
        self.fault: Exception | None = None
        self._signals = signals
        self._stopping = False
        self._sockets: dict[int, object] = {}
        self._server = waitress.server.create_server(
            flask, map=self._sockets, sockets=[listener], threads=THREADS, ident="dserverfs"
        )
        self._thread = threading.Thread(target=self._loop, name="waitress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Answer nobody any more; requests that run are given a second."""
        self._stopping = True
        self._server.pull_trigger()
        self._thread.join(1.0)
        self._server.task_dispatcher.shutdown(cancel_pending=True, timeout=1)
        waitress.wasyncore.close_all(self._sockets)

    def _loop(self) -> None:
        try:
            while not self._stopping:
                waitress.wasyncore.loop(timeout=1.0, use_poll=True, map=self._sockets, count=1)
        except Exception as error:  # noqa: BLE001 - top of a thread; told to the main one
            self.fault = error
            self._signals.wake()


@contextmanager
def _web_server(flask: Flask, listener: socket.socket, signals: Signals) -> Iterator[_WebServer]:
    web = _WebServer(flask, listener, signals)
    web.start()
    try:
        yield web
    finally:
        web.stop()
