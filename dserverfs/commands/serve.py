"""`dserverfs serve`: a dserver with its own S3 store on this machine."""

from __future__ import annotations

import argparse

from dserverfs.commands.common import Commands, missing_extra


def add(commands: Commands) -> None:
    command = commands.add_parser("serve", help="run a dserver with its own S3 store here")
    command.description = (
        "Run a dserver with its own S3 store on this machine, until SIGINT or SIGTERM."
        " Prints its URL, its base URI and the path of a token file when it is ready."
    )
    command.add_argument(
        "--data",
        metavar="DIR",
        help="where everything is kept (default: $XDG_DATA_HOME/dserverfs/server)",
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
        help="bucket of the base URI s3://NAME (default: %(default)s)",
    )
    command.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        from dserverfs.server.serve import ServeOptions, serve

        return serve(
            ServeOptions.from_arguments(
                data=arguments.data,
                host=arguments.host,
                port=arguments.port,
                bucket=arguments.bucket,
            )
        )
    except ModuleNotFoundError as error:
        raise missing_extra("server", error) from error
