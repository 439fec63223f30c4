"""`dserverfs cache`: shows, empties, checks or tests the cache of items."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dserverfs.base.printable import counted
from dserverfs.cli.arguments import Commands, example, sentence

if TYPE_CHECKING:
    from dserverfs.reading.cache.block_cache import BlockCache

EXIT_DAMAGED = 1


def add(commands: Commands) -> None:
    parser = commands.add_parser("cache", help="show, empty or check the cache")
    parser.description = "Show, empty or check the cache of items, also while mounts use it."
    parser.epilog = example("dserverfs cache info")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, run, text in (
        ("info", _info, "show its size, its limit and its number of items"),
        ("clear", _clear, "delete all blocks that are not pinned; mounts stay usable"),
        ("verify", _verify, "read every block, and delete damaged ones"),
    ):
        action = actions.add_parser(name, help=text, description=sentence(text))
        action.add_argument("--cache-dir", type=Path, metavar="DIR", help="default: as for mount")
        action.add_argument("--json", action="store_true", help="as JSON")
        action.set_defaults(command=run)
        if name == "clear":
            action.add_argument("--pinned", action="store_true", help="unpin all before")
    _add_corrupt(actions)


def _add_corrupt(actions: Commands) -> None:
    text = "prove that damage is found, in a cache that is made for it and deleted afterwards"
    action = actions.add_parser("corrupt", help=text)
    action.description = (
        "Fill a new cache from a dataset, damage its files, read all of it, and compare: again and"
        " again. The cache that mounts use is left alone. The status is 1 if anything was"
        " read wrongly, or the cache is not in use again in the end."
    )
    action.add_argument("uri", metavar="dserver://URI", help="a small dataset is enough")
    action.add_argument(
        "--seed", type=int, metavar="N", help="decides what is damaged; default: another each time"
    )
    action.add_argument(
        "--rounds", type=_rounds, metavar="N", default=20, help="how often (default: 20)"
    )
    action.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="the new cache is made below it"
    )
    action.set_defaults(command=_corrupt)


def _rounds(text: str) -> int:
    rounds = int(text) if text.isascii() and text.isdecimal() else 0
    if not rounds:  # nothing would be damaged, and nothing found
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rounds")
    return rounds


def _corrupt(arguments: argparse.Namespace) -> int:
    import logging
    import random
    import tempfile

    from dserverfs.base.directories import local_directory, private_directory
    from dserverfs.base.model import DserverURI
    from dserverfs.cli import cache_self_test
    from dserverfs.cli.progress import ProgressLine, size
    from dserverfs.settings import Settings

    uri = DserverURI.parse(arguments.uri)
    seed = arguments.seed if arguments.seed is not None else random.randrange(10**6)
    wanted = arguments.cache_dir or Settings.load().cache_directory()
    parent = private_directory(local_directory(wanted.absolute()))
    logging.disable(logging.ERROR)  # the damage is ours, and told in one line
    with (
        tempfile.TemporaryDirectory(prefix="self-test-", dir=parent) as own,
        ProgressLine() as line,
    ):
        result = cache_self_test.run(
            uri,
            Path(own),
            seed=seed,
            rounds=arguments.rounds,
            progress=lambda done: line.count("damaging", done, arguments.rounds, "round"),
        )
    print(
        f"seed {seed}: {counted(arguments.rounds, 'round')} on {counted(result.items, 'item')},"
        f" {size(result.size_in_bytes)}; damaged "
        + ", ".join(f"{count} {kind}" for kind, count in sorted(result.damaged.items()))
    )
    for wrong in result.wrong:
        print(f"wrong in {wrong}")
    if not result.is_in_use:
        print("the cache does not hold all of it again")
    if result.wrong or not result.is_in_use:
        return EXIT_DAMAGED
    print("nothing wrong was read, and the cache is in use again")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from dserverfs.cli.progress import size
    from dserverfs.reading.cache import maintenance

    with opened(arguments.cache_dir) as cache:
        facts = maintenance.facts(cache)
    if arguments.json:
        print(json.dumps(facts._asdict(), indent=2))
        return 0
    print(f"directory: {facts.directory}")
    print(f"size: {size(facts.size_in_bytes)} of at most {size(facts.limit_in_bytes)}")
    print(f"blocks: {facts.blocks}")
    print(f"items: {facts.items}, of which {facts.verified_items} whole and verified")
    if facts.pinned_in_bytes:
        print(f"pinned: {size(facts.pinned_in_bytes)}; dserverfs pin --list says what")
    return 0


def _clear(arguments: argparse.Namespace) -> int:
    from dserverfs.cli.progress import size
    from dserverfs.reading.cache import maintenance, pinning

    with opened(arguments.cache_dir) as cache:
        if arguments.pinned:
            pinning.forget(cache)
        before = maintenance.clear(cache)
        left = maintenance.facts(cache)
    if arguments.json:
        print(json.dumps(before._asdict(), indent=2))
        return 0
    print(
        f"forgot {counted(before.blocks - left.blocks, 'block')}"
        f" of {counted(before.items - left.items, 'item')},"
        f" {size(before.size_in_bytes - left.size_in_bytes)}"
    )
    if left.blocks:
        print(
            f"kept, as pinned: {counted(left.items, 'item')}, {size(left.size_in_bytes)}; cache"
            " clear --pinned forgets what is pinned as well"
        )
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from dserverfs.cli.progress import ProgressLine, size
    from dserverfs.reading.cache import maintenance

    with opened(arguments.cache_dir) as cache, ProgressLine() as line:
        result = maintenance.check(
            cache, lambda done, total: line.count("reading", done, total, "block")
        )
    if arguments.json:
        print(json.dumps(result._asdict(), indent=2))
    else:
        print(
            f"read {counted(result.blocks, 'block')}, {size(result.size_in_bytes)}; dropped"
            f" {result.damaged} damaged and {result.missing} missing ones,"
            f" {result.outdated} of other versions, and"
            f" {counted(result.orphaned, 'file')} of no block"
        )
    return EXIT_DAMAGED if result.damaged else 0


@contextlib.contextmanager
def opened(directory: Path | None) -> Iterator[BlockCache]:
    """Yield the cache in a directory; without one, that of mounts. UsageError if there is none."""
    from dserverfs.base.directories import local_directory
    from dserverfs.base.errors import UsageError
    from dserverfs.reading.cache import maintenance
    from dserverfs.settings import Settings

    found = local_directory((directory or Settings.load().cache_directory()).absolute())
    cache = maintenance.at(found)
    if directory is not None and not cache.directory.exists():
        raise UsageError(f"--cache-dir {found}: there is no cache in it")
    cache.open()
    try:
        yield cache
    finally:
        cache.close()
