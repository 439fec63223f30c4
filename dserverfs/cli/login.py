"""`dserverfs login`: gets a token for a password, and keeps it for this user."""

from __future__ import annotations

import argparse
import datetime
import sys

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
    from dserverfs.client import Login
    from dserverfs.settings import Settings

    server = server_of(arguments.server)
    login = Login(server, Settings.load(), username=arguments.username)
    if not arguments.insecure:
        login.require_private_way()  # before anybody types a password
    kept = login.run(read_password(f"Password of {login.username} at {server}: "))
    say(f"user: {kept.user.username}")
    say(f"expires: {_date(kept.expires_at)}")
    say(f"token file: {kept.path}")
    if kept.overridden_by is not None:
        say(
            f"dserverfs: {kept.overridden_by} is set, and counts before this token", file=sys.stderr
        )
    return 0


def _date(moment_s: float | None) -> str:
    if moment_s is None:
        return "never, or the token does not say"
    moment = datetime.datetime.fromtimestamp(moment_s, datetime.timezone.utc)
    return f"{moment:%Y-%m-%d %H:%M} UTC"
