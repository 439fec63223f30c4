"""`scripts/soak`: give each part its share of the time, and say what came of it."""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.soak.parts import PARTS
from tests.soak.turns import Part

# A turn ends its last round after its time; one that takes this much longer hangs.
_LATE_S = 900


def main() -> int:
    arguments = _arguments()
    parts = [part for part in PARTS if not arguments.part or part.name in arguments.part]
    seed = secrets.randbits(48) if arguments.seed is None else arguments.seed
    alone = [part for part in parts if part.is_alone]
    beside = [part for part in parts if not part.is_alone]
    seconds = arguments.minutes * 60
    # Those beside each other have as many processors as there are jobs.
    total = sum(p.share for p in alone) + sum(p.share for p in beside) / arguments.jobs
    results: list[dict[str, Any]] = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        turns = [pool.submit(_turn, p, seed, seconds * p.share / total) for p in beside]
        results += [turn.result() for turn in turns]
    results += [_turn(p, seed, seconds * p.share / total) for p in alone]
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    failed = [result["part"] for result in results if result["error"]]
    print(f"soak: {len(results) - len(failed)} parts passed, {len(failed)} failed {failed or ''}")
    return 1 if failed else 0


def _turn(part: Part, seed: int, seconds: float) -> dict[str, Any]:
    begun_s = time.monotonic()
    command = [sys.executable, "-m", "tests.soak.turn", part.name, str(seed), f"{seconds:.0f}"]
    figures: dict[str, Any] = {}
    error = ""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _LATE_S)
        if ended.returncode == 0:
            figures = json.loads(ended.stdout.splitlines()[-1])
        else:
            error = f"{ended.stdout}{ended.stderr}"
    except subprocess.TimeoutExpired as late:
        error = f"hangs: {late}"
    took_s = round(time.monotonic() - begun_s)
    said = ", ".join(f"{name} {value}" for name, value in figures.items())
    print(f"{part.name}: {error or said} ({took_s} s, seed {seed})", flush=True)
    if error:
        print(f"again: scripts/soak --part {part.name} --seed {seed}", flush=True)
    return {"part": part.name, "seed": seed, "seconds": took_s, "figures": figures, "error": error}


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
