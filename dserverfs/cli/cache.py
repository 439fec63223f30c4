"""`dserverfs cache`: shows, empties or checks the cache of items."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dserverfs.cli.arguments import Commands

if TYPE_CHECKING:
    from dserverfs.reading.cache.block_cache import BlockCache

EXIT_DAMAGED = 1


def add(commands: Commands) -> None:
    parser = commands.add_parser("cache", help="show, empty or check the cache")
    parser.description = "Show, empty or check the cache of items, also while mounts use it."
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, run, text in (
        ("info", _info, "show its size, its limit and its number of items"),
        ("clear", _clear, "delete all blocks of items; mounts stay usable"),
        ("verify", _verify, "read every block, and delete damaged ones"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--cache-dir", type=Path, metavar="DIR", help="default: as for mount")
        action.add_argument("--json", action="store_true", help="as JSON")
        action.set_defaults(command=run)


def _info(arguments: argparse.Namespace) -> int:
    from dserverfs.cli.progress import size
    from dserverfs.reading.cache import maintenance

    with _cache(arguments) as cache:
        facts = maintenance.facts(cache)
    if arguments.json:
        print(json.dumps(facts._asdict(), indent=2))
        return 0
    print(f"directory: {facts.directory}")
    print(f"size: {size(facts.size_in_bytes)} of at most {size(facts.limit_in_bytes)}")
    print(f"blocks: {facts.blocks}")
    print(f"items: {facts.items}, of which {facts.verified_items} whole and verified")
    return 0


def _clear(arguments: argparse.Namespace) -> int:
    from dserverfs.cli.progress import size
    from dserverfs.reading.cache import maintenance

    with _cache(arguments) as cache:
        before = maintenance.clear(cache)
    if arguments.json:
        print(json.dumps(before._asdict(), indent=2))
    else:
        print(
            f"forgot {before.blocks} blocks of {before.items} items, {size(before.size_in_bytes)}"
        )
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from dserverfs.cli.progress import ProgressLine, size
    from dserverfs.reading.cache import maintenance

    with _cache(arguments) as cache, ProgressLine() as line:
        result = maintenance.check(
            cache, lambda done, total: line.show(f"{done} of {total} blocks")
        )
    if arguments.json:
        print(json.dumps(result._asdict(), indent=2))
    else:
        print(
            f"read {result.blocks} blocks, {size(result.size_in_bytes)}; dropped"
            f" {result.damaged} damaged and {result.missing} missing ones,"
            f" {result.outdated} of other versions, and {result.orphaned} files of no block"
        )
    return EXIT_DAMAGED if result.damaged else 0


@contextlib.contextmanager
def _cache(arguments: argparse.Namespace) -> Iterator[BlockCache]:
    from dserverfs.base.directories import local_directory
    from dserverfs.reading.cache import maintenance
    from dserverfs.settings import Settings

    directory = arguments.cache_dir or Settings.load().cache_directory()
    cache = maintenance.at(local_directory(directory.absolute()))
    cache.open()
    try:
        yield cache
    finally:
        cache.close()
