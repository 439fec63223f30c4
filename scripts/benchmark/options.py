"""The command's options, checked."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from benchmark import programs, publishing, reading, table
from benchmark.lab import Sizes
from benchmark.plan import Plan

READ, CHANNEL, PUBLISH, PROGRAMS = "read", "channel", "publish", "programs"
ROWS = {
    READ: table.ROWS,
    CHANNEL: table.ROWS_OF_CHANNEL,
    PUBLISH: publishing.ROWS,
    PROGRAMS: programs.ROWS,
}
COLUMNS = {
    READ: reading.COLUMNS,
    CHANNEL: reading.COLUMNS_WITH_CHANNEL,
    PUBLISH: publishing.COLUMNS,
    PROGRAMS: programs.COLUMNS,
}
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options; ends the process if they are wrong."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    what = arguments.what
    for option, known in (("row", ROWS[what]), ("only", COLUMNS[what])):
        for name in getattr(arguments, option) or ():
            if name not in known:
                parser.error(f"--{option} {name}: {what} has {', '.join(known)}")
    if arguments.again and (arguments.row or arguments.only):
        parser.error("--from measures nothing: --row and --only have no meaning with it")
    for path in (arguments.json, arguments.plot):
        # Rather now than after an hour of measuring.
        if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
            parser.error(f"{path} cannot be written")
    return arguments


def plan_of(arguments: argparse.Namespace) -> Plan:
    what = arguments.what
    sizes = Sizes(
        large_bytes=arguments.size,
        listed_items=arguments.list_items,
        small_items=arguments.tar_items,
        random_reads=arguments.reads,
        distant_bytes=arguments.distant_size,
        distant_items=arguments.distant_items,
        shown_items=arguments.shown_items,
        image_items=arguments.image_items,
        many_items=arguments.many_items,
        many_datasets=arguments.many_datasets,
    )
    columns = arguments.only or COLUMNS[what]
    return Plan(sizes, arguments.row or ROWS[what], columns, arguments.repeat)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure dserverfs beside other file systems on the same objects.",
        epilog="What was measured is printed also if the run is interrupted.",
    )
    add = parser.add_argument
    add("what", nargs="?", choices=tuple(ROWS), default=READ, help=f"default: {READ}")
    names = "; ".join(f"{what}: {', '.join(rows)}" for what, rows in ROWS.items())
    add("--row", action="append", metavar="NAME", help=f"only this; may be repeated; {names}")
    names = "; ".join(f"{what}: {', '.join(columns)}" for what, columns in COLUMNS.items())
    add("--only", action="append", metavar="NAME", help=f"only this column; {names}")
    add("--repeat", type=int, default=3, metavar="N", help="default: 3")
    add("--size", type=_size, default=_size("1G"), help="of the large item; default: 1G")
    add("--list-items", type=int, default=5000, metavar="N", help="to list; default: 5,000")
    words = "of 4 KiB, to read and to publish; default: 5,000"
    add("--tar-items", type=int, default=5000, metavar="N", help=words)
    add("--reads", type=int, default=100, metavar="N", help="random, cold; 20 times that warm; 100")
    add("--distant-size", type=_size, default=_size("256M"), help="read from afar; default: 256M")
    for name, default, what in (
        ("distant", 500, "of 4 KiB read from afar"),
        ("shown", 100_000, "in one directory that is only listed"),
        ("image", 5000, "of 100 KiB that a training job reads"),
        ("many", 1_000_000, "in a dataset that is only mounted and listed"),
    ):
        words = f"{what}; default: {default:,}"
        add(f"--{name}-items", type=int, default=default, metavar="N", help=words)
    words = "in one base URI; default: 1,000"
    add("--many-datasets", type=int, default=1000, metavar="N", help=words)
    add("--plot", type=Path, metavar="FILE", help="draw the times there (PNG)")
    words = "write every measurement there, after each repetition"
    add("--json", type=Path, metavar="FILE", help=words)
    words = (
        "measure nothing, but show what --json has written; if repeated,"
        " a row is that of the last file that has it"
    )
    add("--from", dest="again", action="append", type=Path, metavar="FILE", help=words)
    add("--directory", type=Path, help="where data and caches lie meanwhile: a real disk")
    add("--inside", type=Path, help=argparse.SUPPRESS)
    return parser


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)", text, re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 512M")
    return int(found[1]) * _UNITS[found[2].upper()]
