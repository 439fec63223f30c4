"""`dserverfs login`: gets a token for a password, and keeps it for this user."""

from __future__ import annotations

import argparse
import datetime
import getpass
import sys

from dserverfs.base.errors import UsageError
from dserverfs.cli.arguments import Commands, read_password, say, server_of


def add(commands: Commands) -> None:
    parser = commands.add_parser("login", help="get and keep a token")
    parser.description = (
        "Get a token for a password, which is typed or read from standard input, and keep it in"
        " a file that dserverfs uses where neither DSERVER_TOKEN nor DSERVER_TOKEN_FILE is set."
    )
    parser.add_argument("server", metavar="SERVER", help="HOST[:PORT] or dserver://HOST[:PORT]")
    parser.add_argument(
        "--username", metavar="NAME", help="default: DSERVER_USERNAME, or yours on this machine"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="send the password to another machine unencrypted"
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.remote import login
    from dserverfs.remote.tokens import expires_at
    from dserverfs.settings import Settings

    settings, server = Settings.load(), server_of(arguments.server)
    username = arguments.username or settings.username(server) or _login_name()
    base_url, generator_url = settings.base_url(server), settings.token_generator_url(server)
    if not arguments.insecure:  # before anybody types a password
        for url in filter(None, (generator_url, base_url)):
            login.require_private_way(url)
    password = read_password(f"Password of {username} at {server}: ")
    credentials, trust = login.Credentials(username, password), settings.trust(server)
    token = login.fetch_token(base_url, generator_url, credentials, trust)
    user = login.user_of(base_url, token, trust)
    path = settings.kept_token_file(server)
    login.keep_token(path, token)
    say(f"user: {user.username}")
    say(f"expires: {_date(expires_at(token))}")
    say(f"token file: {path}")
    setting = settings.token(server)
    if setting is not None and setting.name is not None:
        say(f"dserverfs: {setting.name} is set, and counts before this token", file=sys.stderr)
    return 0


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # a user id without a name, as in containers
        raise UsageError("name the user to log in: --username NAME") from error


def _date(moment_s: float | None) -> str:
    if moment_s is None:
        return "never, or the token does not say"
    moment = datetime.datetime.fromtimestamp(moment_s, datetime.timezone.utc)
    return f"{moment:%Y-%m-%d %H:%M} UTC"
