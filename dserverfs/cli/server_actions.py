"""The actions of `dserverfs serve ACTION`, on the data directory of a server.

A function for each row of `serve_management.ACTIONS`, which are arguments alone, so that
`dserverfs --help` needs no extra. It returns the exit status, and None for 0.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.errors import UsageError
from dserverfs.base.printable import counted
from dserverfs.cli.arguments import read_new_password, say
from dserverfs.cli.progress import ProgressLine
from dserverfs.server import management
from dserverfs.server.datadir import DataDirectory, write_private
from dserverfs.server.serve import named_database
from dserverfs.server.store.settings import DATABASE, ServerSettings
from dserverfs.server.store.stores import Stores

MAX_TOKEN_DAYS = 3650

Get = Callable[[str], str | None]


class Server(NamedTuple):
    """The server that an action is about, whether it runs or not."""

    directory: DataDirectory
    stores: Stores
    settings: ServerSettings


def user_add(server: Server, arguments: argparse.Namespace) -> None:
    management.add_user(arguments.name, is_admin=arguments.admin)


def user_remove(server: Server, arguments: argparse.Namespace) -> None:
    management.remove_user(server.directory, arguments.name)


def user_list(server: Server, arguments: argparse.Namespace) -> None:
    for user in management.users():
        admin = "admin" if user.is_admin else "-"
        password = "password" if user.has_password else "-"
        say(f"{user.username} {admin} {password}")


def user_password(server: Server, arguments: argparse.Namespace) -> None:
    management.require_user(arguments.name)
    password = read_new_password(f"New password for {arguments.name}: ")
    management.set_password(server.directory, arguments.name, password)


def user_revoke_tokens(server: Server, arguments: argparse.Namespace) -> None:
    management.revoke_tokens(server.directory, arguments.name)


def token(server: Server, arguments: argparse.Namespace) -> None:
    if not 1 <= arguments.days <= MAX_TOKEN_DAYS:
        raise UsageError(f"--days {arguments.days}: not between 1 and {MAX_TOKEN_DAYS}")
    made = management.new_token(arguments.name, datetime.timedelta(days=arguments.days))
    if arguments.output is None:
        print(made)
        return
    try:
        write_private(arguments.output, made + "\n")
    except OSError as error:
        raise UsageError(f"--output {arguments.output}: {error.strerror}") from error


def base_uri_add(server: Server, arguments: argparse.Namespace) -> None:
    management.add_base_uri(arguments.base_uri, server.stores)
    owner = server.directory.first_user()
    if owner is not None:
        management.grant(owner, arguments.base_uri, search=True, register=True)
    print(
        f"{owner or 'nobody'} may search and register in {arguments.base_uri}; others after:"
        f" dserverfs serve permission grant NAME {arguments.base_uri} [--search] [--register]"
    )


def base_uri_list(server: Server, arguments: argparse.Namespace) -> None:
    for base_uri in management.base_uris():
        say(base_uri)


def base_uri_remove(server: Server, arguments: argparse.Namespace) -> None:
    management.remove_base_uri(arguments.base_uri)


def permission_grant(server: Server, arguments: argparse.Namespace) -> None:
    _require_a_right(arguments)
    management.grant(
        arguments.name, arguments.base_uri, search=arguments.search, register=arguments.register
    )


def permission_revoke(server: Server, arguments: argparse.Namespace) -> None:
    _require_a_right(arguments)
    management.revoke(
        arguments.name, arguments.base_uri, search=arguments.search, register=arguments.register
    )


def permission_list(server: Server, arguments: argparse.Namespace) -> None:
    for rights in management.rights():
        may = ("r" if rights.may_search else "-") + ("w" if rights.may_register else "-")
        say(f"{may} {rights.username} {rights.base_uri}")


def credentials(server: Server, arguments: argparse.Namespace) -> None:
    access = management.s3_access(server.directory, server.stores)
    print(f"endpoint: {access.endpoint}")
    if access.public_endpoint:
        print(f"endpoint for other machines: {access.public_endpoint}")
    print(f"region: {access.region}")
    print(f"buckets: {' '.join(access.buckets)}")
    print(f"access key: {access.access_key}")
    print(f"secret key: {access.secret_key}")
    print(f"credentials file: {access.credentials_file}")


def index(server: Server, arguments: argparse.Namespace) -> int:
    with ProgressLine() as line:
        result = management.index(
            server.directory,
            server.stores,
            arguments.base_uri,
            lambda now: line.count("indexing", now.items_done, now.items_total, "dataset"),
        )
    for reason in result.left_out:
        say(f"dserverfs: left out: {reason}", file=sys.stderr)
    for uri in result.missing:
        say(f"dserverfs: registered, but no longer there: {uri}", file=sys.stderr)
    say(f"{counted(result.registered, 'dataset')} registered in {arguments.base_uri}")
    return 1 if result.left_out else 0


def migrate(server: Server, arguments: argparse.Namespace) -> int:
    from dserverfs.cli import migrating

    bucket = management.require_base_uri(arguments.base_uri)
    return migrating.migrate(server.directory, arguments, bucket, server.settings)


def copy_database(directory: DataDirectory, get: Get, arguments: argparse.Namespace) -> int:
    named = arguments.target
    if named is not None:
        named_database(named)
    settings = ServerSettings(lambda name: named if named and name == DATABASE else get(name))
    with ProgressLine() as line:
        copied = management.copy_database(
            directory,
            settings,
            lambda table, done, total: line.count(f"copying {table}", done, total, "rows"),
        )
    if copied is None:
        print("the server has this database already; nothing is copied")
        return 0
    print(
        f"{copied.users} users, {copied.base_uris} base URIs and {copied.datasets} datasets copied;"
        f" the server has them in PostgreSQL from now on, {directory.database.name} stays as it was"
    )
    return 0


def _require_a_right(arguments: argparse.Namespace) -> None:
    if not arguments.search and not arguments.register:
        raise UsageError("say which right: --search, --register or both")


ACTIONS: dict[str, Callable[[Server, argparse.Namespace], int | None]] = {
    "user add": user_add,
    "user remove": user_remove,
    "user list": user_list,
    "user password": user_password,
    "user revoke-tokens": user_revoke_tokens,
    "token": token,
    "base-uri add": base_uri_add,
    "base-uri list": base_uri_list,
    "base-uri remove": base_uri_remove,
    "permission grant": permission_grant,
    "permission revoke": permission_revoke,
    "permission list": permission_list,
    "credentials": credentials,
    "s3": credentials,
    "index": index,
    "migrate": migrate,
}


# Of a server that is stopped, and not on its database alone.
OF_DATABASES: dict[str, Callable[[DataDirectory, Get, argparse.Namespace], int]] = {
    "copy-database": copy_database,
}


def run(words: str, data: Path, get: Get, arguments: argparse.Namespace) -> int:
    """Carry out one action; `get` reads the configuration."""
    if words in OF_DATABASES:
        return OF_DATABASES[words](DataDirectory(data), get, arguments)
    settings = ServerSettings(get)
    server = Server(DataDirectory(data), Stores(None, settings.storage), settings)
    with management.opened(server.directory, server.stores, settings):
        return ACTIONS[words](server, arguments) or 0
