"""`dserverfs serve`: runs a dserver with its own S3 store on this machine."""

from __future__ import annotations

import argparse

from dserverfs.cli import serve_management
from dserverfs.cli.arguments import Commands, example, missing_extra


def add(commands: Commands) -> None:
    command = commands.add_parser("serve", help="run a dserver with its own S3 store here")
    command.description = (
        "Run a dserver with its own S3 store on this machine, until SIGINT or SIGTERM."
        " Prints its URL, its base URI and the path of a token file when it is ready."
        " With ACTION: manage its users, their rights and its base URIs, also while it runs."
    )
    command.add_argument(
        "--data",
        metavar="DIR",
        help="directory for all data (default: $XDG_DATA_HOME/dserverfs/server)",
    )
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    command.add_argument(
        "--port", type=int, default=5000, help="0 takes any free one (default: %(default)s)"
    )
    command.add_argument(
        "--bucket",
        metavar="NAME",
        default="datasets",
        help="bucket of the base URI s3://NAME (default: %(default)s);"
        " on another S3 server if DTOOL_S3_ENDPOINT_NAME is set",
    )
    command.add_argument(
        "--database",
        metavar="URL",
        help="keep users and datasets in a PostgreSQL, postgresql://USER@HOST/NAME, and not in"
        " the data directory's SQLite (default: that of the last run); no password: it would be"
        " seen, ~/.pgpass and DSERVER_DATABASE may have it",
    )
    command.epilog = example("dserverfs serve --port 5000", "dserverfs serve user add alice")
    command.set_defaults(command=_run)
    serve_management.add(command.add_subparsers(metavar="ACTION"))


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.base import core_dumps
    from dserverfs.settings import Settings, current

    if not Settings.load().allows_core_dumps():
        core_dumps.forbid()
    try:
        from dserverfs.server.serve import ServeOptions, named_database, serve
        from dserverfs.server.store.settings import DATABASE, ServerSettings

        data = serve_management.data_directory(arguments.data)
        options = ServeOptions(data, arguments.host, arguments.port, arguments.bucket)
        named = {} if arguments.database is None else {DATABASE: named_database(arguments.database)}
        return serve(options, ServerSettings(lambda key: named.get(key) or current(key)))
    except ModuleNotFoundError as error:
        raise missing_extra("server", error) from error
