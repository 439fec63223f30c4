"""`dserverfs whoami`: shows the user of the token, and that user's rights."""

from __future__ import annotations

import argparse

from dserverfs.cli.arguments import Commands, example, is_web_address, moment, say, server_of


def add(commands: Commands) -> None:
    parser = commands.add_parser("whoami", help="show your user name and rights at a server")
    parser.description = (
        "Show which user the token is for, when it ends and where it is, and each base URI with r"
        " (may read) and w (may write)."
    )
    parser.add_argument("server", metavar="SERVER", help="HOST[:PORT] or dserver://HOST[:PORT]")
    parser.epilog = example("dserverfs whoami data.example.org")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.base.model import DserverURI
    from dserverfs.client import token_source, whoami
    from dserverfs.remote.tokens import expires_at
    from dserverfs.settings import URL, Settings

    server, settings = server_of(arguments.server), Settings.load()
    if is_web_address(arguments.server):
        settings = settings.overridden(server, {URL: arguments.server.rstrip("/")})
    user = whoami(server, settings)
    tokens = token_source(server, settings)
    say(f"user: {user.username}")
    say(f"admin: {'yes' if user.is_admin else 'no'}")
    say(f"expires: {moment(expires_at(tokens.token()))}")
    say(f"token: {tokens.describe()}")
    for base_uri in sorted({*user.search_base_uris, *user.register_base_uris}):
        may_read = "r" if base_uri in user.search_base_uris else "-"
        may_write = "w" if base_uri in user.register_base_uris else "-"
        say(f"{may_read}{may_write} {DserverURI(server, base_uri)}")
    return 0
