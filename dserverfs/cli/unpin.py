"""`dserverfs unpin`: lets items be evicted again that were pinned."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dserverfs.base.printable import counted
from dserverfs.cli.arguments import Commands, example, say

if TYPE_CHECKING:
    from dserverfs.base.model import DserverURI


def add(commands: Commands) -> None:
    parser = commands.add_parser("unpin", help="let items be evicted again that were pinned")
    parser.description = (
        "Strike the items of a URI, or at or below a PATH in a mount, out of what is pinned. They"
        " stay in the cache until it needs the room. A URI needs no server."
    )
    parser.add_argument(
        "targets", metavar="PATH | dserver://URI", nargs="*", help="several may be given"
    )
    parser.add_argument("--all", action="store_true", help="all that is pinned in the cache")
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="for URIs; default: as for mount"
    )
    parser.epilog = example("dserverfs unpin ~/lab/my-dataset", "dserverfs unpin --all")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.base.errors import UsageError
    from dserverfs.base.model import DserverURI
    from dserverfs.cli.item_globs import ItemGlobs
    from dserverfs.cli.remote_items import is_uri
    from dserverfs.cli.targets import PathTarget
    from dserverfs.cli.whole_items import EXIT_FAILED, Summary

    if bool(arguments.targets) == arguments.all:
        raise UsageError("name what is to be unpinned, or --all; pin --list says what there is")
    unpinned, summary = 0, Summary()
    uris = [DserverURI.parse(target) for target in arguments.targets if is_uri(target)]
    if uris or arguments.all:
        unpinned += _unpin(arguments.cache_dir, None if arguments.all else uris)
    for target in arguments.targets:
        if not is_uri(target):
            unpinned += PathTarget(Path(target), ItemGlobs([]), summary).unpin()
    if not unpinned and not summary.failed:
        raise UsageError("nothing of that is pinned; pin --list says what is")
    say(f"unpinned: {counted(unpinned, 'item')}")
    return EXIT_FAILED if summary.failed else 0


def _unpin(cache_directory: Path | None, uris: list[DserverURI] | None) -> int:
    """Unpin the datasets of these URIs, all without; return how many items that are."""
    from dserverfs.base.model import DserverURI
    from dserverfs.cli.cache import opened
    from dserverfs.reading.cache import pinning

    with opened(cache_directory) as cache:
        unpinned = 0
        for dataset in cache.pins.datasets():
            pinned = DserverURI.parse(dataset.uri)
            if uris is None or any(_has(uri, pinned) for uri in uris):
                unpinned += cache.pins.remove_dataset(dataset.uri)
        pinning.release(cache)
    return unpinned


def _has(uri: DserverURI, dataset: DserverURI) -> bool:
    """Return whether a URI names a dataset, or a base URI or server that has it."""
    from dserverfs.base.model import is_below

    return (
        uri.server == dataset.server
        and uri.uuid in (None, dataset.uuid)
        and is_below(dataset.base_uri or "", uri.base_uri)
    )
