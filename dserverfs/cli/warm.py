"""`dserverfs warm`: fetches whole items into the cache."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dserverfs.cli.arguments import Commands, example, say

if TYPE_CHECKING:
    from dserverfs.base.model import Dataset, DserverURI
    from dserverfs.cli.whole_items import Summary
    from dserverfs.client import Client

FILES_AT_A_TIME = 500  # that a mount is asked about


def add(commands: Commands) -> None:
    parser = commands.add_parser("warm", help="fetch whole datasets into the cache")
    parser.description = (
        "Fetch every item of a dataset or of a base URI into the cache and compare it with the"
        " manifest; or read every file at or below a PATH in a mount, which does the same to"
        " that mount's cache. Exits with 1 unless all of it is in the cache at the end."
    )
    parser.add_argument(
        "targets", metavar="PATH | dserver://URI", nargs="+", help="several may be given"
    )
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="for URIs; default: as for mount"
    )
    parser.epilog = example(
        "dserverfs warm ~/lab/my-dataset",
        "dserverfs warm dserver://data.example.org/s3/lab",
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.base.model import DserverURI
    from dserverfs.cli.remote_items import client_of, is_uri
    from dserverfs.cli.whole_items import EXIT_FAILED, Summary

    summary = Summary()
    # How much of each target the cache does not hold, asked when all were fetched: the
    # last may have taken the place of the first.
    missing: list[Callable[[], int]] = []
    with contextlib.ExitStack() as stack:
        for target in arguments.targets:
            if is_uri(target):
                uri = DserverURI.parse(target)
                client = stack.enter_context(client_of(uri, arguments.cache_dir))
                missing.append(_warm_uri(client, uri, summary))
            else:
                missing.append(_warm_path(Path(target), summary))
        left_out = sum(count() for count in missing)
    if summary.failed or not left_out:
        print(summary.text("in the cache", "could not be read"))
    if left_out:
        say(
            f"{left_out} of {summary.items} items are not in the cache, which has no room for them,"
            " or cannot be written; see dserverfs cache info, and mount --cache-size"
        )
    return EXIT_FAILED if summary.failed or left_out else 0


def _warm_uri(client: Client, uri: DserverURI, summary: Summary) -> Callable[[], int]:
    from dserverfs.cli import remote_items

    datasets: list[Dataset] = client.catalogue.datasets_below(uri)
    items = remote_items.items_of(client, datasets)
    summary.run(
        "warming",
        remote_items.with_work(client, items, remote_items.warm),
        partial(remote_items.totals_of, datasets),
    )

    def missing() -> int:
        client.reader.flush()
        return sum(
            item.name not in summary.bad and not client.reader.has_all(item.content)
            for item in remote_items.items_of(client, datasets)
        )

    return missing


def _warm_path(path: Path, summary: Summary) -> Callable[[], int]:
    from dserverfs.cli import local_items, mounted
    from dserverfs.cli.whole_items import WholeItem

    mount = mounted.find(path)

    def read(file: Path) -> None:
        local_items.read(file)  # the mount keeps it

    def cannot_list(error: OSError) -> None:
        summary.fail(str(error.filename), f"cannot be listed: {error.strerror}")

    summary.run(
        "warming",
        (
            WholeItem(str(file), _size(file), partial(read, file))
            for file in _files(path, cannot_list)
        ),
    )

    def missing() -> int:
        found = 0
        # A directory that cannot be listed now is reported as missing, too.
        files = _files(path, cannot_list)
        while some := list(itertools.islice(files, FILES_AT_A_TIME)):
            inodes = [os.lstat(file).st_ino for file in some if str(file) not in summary.bad]
            found += len(mounted.last(mount.ask("uncached", inodes=inodes)))
        return found

    return missing


def _size(file: Path) -> int:
    try:
        return os.lstat(file).st_size
    except OSError:  # it could not be read either, which is told
        return 0


def _files(path: Path, cannot_list: Callable[[OSError], None]) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for below, directories, names in os.walk(path, onerror=cannot_list):
        directories.sort()
        for name in sorted(names):
            yield Path(below) / name
