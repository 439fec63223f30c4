"""`dserverfs logout`: deletes the token that `login` has kept."""

from __future__ import annotations

import argparse
import sys

from dserverfs.cli.arguments import Commands, example, say, server_of


def add(commands: Commands) -> None:
    parser = commands.add_parser("logout", help="delete the token that login has kept")
    parser.description = (
        "Delete the token, and the address, that login has kept for SERVER. Mounts that use the"
        " token have none from then on, until the next login. A copy of it stays good until it"
        " expires."
    )
    parser.add_argument(
        "server", metavar="SERVER", help="HOST[:PORT], dserver://HOST[:PORT] or https://..."
    )
    parser.epilog = example("dserverfs logout data.example.org")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.remote import login
    from dserverfs.settings import Settings

    settings, server = Settings.load(), server_of(arguments.server)
    path = settings.kept_token_file(server)
    was_there = login.forget(path)
    login.forget(settings.kept_address_file(server))
    say(f"{path} is deleted" if was_there else f"no token is kept for {server}")
    setting = settings.token(server)
    if setting is not None:
        say(f"dserverfs: {setting.name} is set, and still has a token", file=sys.stderr)
    return 0
