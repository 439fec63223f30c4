"""All rows of reading, each peer in turn: `scripts/bench`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmark import machine
from benchmark.lab import open_lab
from benchmark.measuring import WrongAnswer
from benchmark.mounts import Mounts
from benchmark.peers import NO_CHANNEL, OURS, Missing, Peer, all_peers
from benchmark.plan import Keeper, Plan
from benchmark.report import Results
from benchmark.rows import UNVERIFIED, Bench, Scenario
from benchmark.table import SCENARIOS, titles

CURL = "curl"
COLUMNS_WITH_CHANNEL = (*(peer.name for peer in all_peers()), CURL)
COLUMNS = tuple(name for name in COLUMNS_WITH_CHANNEL if name != NO_CHANNEL)


def run(plan: Plan, work: Path, keeper: Keeper) -> None:
    """Measure the rows of the plan with a server below `work`; the keeper has what comes."""
    about: dict[str, Any] = {"machine": machine.describe(), "sizes": vars(plan.sizes)}
    results = Results(
        {row: text for row, text in titles(plan.sizes).items() if row in plan.rows},
        OURS,
        [
            peer.name
            for peer in all_peers()
            if not (peer.name == OURS or peer.is_floor or peer.is_reference)
        ],
        [
            *(
                peer.name
                for peer in all_peers()
                if peer.is_reference and (peer.name != NO_CHANNEL or NO_CHANNEL in plan.columns)
            ),
            CURL,
            *(peer.name for peer in all_peers() if peer.is_floor),
        ],
    )
    wanted = [peer for peer in all_peers() if peer.name in plan.columns]
    about["versions"] = versions = _versions(wanted, results)
    peers = [peer for peer in wanted if peer.name in versions]
    for note in (*versions.values(), *_remarks(plan)):
        results.note(note)
    with open_lab(work, plan.sizes) as lab:
        bench = Bench(lab, Mounts(work / "mounts"), plan.rows)
        for scenario in SCENARIOS:
            if bench.wants(*scenario.rows):
                for bench.repeat in range(plan.repeats):
                    _once(bench, scenario, peers, results, with_curl=CURL in plan.columns)
                    if not bench.may_drop:
                        results.note("not root: pages were dropped, names and attributes not")
                    about["machine"]["load_after"] = machine.load()
                    keeper.keep(results, about)
    keeper.keep_all(results, about)


def _remarks(plan: Plan) -> Iterator[str]:
    if UNVERIFIED in plan.rows:
        yield "--verify off: the others never compare; theirs is their cold reading"
    if machine.takes_idle_pages():
        yield "this kernel takes idle memory away (DAMON), cached pages as well"


def _versions(peers: Sequence[Peer], results: Results) -> dict[str, str]:
    """Return the version of each peer there is, and note those there are not."""
    found = {}
    for peer in peers:
        try:
            found[peer.name] = peer.version()
        except Missing as missing:
            results.note(str(missing))
    return found


def _once(
    bench: Bench, scenario: Scenario, peers: Sequence[Peer], results: Results, *, with_curl: bool
) -> None:
    """Measure each peer once, one after the other, so that a slow moment hits them alike."""
    runs = [(peer.name, scenario.run(bench, peer)) for peer in peers]
    if with_curl and scenario.download is not None:
        runs.append((CURL, scenario.download(bench)))
    rows = [row for row in scenario.rows if bench.wants(row)]
    for column, run in runs:
        missing = set(rows)
        print(f"{rows[0]} {bench.repeat + 1}: {column}", file=sys.stderr, flush=True)
        try:
            for measurement in run:
                if measurement.row in missing:
                    missing.discard(measurement.row)
                    results.add(column, measurement)
        except Missing as absent:
            results.note(str(absent))
        except (OSError, RuntimeError, WrongAnswer, subprocess.SubprocessError) as error:
            left = [row for row in rows if row in missing]
            results.fail(column, left, f"{type(error).__name__}: {error}")
