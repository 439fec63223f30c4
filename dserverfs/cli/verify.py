"""`dserverfs verify`: whether content is what the manifests say."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dserverfs.cli.arguments import Commands

if TYPE_CHECKING:
    from dserverfs.cli.whole_items import Tally


def add(commands: Commands) -> None:
    parser = commands.add_parser("verify", help="read content and compare it with the manifest")
    parser.description = (
        "Read every byte and compare it with the manifest: of a dataset, a base URI or all there"
        " is on a server, past the cache; or of a dataset in a directory, on a disk or in a"
        " mount, or of what is at or below a PATH in one. Prints a line for each item that is"
        " not right, and exits with 1 if there is one."
    )
    parser.add_argument(
        "targets", metavar="PATH | dserver://URI", nargs="+", help="several may be given"
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.cli.whole_items import EXIT_FAILED, Tally, is_uri

    tally = Tally()
    for target in arguments.targets:
        if is_uri(target):
            _verify_uri(target, tally)
        else:
            _verify_path(Path(target), tally)
    print(tally.summary("as the manifest says", "are not as the manifest says"))
    return EXIT_FAILED if tally.failed else 0


def _verify_uri(target: str, tally: Tally) -> None:
    from dserverfs.cli import whole_datasets
    from dserverfs.cli.whole_items import client_of

    client, uri = client_of(target, None)
    with client:
        tally.run(
            whole_datasets.items_of(client, uri),
            lambda item: whole_datasets.compare(client, item),
            lambda item: item.name,
            lambda item: item.content.size_in_bytes,
        )


def _verify_path(path: Path, tally: Tally) -> None:
    from dserverfs.cli import local_check

    tally.run(
        local_check.items_of(path),
        local_check.compare,
        lambda local: local.name,
        lambda local: local.item.size_in_bytes if local.item else 0,
    )
