"""`dserverfs serve user|token|base-uri|permission|s3|index`: what a server's operator does."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dserverfs.base.errors import UsageError
from dserverfs.cli.arguments import Commands, missing_extra, read_password, say

if TYPE_CHECKING:
    from dserverfs.server.store.datadir import DataDirectory
    from dserverfs.server.store.stores import Stores

    Action = Callable[[argparse.Namespace, DataDirectory, Stores], int]

DEFAULT_TOKEN_DAYS = 30
MAX_TOKEN_DAYS = 3650


def add(actions: Commands) -> None:
    user = actions.add_parser("user", help="add, remove or list users, set a password")
    user_actions = user.add_subparsers(metavar="ACTION", required=True)
    command = _add(user_actions, "add", _user_add, "add a user, without password or rights")
    command.add_argument("name", metavar="NAME")
    command.add_argument("--admin", action="store_true", help="may manage users over the network")
    command = _add(user_actions, "remove", _user_remove, "remove a user with all rights")
    command.add_argument("name", metavar="NAME")
    _add(user_actions, "list", _user_list, "list users")
    command = _add(user_actions, "password", _user_password, "set a password: asked, or of stdin")
    command.add_argument("name", metavar="NAME")

    command = _add(
        user_actions,
        "revoke-tokens",
        _user_revoke_tokens,
        "end all tokens a user has",
    )
    command.add_argument("name", metavar="NAME")

    command = _add(actions, "token", _token, "make a token for a user")
    command.add_argument("name", metavar="NAME")
    command.add_argument(
        "--days", type=int, default=DEFAULT_TOKEN_DAYS, metavar="N", help="default: %(default)s"
    )
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="write it there, for its owner only"
    )

    base_uri = actions.add_parser("base-uri", help="add, list or remove base URIs")
    base_actions = base_uri.add_subparsers(metavar="ACTION", required=True)
    command = _add(base_actions, "add", _base_uri_add, "add a base URI, with a bucket of its own")
    command.add_argument("base_uri", metavar="s3://NAME")
    _add(base_actions, "list", _base_uri_list, "list base URIs")
    command = _add(base_actions, "remove", _base_uri_remove, "remove one that has no datasets")
    command.add_argument("base_uri", metavar="s3://NAME")

    permission = actions.add_parser("permission", help="grant, revoke or list rights")
    permission_actions = permission.add_subparsers(metavar="ACTION", required=True)
    for name, function in (("grant", _grant), ("revoke", _revoke)):
        command = _add(permission_actions, name, function, f"{name} a user's rights on a base URI")
        command.add_argument("name", metavar="NAME")
        command.add_argument("base_uri", metavar="s3://NAME")
        command.add_argument("--search", action="store_true", help="list and read datasets")
        command.add_argument("--register", action="store_true", help="make and change datasets")
    _add(permission_actions, "list", _permission_list, "list who may do what where")

    _add(actions, "s3", _s3, "tell how S3 clients reach the store of a server that runs")

    command = _add(actions, "index", _index, "register the datasets that are in a bucket")
    command.add_argument("base_uri", metavar="s3://NAME")


def _add(actions: Commands, name: str, action: Action, description: str) -> argparse.ArgumentParser:
    command = actions.add_parser(name, help=description)
    # No default: it would replace what was given before the action.
    command.add_argument("--data", metavar="DIR", default=argparse.SUPPRESS, help="of the server")
    command.set_defaults(command=lambda arguments: _manage(arguments, action))
    return command


def _manage(arguments: argparse.Namespace, action: Action) -> int:
    try:
        from dserverfs.server import management
        from dserverfs.server.serve import data_directory
        from dserverfs.server.store import foreign
        from dserverfs.server.store.datadir import DataDirectory
        from dserverfs.server.store.stores import Stores
    except ModuleNotFoundError as error:
        raise missing_extra("server", error) from error

    directory = DataDirectory(data_directory(arguments.data))
    stores = Stores(None, foreign.find_storage)
    with management.opened(directory, stores):
        return action(arguments, directory, stores)


def _user_add(arguments: argparse.Namespace, directory: DataDirectory, stores: Stores) -> int:
    from dserverfs.server import management

    management.add_user(arguments.name, is_admin=arguments.admin)
    return 0


def _user_remove(arguments: argparse.Namespace, directory: DataDirectory, stores: Stores) -> int:
    from dserverfs.server import management

    management.remove_user(directory, arguments.name)
    return 0


def _user_list(arguments: argparse.Namespace, directory: DataDirectory, stores: Stores) -> int:
    from dserverfs.server import management

    for user in management.users():
        admin = "admin" if user.is_admin else "-"
        password = "password" if user.has_password else "-"
        say(f"{user.username} {admin} {password}")
    return 0


def _user_password(arguments: argparse.Namespace, directory: DataDirectory, stores: Stores) -> int:
    from dserverfs.server import management

    management.require_user(arguments.name)
    password = read_password(f"New password for {arguments.name}: ", again=True)
    management.set_password(directory, arguments.name, password)
    return 0


def _user_revoke_tokens(
    arguments: argparse.Namespace, directory: DataDirectory, stores: Stores
) -> int:
    from dserverfs.server import management

    management.revoke_tokens(directory, arguments.name)
    return 0


def _token(arguments: argparse.Namespace, directory: DataDirectory, stores: Stores) -> int:
    from dserverfs.server import management
    from dserverfs.server.store.datadir import write_private

    if not 1 <= arguments.days <= MAX_TOKEN_DAYS:
        raise UsageError(f"--days {arguments.days}: not between 1 and {MAX_TOKEN_DAYS}")
    token = management.new_token(arguments.name, datetime.timedelta(days=arguments.days))
    if arguments.output is None:
        print(token)
        return 0
    try:
        write_private(arguments.output, token + "\n")
    except OSError as error:
        raise UsageError(f"--output {arguments.output}: {error.strerror}") from error
    return 0


def _base_uri_add(arguments: argparse.Namespace, directory: DataDirectory, stores: Stores) -> int:
    from dserverfs.server import management

    management.add_base_uri(arguments.base_uri, stores)
    owner = directory.first_user()
    if owner is not None:
        management.grant(owner, arguments.base_uri, search=True, register=True)
    print(
        f"{owner or 'nobody'} may search and register in {arguments.base_uri}; others after:"
        f" dserverfs serve permission grant NAME {arguments.base_uri} [--search] [--register]"
    )
    return 0


def _base_uri_list(arguments: argparse.Namespace, directory: DataDirectory, stores: Stores) -> int:
    from dserverfs.server import management

    for base_uri in management.base_uris():
        say(base_uri)
    return 0


def _base_uri_remove(
    arguments: argparse.Namespace, directory: DataDirectory, stores: Stores
) -> int:
    from dserverfs.server import management

    management.remove_base_uri(arguments.base_uri)
    return 0


def _grant(arguments: argparse.Namespace, directory: DataDirectory, stores: Stores) -> int:
    from dserverfs.server import management

    _require_a_right(arguments)
    management.grant(
        arguments.name, arguments.base_uri, search=arguments.search, register=arguments.register
    )
    return 0


def _revoke(arguments: argparse.Namespace, directory: DataDirectory, stores: Stores) -> int:
    from dserverfs.server import management

    _require_a_right(arguments)
    management.revoke(
        arguments.name, arguments.base_uri, search=arguments.search, register=arguments.register
    )
    return 0


def _require_a_right(arguments: argparse.Namespace) -> None:
    if not arguments.search and not arguments.register:
        raise UsageError("say which right: --search, --register or both")


def _permission_list(
    arguments: argparse.Namespace, directory: DataDirectory, stores: Stores
) -> int:
    from dserverfs.server import management

    for rights in management.rights():
        may = ("r" if rights.may_search else "-") + ("w" if rights.may_register else "-")
        say(f"{may} {rights.username} {rights.base_uri}")
    return 0


def _s3(arguments: argparse.Namespace, directory: DataDirectory, stores: Stores) -> int:
    from dserverfs.server import management

    access = management.s3_access(directory, stores)
    print(f"endpoint: {access.endpoint}")
    print(f"region: {access.region}")
    print(f"buckets: {' '.join(access.buckets)}")
    print(f"credentials file: {access.credentials_file}")
    return 0


def _index(arguments: argparse.Namespace, directory: DataDirectory, stores: Stores) -> int:
    from dserverfs.server import management

    result = management.index(directory, stores, arguments.base_uri)
    for reason in result.left_out:
        say(f"dserverfs: left out: {reason}", file=sys.stderr)
    for uri in result.missing:
        say(f"dserverfs: registered, but no longer there: {uri}", file=sys.stderr)
    say(f"{result.registered} datasets registered in {arguments.base_uri}")
    return 1 if result.left_out else 0
