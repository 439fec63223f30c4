"""`dserverfs warm`: fetches whole items into the cache."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dserverfs.cli.arguments import Commands, example, size

if TYPE_CHECKING:
    from dserverfs.cli.fetching import Target
    from dserverfs.cli.whole_items import Summary


def add(commands: Commands) -> None:
    parser = commands.add_parser("warm", help="fetch whole datasets into the cache")
    parser.description = (
        "Fetch every item of a dataset or of a base URI into the cache and compare it with the"
        " manifest; or read every file at or below a PATH in a mount, which does the same to"
        " that mount's cache. Says first how much is to be fetched, and fetches nothing that"
        " does not fit. Exits with 1 unless all of it is in the cache at the end."
    )
    add_arguments(parser)
    parser.add_argument(
        "--plan", type=Path, metavar="FILE", help="the bytes that dserverfs trace has recorded"
    )
    parser.epilog = example(
        "dserverfs warm ~/lab/my-dataset",
        "dserverfs warm dserver://data.example.org/s3/lab --include '*.csv'",
    )
    parser.set_defaults(command=_run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which items are meant, in which cache."""
    parser.add_argument(
        "targets", metavar="PATH | dserver://URI", nargs="*", help="several may be given"
    )
    parser.add_argument(
        "--from",
        dest="lists",
        metavar="FILE",
        action="append",
        default=[],
        help="a PATH or URI a line; - is standard input",
    )
    parser.add_argument(
        "--include",
        metavar="GLOB",
        action="append",
        default=[],
        help="only items with such a path, as '*.csv' or 'raw/**/*.tif'; several may be given",
    )
    parser.add_argument(
        "-n", "--dry-run", action="store_true", help="only say what would be fetched"
    )
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="for URIs; default: as for mount"
    )
    parser.add_argument(
        "--cache-size",
        type=size,
        metavar="SIZE",
        help="for URIs: what the cache may take up from now on, such as 20G",
    )


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.cli import fetching
    from dserverfs.cli.whole_items import Summary

    summary = Summary()
    with targets(arguments, summary, arguments.plan) as found:
        if arguments.dry_run:
            return fetching.tell(found, summary, fetching.refusal)
        return fetching.warm(found, summary)


@contextlib.contextmanager
def targets(
    arguments: argparse.Namespace, summary: Summary, plan: Path | None = None
) -> Iterator[list[Target]]:
    """Yield the targets of a command; raises UsageError if there are none.

    And at the end, if nothing is as --include says.
    """
    from dserverfs.base.disk_space import AS_IT_IS
    from dserverfs.base.errors import UsageError
    from dserverfs.base.model import DserverURI
    from dserverfs.cli import plans
    from dserverfs.cli.item_globs import ItemGlobs
    from dserverfs.cli.remote_items import client_of, is_uri
    from dserverfs.cli.targets import PathTarget, PlanTarget, UriTarget

    named = [*arguments.targets, *(line for name in arguments.lists for line in _lines(name))]
    wishes = {} if plan is None else plans.read(plan)
    if not named and plan is None:
        raise UsageError("name what is meant: a PATH in a mount, or a URI dserver://...")
    chosen = ItemGlobs(arguments.include)
    cache_size = AS_IT_IS if arguments.cache_size is None else arguments.cache_size
    uris = [DserverURI.parse(target) for target in dict.fromkeys(named) if is_uri(target)]
    found: list[Target] = [
        PathTarget(Path(target), chosen, summary)
        for target in dict.fromkeys(named)
        if not is_uri(target)
    ]
    with contextlib.ExitStack() as stack:
        for server in dict.fromkeys(uri.server for uri in [*uris, *wishes]):
            client = client_of(DserverURI(server), arguments.cache_dir, cache_size)
            stack.enter_context(client)
            # One may be in another.
            datasets = {
                dataset.uri: dataset
                for uri in uris
                if uri.server == server
                for dataset in client.catalogue.datasets_below(uri)
            }
            if datasets:
                below = [*datasets.values()]
                found.append(UriTarget(client, server, below, chosen, summary))
            if wishes:
                found.append(PlanTarget(client, server, wishes, summary))
        yield found
    chosen.require_matches()


def _lines(name: str) -> list[str]:
    """Return the lines of a list that are not empty."""
    from dserverfs.base.errors import UsageError

    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"--from {name}: cannot be read: {error.strerror}") from error
    return [os.fsdecode(line) for line in content.split(b"\n") if line.strip()]
