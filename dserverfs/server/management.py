"""Users, their rights and base URIs of a data directory, whether its server runs or not.

Works on the database, beside a running server: that asks it anew for every
request. Each function commits its changes. Needs the app context that
`opened` gives.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import dservercore.utils
from dservercore.extensions import sql_db
from dservercore.sql_models import BaseURI, User
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from dserverfs.base.errors import (
    Conflict,
    DserverfsError,
    NotFound,
    Unreachable,
    Unsupported,
    UsageError,
)
from dserverfs.base.printable import counted
from dserverfs.base.progress import OnProgress, unwatched
from dserverfs.server import app
from dserverfs.server.database import (
    bucket_index,
    connections,
    copying,
    locks,
    passwords,
    tokens,
    trouble,
    upgrading,
    uploads,
)
from dserverfs.server.database.bucket_index import Indexed
from dserverfs.server.database.copying import Copied, OnTable
from dserverfs.server.datadir import DataDirectory, write_private
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.seaweedfs import SeaweedFS
from dserverfs.server.store.settings import ServerSettings
from dserverfs.server.store.signing import bucket_of, require_bucket_name
from dserverfs.server.store.stores import Stores
from dserverfs.server.web import write_token

# One that does not run refuses at once; one that is slow has work to do.
STORE_TIMEOUT_S = 30.0
# dservercore keeps 64 characters; a slash could not be in a path, a space not in a list.
_USERNAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._@+-]{0,63}\Z")


class UserEntry(NamedTuple):
    username: str
    is_admin: bool
    has_password: bool


class S3Access(NamedTuple):
    """The way of an S3 client to the store."""

    endpoint: str  # on this machine
    public_endpoint: str  # what signed URLs name, if that is another one; else empty
    access_key: str
    secret_key: str
    region: str
    buckets: list[str]
    credentials_file: Path  # as AWS's tools and SDKs read it


class Rights(NamedTuple):
    username: str
    base_uri: str
    may_search: bool
    may_register: bool


@contextlib.contextmanager
def opened(directory: DataDirectory, stores: Stores, settings: ServerSettings) -> Iterator[Flask]:
    """Give the app of a data directory, in its context; raises UsageError if it is none."""
    with directory.shared():
        flask = app.create(directory, stores, settings)
        with flask.app_context():
            try:
                yield flask
            except SQLAlchemyError as error:
                raise DserverfsError(
                    f"the database {trouble.meaning(error)}: {error.__cause__ or error}"
                ) from error
            finally:
                sql_db.session.remove()  # of this context
                app.close(flask)


def copy_database(
    directory: DataDirectory, settings: ServerSettings, on_table: OnTable
) -> Copied | None:
    """Copy the SQLite of a directory into the PostgreSQL of the settings, and have that used.

    Returns None if it is used already. Raises Conflict while a server runs.
    """
    if not directory.database.exists():
        raise UsageError(f"--data {directory.path}: has no {directory.database.name} to copy")
    address = directory.address(settings)
    if not address.is_postgresql:
        raise UsageError("say where to: give --database, or set DSERVER_DATABASE")
    with directory.locked():
        if (kept := directory.kept_address()) is not None:
            if kept.shown != address.shown:
                raise UsageError(f"--data {directory.path}: is in {kept.shown} already")
            return None
        source = create_engine(
            connections.of_file(directory.database).sqlalchemy_url, hide_parameters=True
        )
        flask = app.on_database(directory, Stores(None, settings.storage), settings, address)
        try:
            upgrading.upgrade(source, str(directory.database))
            with flask.app_context(), source.connect() as connection:
                identity = hashlib.sha256(directory.secret_key().encode()).hexdigest()
                copying.begin(identity, address.shown)
                copied = copying.copy(connection, on_table)
                directory.write_address(address)
                copying.finish()
                sql_db.session.remove()
        except SQLAlchemyError as error:
            raise DserverfsError(
                f"the database {trouble.meaning(error)}: {error.__cause__ or error}"
            ) from error
        finally:
            source.dispose()
            app.close(flask)
    return copied


def add_user(username: str, *, is_admin: bool) -> None:
    if not _USERNAME.match(username):
        raise UsageError(
            f"user {username!r}: not 1 to 64 characters of a-z, A-Z, 0-9, '.', '_', '@', '+', '-'"
        )
    if dservercore.utils.user_exists(username):
        raise Conflict(f"user {username} exists already")
    dservercore.utils.register_users([{"username": username, "is_admin": is_admin}])


def remove_user(directory: DataDirectory, username: str) -> None:
    """Remove a user with password and rights; refuse the one that `serve` makes."""
    _user(username)
    if username == directory.first_user():
        raise UsageError(f"user {username} belongs to this server, which makes it at every start")
    dservercore.utils.delete_user(username)


def require_user(username: str) -> None:
    """Raise NotFound unless there is such a user."""
    _user(username)


def users() -> list[UserEntry]:
    return [
        UserEntry(user.username, user.is_admin, passwords.has_password(user.username))
        for user in User.query.order_by(User.username)
    ]


def set_password(directory: DataDirectory, username: str, password: str) -> None:
    """Set a password; the tokens that the user has by now are good no longer."""
    _user(username)
    passwords.set_password(username, password)
    if username == directory.first_user():
        write_private(directory.password_file, password + "\n")
    sql_db.session.commit()
    _renew_token_file(directory, username)


def revoke_tokens(directory: DataDirectory, username: str) -> None:
    """Let no token be good that the user has by now."""
    _user(username)
    tokens.revoke(username)
    sql_db.session.commit()
    _renew_token_file(directory, username)


def _renew_token_file(directory: DataDirectory, username: str) -> None:
    if username == directory.first_user():
        write_token(directory, username)


def new_token(username: str, life: datetime.timedelta) -> str:
    _user(username)
    return tokens.new_token(username, life)


def add_base_uri(base_uri: str, stores: Stores) -> None:
    """Register a base URI; the bucket is made, in the server's own store, when it is needed."""
    is_foreign = stores.is_foreign(base_uri)
    require_bucket_name(bucket_of(base_uri), is_foreign=is_foreign)
    if is_foreign:
        stores.ensure_bucket(base_uri)
    if dservercore.utils.base_uri_exists(base_uri):
        raise Conflict(f"base URI {base_uri} exists already")
    dservercore.utils.register_base_uri(base_uri)


