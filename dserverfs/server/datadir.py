"""The data directory of `serve`: its version, its lock, its secrets.

    version            "dserverfs server 1", written first
    lock               flock: held by the running serve alone, by other processes together
    start              flock: held by a process that starts, for as long as that takes
    locks              of what two processes must not do at once, see `database/locks`
    secret_key, jwt_private.pem, username, password, token, metrics_token
    metrics/           figures of the processes of gunicorn, made anew by the first one
    s3_credentials     written by `dserverfs serve credentials`
    dserver.sqlite     users, permissions, datasets, pending uploads, or, if they are in PostgreSQL,
    database           its address, without the password
    store/             of seaweedfs

Every file appears whole or not at all (written beside, synced, renamed), and
each is made when it is missing: after a first start that was killed, the next one
carries on. The directory is 0700 and the files are 0600. The processes of gunicorn start one
after the other, so that each file is made once. Main thread only.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from dserverfs.base.durable_files import left_beside, write_durably
from dserverfs.base.errors import Conflict, UsageError
from dserverfs.base.locks import locked_within, open_lock, try_lock, try_share
from dserverfs.server.database import connections
from dserverfs.server.database.connections import Address
from dserverfs.server.store.settings import DATABASE, ServerSettings

VERSION = "dserverfs server 1"
START_S = 120.0  # for which a process waits until others have started

_DATABASE_FILE = "database"

_log = logging.getLogger(__name__)


class DataDirectory:
    """One directory that belongs to one running `serve`, or to processes that share it."""

    def __init__(self, path: Path, called: str = "--data") -> None:
        """Messages name it by the option or setting that it is `called`."""
        self.path = path
        self._name = f"{called} {path}"
        self._shared_fd: int | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory: made if missing, of our version, and not used by another server.

        Raises UsageError when it cannot be used and Conflict when another serve uses it.
        """
        with ExitStack() as stack:
            try:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._refuse_foreign()
                stack.enter_context(locked_within(self.path / "lock", 0.0))
            except BlockingIOError as error:
                raise Conflict(
                    f"{self._name} is in use by another dserverfs serve, or by gunicorn; "
                    "stop that one or give another directory"
                ) from error
            except OSError as error:
                raise UsageError(f"{self._name}: {error.strerror}") from error
            self._prepare()
            yield

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Use the directory beside a running serve; share it, as `share` does, if none runs."""
        with suppress(Conflict):  # that serve has prepared it
            self.share()
        try:
            yield
        finally:
            if self._shared_fd is not None:
                os.close(self._shared_fd)
                self._shared_fd = None

    def share(self) -> None:
        """Hold the directory beside others that share it, until this process ends; as `locked`.

        Raises Conflict when a serve uses it.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._refuse_foreign()
            with self.starting(), ExitStack() as stack:
                fd = open_lock(self.path / "lock")
                stack.callback(os.close, fd)
                if try_lock(fd):
                    self._prepare()
                    shutil.rmtree(self.metrics, ignore_errors=True)
                if not try_share(fd):
                    raise Conflict(
                        f"{self._name} is in use by a dserverfs serve; "
                        "stop that one or give another directory"
                    )
                stack.pop_all()
        except OSError as error:
            raise UsageError(f"{self._name}: {error.strerror}") from error
        self._shared_fd = fd

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Wait until no other process of this machine starts with the directory, and keep it so.

        Raises Conflict if that takes too long.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked_within(self.path / "start", START_S))
            except BlockingIOError as error:
                raise Conflict(
                    f"{self._name}: another process has been starting for {START_S:.0f} s; "
                    "see what holds it up, and start again"
                ) from error
            yield

    def address(self, settings: ServerSettings) -> Address:
        """Return the database: the one that is named, else the one of the last run.

        Raises UsageError for one that cannot be.
        """
        named = settings.database()
        if named is not None:
            return connections.of_text(named, DATABASE)
        return self.kept_address() or connections.of_file(self.database)

    def kept_address(self) -> Address | None:
        """Return the PostgreSQL of the last run, without its password; None if it had none."""
        try:
            return connections.of_kept((self.path / _DATABASE_FILE).read_text())
        except FileNotFoundError:
            return None

    def keep_address(self, address: Address) -> None:
        """Let commands that are not told find the same database."""
        if not address.is_postgresql:
            return
        if self.kept_address() is None and self.database.exists():
            _log.warning(
                "%s is not used any more: datasets and users are in %s",
                self.database,
                address.shown,
            )
        self.write_address(address)

    def write_address(self, address: Address) -> None:
        """As `keep_address`, of a PostgreSQL that has all that was here."""
        path, text = self.path / _DATABASE_FILE, address.without_password() + "\n"
        if not path.exists() or path.read_text() != text:
            write_private(path, text)

    def known_base_uris(self, settings: ServerSettings) -> list[str]:
        """Return the base URIs in the database; asked before dservercore is there to ask."""
        return connections.known_base_uris(self.address(settings))

    def first_user(self) -> str | None:
        """Return the user that serve makes, if it has run."""
        try:
            return (self.path / "username").read_text().strip()
        except FileNotFoundError:
            return None

    @property
    def password_file(self) -> Path:
        return self.path / "password"

    @property
    def database(self) -> Path:
        return self.path / "dserver.sqlite"

    @property
    def store(self) -> Path:
        return self.path / "store"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics"

    @property
    def token_file(self) -> Path:
        return self.path / "token"

    def secret_key(self) -> str:
        return self.load_or_create("secret_key", lambda: secrets.token_urlsafe(32))

    def metrics_token(self) -> str:
        """Return what a Prometheus has to send to be given figures."""
        create = lambda: secrets.token_urlsafe(32) + "\n"  # noqa: E731
        return self.load_or_create("metrics_token", create).strip()

    def private_key_pem(self) -> str:
        """Return the RSA key with which tokens are signed."""
        return self.load_or_create("jwt_private.pem", _new_private_key)

    def load_or_create(self, name: str, create: Callable[[], str]) -> str:
        """Return the text of the file `name`, which `create` gives if it is missing."""
        path = self.path / name
        try:
            return path.read_text()
        except FileNotFoundError:
            text = create()
            write_private(path, text)
            return text

    def _refuse_foreign(self) -> None:
        """Refuse a directory of another version, or one that holds other things."""
        there = {entry.name for entry in self.path.iterdir()}  # before another makes the version
        try:
            found = (self.path / "version").read_text().strip()
        except FileNotFoundError:
            ours = {"lock", "start", *(path.name for path in left_beside(self.path / "version"))}
            strangers = there - ours
            if strangers:
                raise UsageError(
                    f"{self._name} is not empty and holds no dserverfs server "
                    f"({min(strangers)} is in it); give an empty or a new directory"
                ) from None
            return
        except UnicodeDecodeError:
            found = "something unreadable"
        if found != VERSION:
            raise UsageError(
                f"{self._name} holds {found!r}, this program reads {VERSION!r}; "
                "use the dserverfs that wrote it, or another directory"
            )

    def _prepare(self) -> None:
        try:
            self.path.chmod(0o700)
            for path in left_beside(self.path / "*"):
                path.unlink()
            self.load_or_create("version", lambda: VERSION + "\n")
            self.store.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self._name}: {error.strerror}") from error


def write_private(path: Path, text: str) -> None:
    """Write a file that only the owner can read; whole or not at all."""
    write_durably(path, text.encode())


def _new_private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def public_key_pem(private_key_pem: str) -> str:
    key = serialization.load_pem_private_key(private_key_pem.encode(), password=None)
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )
