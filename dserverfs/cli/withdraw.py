"""`dserverfs withdraw`: takes a dataset out of its server's catalogue."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dserverfs.cli.arguments import Commands, example, has_terminal, say, says_yes

if TYPE_CHECKING:
    from dserverfs.base.model import Dataset
    from dserverfs.client import Client

EXIT_KEPT = 1


def add(commands: Commands) -> None:
    parser = commands.add_parser("withdraw", help="take a dataset out of its server's catalogue")
    parser.description = (
        "Take a frozen dataset out of its server's catalogue, after which nobody finds or reads it"
        " by that server. What the store has of it stays there. Shows what refers to it, and asks"
        " first. Needs the right to register."
    )
    parser.add_argument(
        "dataset", metavar="PATH | dserver://URI", help="a dataset; a path in a mount"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.epilog = example("dserverfs withdraw ~/lab/my-results")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.base.errors import UsageError
    from dserverfs.cli.remote_items import client_of, uri_of

    uri = uri_of(arguments.dataset)
    with client_of(uri, None) as client:
        dataset = client.catalogue.check(uri)
        if dataset is None:
            raise UsageError(f"{uri}: is not one dataset")
        name = f"{client.catalogue.uri_of(dataset)} ({dataset.name})"
        for other in _others(client, dataset):
            say(other)
        if not arguments.yes:
            if not has_terminal():
                raise UsageError(f"{name}: is not withdrawn without --yes: nobody can be asked")
            if not says_yes(f"Withdraw {name}?"):
                say("nothing was withdrawn")
                return EXIT_KEPT
        client.metadata_writes.withdraw(dataset)
    say(f"withdrawn: {name}; what is stored of it stays in {dataset.uri}")
    return 0


def _others(client: Client, dataset: Dataset) -> Iterator[str]:
    """Yield a line for each dataset that has the same uuid, or names it in its metadata."""
    from dserverfs.base.conditions import Conditions
    from dserverfs.base.model import DserverURI

    everywhere = DserverURI(client.catalogue.uri_of(dataset).server)
    findings = client.catalogue.finder.find(everywhere, Conditions(texts=(f'"{dataset.uuid}"',)))
    for found in findings.found:
        other = found.dataset
        name = f"{client.catalogue.uri_of(other)} ({other.name})"
        if other.uuid != dataset.uuid:
            yield f"refers to it: {name}"
        elif other.uri != dataset.uri:
            yield f"has the same uuid, and stays: {name}"
    for other, error in findings.failed:
        yield f"cannot be looked into: {other.uri}: {error}"
