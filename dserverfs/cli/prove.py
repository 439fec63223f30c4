"""`dserverfs prove`: compares whole datasets with their manifests, and adds their block hashes."""

from __future__ import annotations

import argparse
import contextlib

from dserverfs.cli.arguments import Commands, example


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "prove", help="compare whole datasets, and let all readers compare parts of them"
    )
    parser.description = (
        "Read every byte of a dataset from the store and compare it with the manifest. If all of"
        " it is right, and you may register there, add the hashes of its blocks, by which every"
        " later reader compares each part that it reads. Prints a line for each dataset, and"
        " exits with 1 if one is wrong."
    )
    parser.add_argument(
        "targets", metavar="PATH | dserver://URI", nargs="+", help="several may be given"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="every dataset of a base URI or server that has no block hashes yet",
    )
    parser.epilog = example(
        "dserverfs prove ~/lab/my-dataset",
        "dserverfs prove --all dserver://data.example.org/s3/lab",
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.cli import proofs
    from dserverfs.cli.remote_items import client_of, uri_of
    from dserverfs.cli.whole_items import EXIT_FAILED

    summary = proofs.Summary()
    with contextlib.ExitStack() as stack:
        for target in arguments.targets:
            uri = uri_of(target)
            client = stack.enter_context(client_of(uri, None))
            if arguments.all:
                proofs.prove_all(client, uri, summary)
            else:
                proofs.prove_one(client, uri, summary)
    if arguments.all or len(arguments.targets) > 1:
        print(summary.text())
    return EXIT_FAILED if summary.wrong else 0
