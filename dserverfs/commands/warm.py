"""`dserverfs warm`: whole items into the cache."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dserverfs.commands.common import Commands

if TYPE_CHECKING:
    from dserverfs.commands.whole import Tally


def add(commands: Commands) -> None:
    parser = commands.add_parser("warm", help="fetch into the cache what is to be read later")
    parser.description = (
        "Fetch every item of a dataset or of a base URI into the cache and compare it with the"
        " manifest; or read every file at or below a PATH in a mount, which does the same to"
        " that mount's cache."
    )
    parser.add_argument(
        "targets", metavar="PATH | dserver://URI", nargs="+", help="several may be given"
    )
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="for URIs; default: as for mount"
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.commands.whole import EXIT_FAILED, Tally, is_uri

    tally = Tally()
    for target in arguments.targets:
        if is_uri(target):
            _warm_uri(target, arguments.cache_dir, tally)
        else:
            _warm_path(Path(target), tally)
    print(tally.summary("in the cache", "could not be read"))
    return EXIT_FAILED if tally.failed else 0


def _warm_uri(target: str, cache_directory: Path | None, tally: Tally) -> None:
    from dserverfs import whole_datasets
    from dserverfs.commands.whole import client_of

    client, uri = client_of(target, cache_directory)
    with client:
        tally.run(
            whole_datasets.items_of(client, uri),
            lambda item: whole_datasets.warm(client, item),
            lambda item: item.name,
            lambda item: item.content.size_in_bytes,
        )
        client.reader.flush()


def _warm_path(path: Path, tally: Tally) -> None:
    from dserverfs import local_check
    from dserverfs.commands import mounted

    mounted.find(path)

    def drop(piece: bytes) -> None:
        """Read and forget: the mount keeps it."""

    def read(file: Path) -> None:
        local_check.read(file, drop)

    tally.run(_files(path), read, str, lambda file: os.lstat(file).st_size)


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
    for below, directories, names in os.walk(path):
        directories.sort()
        for name in sorted(names):
            yield Path(below) / name