def remove_base_uri(base_uri: str) -> None:
    """Remove a base URI without datasets, and all rights on it; its bucket is left alone."""
    base = _base_uri(base_uri)
    pending = uploads.number_in(base_uri)
    if base.datasets or pending:
        raise Conflict(
            f"base URI {base_uri} has {counted(len(base.datasets), 'dataset')} and"
            f" {counted(pending, 'pending upload')}:"
            " delete these first"
        )
    dservercore.utils.delete_base_uri(base_uri)


def require_base_uri(base_uri: str) -> str:
    """Return the bucket of a base URI; raises NotFound unless it is registered."""
    _base_uri(base_uri)
    return bucket_of(base_uri)


def base_uris() -> list[str]:
    return sorted(base.base_uri for base in BaseURI.query.all())


def grant(username: str, base_uri: str, *, search: bool, register: bool) -> None:
    with locks.holding(locks.RIGHTS):
        user, base = _user(username), _base_uri(base_uri)
        for wanted, users in ((search, base.search_users), (register, base.register_users)):
            if wanted and user not in users:
                users.append(user)
        sql_db.session.commit()


def revoke(username: str, base_uri: str, *, search: bool, register: bool) -> None:
    with locks.holding(locks.RIGHTS):
        user, base = _user(username), _base_uri(base_uri)
        for wanted, users in ((search, base.search_users), (register, base.register_users)):
            if wanted and user in users:
                users.remove(user)
        sql_db.session.commit()


def s3_access(directory: DataDirectory, stores: Stores) -> S3Access:
    """Return how S3 clients reach the embedded store, with a credentials file, 0600, written.

    Raises UsageError if it was never started, or does not answer now.
    """
    buckets = []
    for uri in base_uris():
        with contextlib.suppress(Unsupported):  # azure://..., of which there are no items here
            if not stores.is_foreign(uri):
                buckets.append(bucket_of(uri))
    storage = SeaweedFS(directory.store, bucket="").storage_of_running()
    try:
        existing = set(ObjectStore(storage, attempts=1, timeout_s=STORE_TIMEOUT_S).buckets())
    except Unreachable as error:
        raise UsageError(f"the store does not run; run: dserverfs serve ({error})") from error
    file = directory.path / "s3_credentials"
    write_private(
        file,
        f"[default]\naws_access_key_id = {storage.access_key}\n"
        f"aws_secret_access_key = {storage.secret_key}\n",
    )
    # A bucket is made when it is first written to.
    return S3Access(
        endpoint=storage.endpoint,
        public_endpoint=storage.public_endpoint,
        access_key=storage.access_key,
        secret_key=storage.secret_key,
        region=storage.region,
        buckets=[each for each in buckets if each in existing],
        credentials_file=file,
    )


def index(
    directory: DataDirectory,
    stores: Stores,
    base_uri: str,
    on_progress: OnProgress = unwatched,
) -> Indexed:
    """Register the datasets in the bucket of a base URI; reads those anew that are registered.

    Raises UsageError if the bucket is of the embedded store and that does not run.
    """
    _base_uri(base_uri)
    if not stores.is_foreign(base_uri):
        bucket = bucket_of(base_uri)
        storage = SeaweedFS(directory.store, bucket=bucket).storage_of_running()
        stores = Stores(ObjectStore(storage), lambda bucket: None)
    return bucket_index.index(stores, base_uri, on_progress)


def rights() -> list[Rights]:
    """Return the rights of all users, by base URI and user."""
    return [
        Rights(user.username, base.base_uri, user in base.search_users, user in base.register_users)
        for base in BaseURI.query.order_by(BaseURI.base_uri)
        for user in sorted(
            {*base.search_users, *base.register_users}, key=lambda each: each.username
        )
    ]


def _user(username: str) -> User:
    user = User.query.filter_by(username=username).first()
    if user is None:
        raise NotFound(f"there is no user {username}; add it by: dserverfs serve user add")
    return user


def _base_uri(base_uri: str) -> BaseURI:
    base = BaseURI.query.filter_by(base_uri=base_uri).first()
    if base is None:
        raise NotFound(
            f"there is no base URI {base_uri}; add it by: dserverfs serve base-uri add",
            uri=base_uri,
        )
    return base
