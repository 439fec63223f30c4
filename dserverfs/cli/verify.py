"""`dserverfs verify`: compares content with the manifests."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dserverfs.cli.arguments import Commands, example

if TYPE_CHECKING:
    from dserverfs.cli.whole_items import Summary


def add(commands: Commands) -> None:
    parser = commands.add_parser("verify", help="read content and compare it with the manifest")
    parser.description = (
        "Read every byte of the targets and compare it with the manifest. A URI names a dataset,"
        " a base URI or a whole server, which is read past the cache. A PATH is a dataset on a"
        " disk or in a mount, a file or directory in one, or a directory with datasets below it."
        " Prints a line for each wrong item, and exits with 1 if there is one."
    )
    parser.add_argument(
        "targets", metavar="PATH | dserver://URI", nargs="+", help="several may be given"
    )
    parser.epilog = example(
        "dserverfs verify ~/lab/my-dataset",
        "dserverfs verify dserver://data.example.org/s3/lab",
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.cli.remote_items import is_uri
    from dserverfs.cli.whole_items import EXIT_FAILED, Summary

    summary = Summary()
    for target in arguments.targets:
        if is_uri(target):
            _verify_uri(target, summary)
        else:
            _verify_path(Path(target), summary)
    print(summary.text("as the manifest says", "are not as the manifest says"))
    return EXIT_FAILED if summary.failed else 0


def _verify_uri(target: str, summary: Summary) -> None:
    from dserverfs.base.model import DserverURI
    from dserverfs.cli import remote_items

    uri = DserverURI.parse(target)
    with remote_items.client_of(uri, None) as client:
        datasets = client.catalogue.datasets_below(uri)
        items = remote_items.items_of(client, datasets)
        summary.run(
            "verifying",
            remote_items.to_be_compared(client, items),
            partial(remote_items.totals_of, datasets),
        )


def _verify_path(path: Path, summary: Summary) -> None:
    from dserverfs.cli import local_items

    items = map(local_items.to_be_compared, local_items.items_of(path))
    summary.run("verifying", items, partial(local_items.totals_of, path))
