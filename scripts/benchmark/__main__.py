"""The command: arguments in, tables out.

The measuring is done by a second process that cannot leave anything behind: as
root it has mounts and process numbers of its own (unshare), which end with it.
An ordinary user's is asked to end and cleans up itself.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark import machine, plot, publishing, report
from benchmark.lab import Sizes, open_lab
from benchmark.measuring import WrongAnswer
from benchmark.mounts import Mounts, adopt_orphans
from benchmark.peers import OURS, Missing, Peer, all_peers
from benchmark.report import Results
from benchmark.rows import Bench, Scenario
from benchmark.table import SCENARIOS, titles
from dserverfs.server import die_with_parent

STOP_TIMEOUT_S = 60
CURL = "curl"
ROWS = [row for scenario in SCENARIOS for row in scenario.rows]
COLUMNS = [*(peer.name for peer in all_peers()), CURL]
_ISOLATED = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


def main(argv: Sequence[str]) -> int:
    """Return 0, or 1 if dserverfs failed in a row, or 130 if interrupted."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments.inside is None:
            return _supervise(argv, arguments.directory)
        return _run(arguments, arguments.inside)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure dserverfs beside other file systems on the same objects.",
    )
    parser.add_argument(
        "what", nargs="?", choices=("read", "publish"), default="read", help="default: read"
    )
    parser.add_argument(
        "--row", action="append", choices=ROWS, metavar="NAME", help=f"only this: {', '.join(ROWS)}"
    )
    parser.add_argument(
        "--only", action="append", choices=COLUMNS, metavar="NAME", help=f"of {', '.join(COLUMNS)}"
    )
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--size", type=_size, default=_size("512M"), help="of the large item; default: 512M"
    )
    parser.add_argument("--list-items", type=int, default=5000, help="to list; default: 5000")
    parser.add_argument("--tar-items", type=int, default=2000, help="of 4 KiB; default: 2000")
    parser.add_argument(
        "--reads", type=int, default=100, help="random ones, cold, and 20 times that warm"
    )
    parser.add_argument(
        "--distant-size", type=_size, default=_size("256M"), help="read from afar; default: 256M"
    )
    for name, default, what in (
        ("distant", 500, "of 4 KiB read from afar"),
        ("shown", 100_000, "in one directory that is only listed"),
        ("many", 1_000_000, "in a dataset that is only mounted and listed"),
    ):
        parser.add_argument(
            f"--{name}-items", type=int, default=default, metavar="N", help=f"{what}; {default:,}"
        )
    parser.add_argument(
        "--many-datasets", type=int, default=1000, metavar="N", help="in one base URI; 1,000"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios there (PNG)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there")
    parser.add_argument(
        "--directory", type=Path, help="where data and caches lie meanwhile: a real disk"
    )
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return parser


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)", text, re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 512M")
    return int(found[1]) * _UNITS[found[2].upper()]


def _supervise(argv: Sequence[str], directory: Path | None) -> int:
    """Run the measuring on a directory that is removed afterwards; return its status."""
    work = tempfile.mkdtemp(prefix="dserverfs-bench-", dir=directory)
    unshare = _unshare()
    try:
        process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())),
                *(*unshare, sys.executable, "-m", "benchmark", *argv, "--inside", work),
            ],
            start_new_session=True,  # Ctrl-C is for us
        )
        try:
            return process.wait()
        except KeyboardInterrupt:
            # unshare ignores SIGTERM; its end ends all.
            process.kill() if unshare else process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    finally:
        for _ in range(3):  # what was killed may still be ending
            shutil.rmtree(work, ignore_errors=True)


def _unshare() -> list[str]:
    """Return the command for namespaces of its own, empty if they are not to be had."""
    program = shutil.which("unshare")
    if os.geteuid() != 0 or program is None:
        return []
    command = [program, *_ISOLATED]
    tried = subprocess.run([*command, "true"], capture_output=True, timeout=30, check=False)
    return command if tried.returncode == 0 else []


def _run(arguments: argparse.Namespace, work: Path) -> int:
    adopt_orphans()
    about = machine.describe()
    sizes = Sizes(
        large_bytes=arguments.size,
        listed_items=arguments.list_items,
        small_items=arguments.tar_items,
        random_reads=arguments.reads,
        distant_bytes=arguments.distant_size,
        distant_items=arguments.distant_items,
        shown_items=arguments.shown_items,
        many_items=arguments.many_items,
        many_datasets=arguments.many_datasets,
    )
    if arguments.what == "publish":
        return _report(publishing.run(sizes, arguments.repeat, work), arguments, {"machine": about})
    wanted = arguments.only or COLUMNS
    peers = [peer for peer in all_peers() if peer.name in wanted]
    results = Results(
        {row: text for row, text in titles(sizes).items() if row in (arguments.row or ROWS)},
        OURS,
        [peer.name for peer in all_peers() if peer.name != OURS and _is_compared(peer)],
        [
            *(peer.name for peer in all_peers() if peer.is_reference),
            CURL,
            *(peer.name for peer in all_peers() if peer.is_floor),
        ],
    )
    versions = _versions(peers, results)
    peers = [peer for peer in peers if peer.name in versions]
    with open_lab(work, sizes) as lab:
        bench = Bench(lab, Mounts(work / "mounts"))
        for scenario in SCENARIOS:
            if set(scenario.rows) & results.titles.keys():
                for bench.repeat in range(arguments.repeat):
                    _once(bench, scenario, peers, results, with_curl=CURL in wanted)
    if not bench.may_drop:
        results.notes.append("not root: pages of files were dropped, names and attributes not")
    if machine.takes_idle_pages():
        results.notes.append("this kernel takes idle memory away (DAMON), cached pages as well")
    results.notes.append(machine.in_words(about))
    results.notes.append("; ".join(versions.values()))
    made = {"machine": about, "versions": versions, "sizes": vars(sizes)}
    return _report(results, arguments, made)


def _report(results: Results, arguments: argparse.Namespace, made: Mapping[str, Any]) -> int:
    """Print and write what was measured; return the exit status."""
    print(report.as_text(results), end="")
    if arguments.json is not None:
        text = json.dumps(report.as_json(results, made), indent=1)
        arguments.json.write_text(text + "\n")
    if arguments.plot is not None:
        plot.draw(results, arguments.plot)
    return 1 if any(column == OURS for _, column in results.failed) else 0


def _is_compared(peer: Peer) -> bool:
    return not (peer.is_floor or peer.is_reference)


def _versions(peers: Sequence[Peer], results: Results) -> dict[str, str]:
    """Return the version of each peer there is, and note those there are not."""
    found = {}
    for peer in peers:
        try:
            found[peer.name] = peer.version()
        except Missing as missing:
            results.notes.append(str(missing))
    return found


def _once(
    bench: Bench, scenario: Scenario, peers: Sequence[Peer], results: Results, *, with_curl: bool
) -> None:
    """Measure each peer once, one after the other, so that a slow moment hits them alike."""
    runs = [(peer.name, scenario.run(bench, peer)) for peer in peers]
    if with_curl and scenario.download is not None:
        runs.append((CURL, scenario.download(bench)))
    for column, run in runs:
        missing = set(scenario.rows)
        print(f"{scenario.rows[0]} {bench.repeat + 1}: {column}", file=sys.stderr, flush=True)
        try:
            for measurement in run:
                missing.discard(measurement.row)
                results.add(column, measurement)
        except Missing as absent:
            results.notes.append(str(absent))
        except (OSError, RuntimeError, WrongAnswer, subprocess.SubprocessError) as error:
            rows = [row for row in scenario.rows if row in missing]
            results.fail(column, rows, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
