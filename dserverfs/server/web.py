"""The web side of `serve`: the app's first user, and waitress in a thread of its own."""

from __future__ import annotations

import getpass
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import dservercore
import dservercore.utils
import waitress.server
import waitress.wasyncore
from flask import Flask

from dserverfs.server import access_log, app, slow_clients
from dserverfs.server.bodies import limited_channel
from dserverfs.server.certificates import Certificates
from dserverfs.server.database import changes, locks, passwords, tokens
from dserverfs.server.datadir import DataDirectory, write_private
from dserverfs.server.routes.health import Health
from dserverfs.server.store.settings import ServerSettings
from dserverfs.server.store.signals import Signals
from dserverfs.server.store.stores import Stores
from dserverfs.server.tls_channel import tls_channel

Application = Callable[..., Iterable[bytes]]  # of WSGI
Middleware = Callable[[Application], Application]

THREADS = 8
TOKEN_LIFE = timedelta(days=365)  # and a new one at every start
FINISH_S = 30.0  # for requests that are under way when the server stops
_STOP_DEADLINE_S = 1.0
_LOOK_S = 1.0  # for clients that are too slow


def create_app(
    directory: DataDirectory, stores: Stores, settings: ServerSettings, base_uri: str
) -> Flask:
    """Return the app of a data directory, with its first user and that user's new token."""
    with directory.starting():
        flask = app.create(directory, stores, settings)
        access_log.install(flask, settings.get(access_log.SETTING))
        with flask.app_context():
            with locks.holding(locks.RIGHTS):
                _prepare_first_user(directory, base_uri)
            health = Health(stores, "")
            changes.repair_all(stores, lambda uri: not health.look_at_stores([uri]).failing)
            dservercore.sql_db.session.remove()
        app.close(flask)  # processes may be forked now
    return flask


def _prepare_first_user(directory: DataDirectory, base_uri: str) -> None:
    """Give the first user a password, a token, and all rights on a base URI that is new."""
    username = directory.load_or_create("username", _login_name).strip()
    if not dservercore.utils.user_exists(username):
        dservercore.utils.register_users([{"username": username, "is_admin": True}])
    password_is_new = not (directory.path / "password").exists()
    password = directory.load_or_create("password", lambda: secrets.token_urlsafe(12) + "\n")
    if password_is_new or not passwords.has_password(username):
        passwords.set_password(username, password.strip())
        dservercore.sql_db.session.commit()
    if not dservercore.utils.base_uri_exists(base_uri):
        dservercore.utils.register_base_uri(base_uri)
    if not any(dservercore.utils.get_permission_info(base_uri)[kind] for kind in _PERMISSIONS):
        dservercore.utils.register_permissions(
            base_uri, {kind: [username] for kind in _PERMISSIONS}
        )
    write_token(directory, username)


def write_token(directory: DataDirectory, username: str) -> None:
    """Write the first user's token file, which clients read again when it changes."""
    write_private(directory.token_file, tokens.new_token(username, TOKEN_LIFE) + "\n")


_PERMISSIONS = ("users_with_search_permissions", "users_with_register_permissions")


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return "root"


class WebServer:
    """waitress: a thread for its loop and `THREADS` that answer."""

    def __init__(
        self,
        flask: Flask,
        listener: socket.socket,
        signals: Signals,
        *,
        certificates: Certificates | None = None,
        middlewares: Sequence[Middleware] = (),
    ) -> None:
        """Speaks TLS with `certificates`; of the `middlewares` the last sees a request first."""
        application: Application = flask
        for each in middlewares:
            application = each(application)
        self.fault: Exception | None = None
        self._signals = signals
        self._finish_by_s: float | None = None
        self._is_listening = True
        self._sockets: dict[int, object] = {}
        self._looked_s = 0.0
        self._server = waitress.server.create_server(
            application,
            map=self._sockets,
            sockets=[listener],
            threads=THREADS,
            ident="dserverfs",
            url_scheme="http" if certificates is None else "https",
            clear_untrusted_proxy_headers=not middlewares,  # whose they are
            # More are closed by `slow_clients`; at its own limit waitress would take no new one.
            connection_limit=2 * slow_clients.MAX_CONNECTIONS,
        )
        self._server.channel_class = limited_channel(
            flask.config["JWT_PUBLIC_KEY"],
            None if certificates is None else tls_channel(certificates.context),
        )
        self._thread = threading.Thread(target=self._loop, name="waitress", daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Answer requests until the end of the block; those that run then get FINISH_S."""
        self._thread.start()
        try:
            yield
        finally:
            self._finish_by_s = time.monotonic() + FINISH_S
            self._server.pull_trigger()
            self._thread.join(FINISH_S + 2 * _STOP_DEADLINE_S)
            self._server.task_dispatcher.shutdown(cancel_pending=True, timeout=_STOP_DEADLINE_S)
            waitress.wasyncore.close_all(self._sockets)

    def _loop(self) -> None:
        try:
            while not self._is_finished():
                waitress.wasyncore.loop(timeout=1.0, use_poll=True, map=self._sockets, count=1)
                if self._is_time_to_look():
                    slow_clients.close_overdue([*self._server.active_channels.values()])
        except Exception as error:  # noqa: BLE001 - top of a thread; `serve` reports it
            self.fault = error
            self._signals.wake()

    def _is_finished(self) -> bool:
        """Return whether to stop now; once it is to stop, take no more connections or requests."""
        if self._finish_by_s is None:
            return False
        if self._is_listening:
            self._is_listening = False
            waitress.wasyncore.dispatcher.close(self._server)  # its own method ends the loop's, too
        channels = [*self._server.active_channels.values()]
        for channel in slow_clients.idle(channels):
            channel.handle_close()
        return not self._server.active_channels or time.monotonic() > self._finish_by_s

    def _is_time_to_look(self) -> bool:
        """Return True once a second, and whenever there are too many connections."""
        if time.monotonic() - self._looked_s < _LOOK_S and (
            len(self._server.active_channels) <= slow_clients.MAX_CONNECTIONS
        ):
            return False
        self._looked_s = time.monotonic()
        return True
