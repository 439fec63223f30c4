"""`dserverfs whoami`: shows the user of the token, and that user's rights."""

from __future__ import annotations

import argparse

from dserverfs.cli.arguments import Commands, say, server_of


def add(commands: Commands) -> None:
    parser = commands.add_parser("whoami", help="show your user name and rights at a server")
    parser.description = (
        "Show which user the token is for, and each base URI with r (may read) and w (may write)."
    )
    parser.add_argument("server", metavar="SERVER", help="HOST[:PORT] or dserver://HOST[:PORT]")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.base.model import DserverURI
    from dserverfs.client import whoami
    from dserverfs.settings import Settings

    server = server_of(arguments.server)
    user = whoami(server, Settings.load())
    say(f"user: {user.username}")
    say(f"admin: {'yes' if user.is_admin else 'no'}")
    for base_uri in sorted({*user.search_base_uris, *user.register_base_uris}):
        may_read = "r" if base_uri in user.search_base_uris else "-"
        may_write = "w" if base_uri in user.register_base_uris else "-"
        say(f"{may_read}{may_write} {DserverURI(server, base_uri)}")
    return 0
