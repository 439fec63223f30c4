"""`dserverfs serve ACTION`: the table of an operator's actions.

`user add` is carried out by the function `user_add` of `server_actions`, which is imported
when an action is run.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.cli.arguments import Commands, missing_extra, sentence


class Argument(NamedTuple):
    name: str
    options: dict[str, Any]


def _argument(name: str, **options: Any) -> Argument:
    return Argument(name, options)


def _flag(name: str, text: str) -> Argument:
    return _argument(name, action="store_true", help=text)


_NAME = _argument("name", metavar="NAME", help="the user")
_BASE_URI = _argument("base_uri", metavar="s3://NAME", help="the base URI: a bucket")
_RIGHTS = (
    _flag("--search", "list and read datasets"),
    _flag("--register", "make and change datasets"),
)
_DAYS = _argument(
    "--days", type=int, default=30, metavar="N", help="how long it is good (default: %(default)s)"
)
_OUTPUT = _argument(
    "--output", type=Path, metavar="FILE", help="write the token there, for its owner only"
)


class Action(NamedTuple):
    words: str
    help: str
    arguments: tuple[Argument, ...] = ()


# In the order in which help lists them; an action of two words is listed below its first.
GROUPS = {
    "user": "add, remove or list users, set a password",
    "base-uri": "add, list or remove base URIs",
    "permission": "grant, revoke or list rights",
}
ACTIONS = (
    Action(
        "user add",
        "add a user, without password or rights",
        (_NAME, _flag("--admin", "may manage users over the network")),
    ),
    Action("user remove", "remove a user with all rights", (_NAME,)),
    Action("user list", "list users"),
    Action("user password", "set a password: typed, or read from standard input", (_NAME,)),
    Action("user revoke-tokens", "end all tokens a user has", (_NAME,)),
    Action("token", "make a token for a user", (_NAME, _DAYS, _OUTPUT)),
    Action("base-uri add", "add a base URI, with a bucket of its own", (_BASE_URI,)),
    Action("base-uri list", "list base URIs"),
    Action("base-uri remove", "remove a base URI that has no datasets", (_BASE_URI,)),
    Action("permission grant", "grant a user's rights on a base URI", (_NAME, _BASE_URI, *_RIGHTS)),
    Action(
        "permission revoke", "revoke a user's rights on a base URI", (_NAME, _BASE_URI, *_RIGHTS)
    ),
    Action("permission list", "list each user's rights on each base URI"),
    Action("credentials", "show endpoint and keys for S3 clients of a running server"),
    Action("s3", "the same as credentials"),
    Action("index", "register the datasets that are in a bucket", (_BASE_URI,)),
    Action(
        "migrate",
        "copy a bucket of the embedded store to the S3 server that DTOOL_S3_ENDPOINT_NAME names",
        (
            _BASE_URI,
            _flag("--dry-run", "say what is to be copied, and copy nothing"),
            _flag("--verify", "compare what is there with what is here, and copy nothing"),
        ),
    ),
    Action(
        "copy-database",
        "copy users, rights and datasets of a server that is stopped from SQLite to PostgreSQL",
        (
            _argument(
                "--database",
                dest="target",
                metavar="URL",
                help="where to, postgresql://USER@HOST/NAME, an empty one (default:"
                " DSERVER_DATABASE)",
            ),
        ),
    ),
)


def add(commands: Commands) -> None:
    groups: dict[str, Commands] = {}
    for action in ACTIONS:
        group, _, name = action.words.rpartition(" ")
        if group and group not in groups:
            parser = commands.add_parser(
                group, help=GROUPS[group], description=sentence(GROUPS[group])
            )
            groups[group] = parser.add_subparsers(metavar="ACTION", required=True)
        parser = groups.get(group, commands).add_parser(
            name, help=action.help, description=sentence(action.help)
        )
        for argument in action.arguments:
            parser.add_argument(argument.name, **argument.options)
        # No default: it would replace what was given before the action.
        parser.add_argument(
            "--data", metavar="DIR", default=argparse.SUPPRESS, help="data directory of the server"
        )
        parser.set_defaults(command=partial(_run, action))


def data_directory(given: str | None) -> Path:
    """Return the directory of `--data`, or the default."""
    from dserverfs.settings import Settings

    return Settings.load().server_directory() if given is None else Path(given).absolute()


def _run(action: Action, arguments: argparse.Namespace) -> int:
    from dserverfs.settings import current

    try:
        from dserverfs.cli import server_actions
    except ModuleNotFoundError as error:
        raise missing_extra("server", error) from error
    return server_actions.run(action.words, data_directory(arguments.data), current, arguments)
