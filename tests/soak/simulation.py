"""The simulation with fresh seeds: faults, crashes and schedules that no run had before."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.soak.turns import Figures, Part, Turn

_RUN_STEPS = 20_000
_SHORTEST_STEPS = 3_000


def _run(turn: Turn) -> Figures:
    seconds = max(1.0, turn.seconds)
    steps = _RUN_STEPS if turn.seconds > 60 else _SHORTEST_STEPS
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(turn.seed % 2**32)]
    options = ["--seconds", f"{seconds:.0f}", "--run-steps", str(steps)]
    # The order of a set's members is a part of a run.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    ended = subprocess.run([*command, *options], capture_output=True, text=True, env=environment)
    if ended.returncode:
        raise AssertionError(f"{ended.stdout}{ended.stderr}")
    counts = json.loads(ended.stdout.splitlines()[-1])
    shown = ("runs", "steps", "requests", "checks", "kills", "power cuts", "files closed")
    return {name: counts[name] for name in shown if counts.get(name)}


PART = Part("simulation", "simulated runs with fresh seeds, faults and crashes", _run, share=3.0)
