"""`dserverfs serve`: runs a dserver with its own S3 store on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dserverfs.cli import serve_management
from dserverfs.cli.arguments import Commands, example, missing_extra

if TYPE_CHECKING:
    from dserverfs.server.addresses import Addresses


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
    _add_addresses(command)
    command.add_argument(
        "--bucket",
        metavar="NAME",
        default="datasets",
        help="bucket of the base URI s3://NAME (default: %(default)s);"
        " on another S3 server if DTOOL_S3_ENDPOINT_NAME is set",
    )
    command.add_argument(
        "--access-log",
        metavar="FILE",
        help="log each request, as a line of JSON; -: to standard output"
        " (default: DSERVER_ACCESS_LOG, else none)",
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


def _add_addresses(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    command.add_argument(
        "--port", type=int, default=5000, help="0 takes any free one (default: %(default)s)"
    )
    command.add_argument(
        "--public-url",
        metavar="URL",
        help="what clients reach the server by, https://NAME[:PORT] (default: host and port)",
    )
    command.add_argument(
        "--store-host",
        metavar="ADDRESS",
        help="have the store listen there, for other machines (default: on 127.0.0.1 alone)",
    )
    command.add_argument(
        "--store-port",
        type=int,
        metavar="PORT",
        help="port of the store (default: 8333 with --store-host, else a free one)",
    )
    command.add_argument(
        "--store-url",
        metavar="URL",
        help="what signed URLs name, https://NAME[:PORT] (default: where the store listens)",
    )
    command.add_argument(
        "--tls-cert",
        type=Path,
        metavar="FILE",
        help="PEM certificate, with which server and store speak https; read again if it changes",
    )
    command.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM key of --tls-cert")
    command.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a proxy, or a network of them, whose X-Forwarded-For counts; may be repeated",
    )
    command.add_argument(
        "--insecure",
        action="store_true",
        help="let passwords, tokens and data cross a network unencrypted",
    )


def _addresses(arguments: argparse.Namespace) -> Addresses:
    from dserverfs.server.addresses import Addresses, tls_files

    return Addresses(
        host=arguments.host,
        port=arguments.port,
        public_url=arguments.public_url,
        store_host=arguments.store_host,
        store_port=arguments.store_port,
        store_url=arguments.store_url,
        tls=tls_files(arguments.tls_cert, arguments.tls_key),
        is_insecure=arguments.insecure,
    )


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.base import core_dumps
    from dserverfs.settings import ACCESS_LOG, Settings, current

    if not Settings.load().allows_core_dumps():
        core_dumps.forbid()
    try:
        from dserverfs.server.serve import ServeOptions, named_database, serve
        from dserverfs.server.store.settings import DATABASE, ServerSettings

        options = ServeOptions(
            serve_management.data_directory(arguments.data),
            arguments.bucket,
            _addresses(arguments),
            arguments.trusted_proxy,
        )
        named = {ACCESS_LOG: arguments.access_log}
        if arguments.database is not None:
            named[DATABASE] = named_database(arguments.database)
        return serve(options, ServerSettings(lambda key: named.get(key) or current(key)))
    except ModuleNotFoundError as error:
        raise missing_extra("server", error) from error
