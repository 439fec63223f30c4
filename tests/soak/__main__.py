"""`scripts/soak`: give each part its share of the time, and say what came of it."""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from tests.soak.parts import PARTS
from tests.soak.running import Result, Share, run
from tests.soak.turns import Part
from tests.support import leftovers


def main() -> int:
    arguments = _arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    for left in leftovers.clean_dead_runs():
        print(f"left by an earlier run, now removed: {left}")
    parts = [part for part in PARTS if not arguments.part or part.name in arguments.part]
    seed = secrets.randbits(48) if arguments.seed is None else arguments.seed
    beside, alone = shares(parts, arguments.minutes * 60, arguments.jobs)
    begun_s = time.monotonic()

    def say(part: str, line: str) -> None:
        passed_s = time.monotonic() - begun_s
        print(f"{passed_s / 60:6.1f} min  {part}: {line}", flush=True)

    results: list[Result] = []
    try:
        results.extend(run(beside, seed, arguments.jobs, say))
        results.extend(run(alone, seed, 1, say))
    except KeyboardInterrupt:
        print("soak: ended by a signal; nothing is left behind", flush=True)
        return 130
    finally:
        if arguments.json:
            arguments.json.write_text(json.dumps([each._asdict() for each in results], indent=1))
    print(f"\n{summary(results)}\n")
    failed = [result.part for result in results if result.error]
    print(f"soak: {len(results) - len(failed)} parts passed, {len(failed)} failed {failed or ''}")
    return 1 if failed else 0


def shares(parts: Sequence[Part], seconds: float, jobs: int) -> tuple[list[Share], list[Share]]:
    """Return the parts with their times: those that run beside each other, and the others.

    Those beside each other have as many processors as there are jobs.
    """
    beside = [part for part in parts if not part.is_alone]
    alone = [part for part in parts if part.is_alone]
    at_once = max(1, min(jobs, len(beside)))
    total = sum(p.share for p in alone) + sum(p.share for p in beside) / at_once
    return (
        [Share(p, seconds * p.share / total) for p in beside],
        [Share(p, seconds * p.share / total) for p in alone],
    )


def summary(results: Sequence[Result]) -> str:
    """Return the results as a table for `reliability.rst`."""
    width = max([len(result.part) for result in results] + [len("part")])
    rule = f"{'=' * width} ======= {'=' * (100 - width - 9)}"
    lines = [rule, f"{'part':{width}} seconds figures", rule]
    for result in sorted(results):
        figures = [f"{_number(value)} {name}" for name, value in result.figures.items()]
        text = "FAILED" if result.error else ", ".join(figures)
        first, *rest = textwrap.wrap(text, 100 - width - 9) or [""]
        lines.append(f"{result.part:{width}} {result.seconds:>7,} {first}")
        lines += [f"{'':{width}} {'':7} {line}" for line in rest]
    return "\n".join([*lines, rule])


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _arguments() -> argparse.Namespace:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="for all parts together")
    parser.add_argument("--part", action="append", choices=names, help="this one alone")
    parser.add_argument("--seed", type=int, help="the seed of a run that is to be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="parts that run beside each other")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.epilog = "Parts: " + "; ".join(f"{part.name}: {part.says}" for part in PARTS) + "."
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
