"""`dserverfs pin`: fetches items into the cache and keeps them there."""

from __future__ import annotations

import argparse
import json

from dserverfs.base.printable import counted
from dserverfs.cli import warm
from dserverfs.cli.arguments import Commands, example, say


def add(commands: Commands) -> None:
    parser = commands.add_parser("pin", help="fetch datasets into the cache, and keep them there")
    parser.description = (
        "Do as warm, and keep the items from eviction until unpin, for all mounts and commands"
        " that use this cache. Up to 80 % of the cache's size can be pinned."
    )
    warm.add_arguments(parser)
    parser.add_argument("--list", action="store_true", help="say what is pinned")
    parser.add_argument("--json", action="store_true", help="with --list: as JSON")
    parser.epilog = example(
        "dserverfs pin ~/lab/my-dataset", "dserverfs pin --list", "dserverfs unpin ~/lab/my-dataset"
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.cli import fetching
    from dserverfs.cli.whole_items import Summary

    if arguments.list:
        return _list(arguments)
    summary = Summary()
    with warm.targets(arguments, summary) as found:
        if arguments.dry_run:
            return fetching.tell(found, summary, fetching.refusal_to_pin)
        return fetching.pin(found, summary)


def _list(arguments: argparse.Namespace) -> int:
    from dserverfs.cli.cache import opened
    from dserverfs.cli.progress import size
    from dserverfs.reading.cache import pinning

    with opened(arguments.cache_dir) as cache:
        found = [
            {
                **dataset._asdict(),
                "items_here": sum(
                    pinning.is_here(cache, item) for item in cache.pins.items(dataset.uri)
                ),
            }
            for dataset in cache.pins.datasets()
        ]
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    for each in found:
        here = "all here"
        if each["items_here"] < each["items"]:
            here = f"{each['items_here']} of them here"
        say(
            f"{size(each['size_in_bytes']):>10}  {each['name']}: {counted(each['items'], 'item')},"
            f" {here}: {each['uri']}"
        )
    if not found:
        say("nothing is pinned")
    return 0
