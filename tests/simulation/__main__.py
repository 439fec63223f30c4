"""`python -m tests.simulation --seed N`: replay one run; without a seed, runs with fresh ones."""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import signal
import sys
import traceback
from collections import Counter

from tests.simulation import setup  # noqa: F401 - first of all
from tests.simulation.planted import PLANTED
from tests.simulation.threads import real_time_s
from tests.simulation.world import Run

STEPS = 20_000


class _Faults(logging.Handler):
    """Faults that the code under test found in itself, and logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        run = Run.present
        task = None if run is None else run.scheduler.current
        is_dying = task is not None and task.process.is_dead
        if record.exc_info and not is_dying:
            self.found.append(f"{record.getMessage()}\n{self.format(record)}")


def main() -> int:
    arguments = _arguments()
    if arguments.plant:
        PLANTED[arguments.plant]()
    faults = _Faults()
    logging.getLogger("dserverfs").addHandler(faults)
    logging.getLogger("dserverfs").setLevel(logging.DEBUG if arguments.log else logging.ERROR)
    logging.getLogger("dserverfs").propagate = arguments.log
    if arguments.log:
        logging.basicConfig(format="%(threadName)s %(name)s: %(message)s", stream=sys.stderr)
    _show_on_signal()
    counts: Counter[str] = Counter()
    begun_s = real_time_s()
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    while True:
        run = None
        try:
            run = Run(seed)
            counts.update(run.go(arguments.run_steps))
            if faults.found:
                raise AssertionError(f"a fault of ours was logged: {faults.found[0]}")
        except BaseException:  # noqa: BLE001 - told, with what replays it
            traceback.print_exc()
            if run is not None:
                print(f"{run.counts}\nlast failure: {run.last_failure}", file=sys.stderr)
            print(
                f"again: python -m tests.simulation --seed {seed} --runs 1"
                f" --run-steps {arguments.run_steps}",
                file=sys.stderr,
            )
            return 1
        counts["runs"] += 1
        counts["trace"] ^= run.scheduler.trace
        took_s = real_time_s() - begun_s
        if counts["runs"] == arguments.runs or took_s >= arguments.seconds > 0:
            break
        if counts["steps"] >= arguments.steps > 0:
            break
        seed += 1
    counts["steps a second"] = round(counts["steps"] / max(took_s, 0.001))
    print(json.dumps(counts))
    return 0


def _show_on_signal() -> None:
    """Say on SIGUSR1 how far a run is, and where its threads are."""

    def show(number: int, frame: object) -> None:
        run = Run.present
        if run is not None:
            print(
                f"{run.scheduler.steps} steps, {run.scheduler.now_ns / 1e9:.0f} s", file=sys.stderr
            )
            print(f"{dict(run.counts)}\n{run.scheduler.stacks()}", file=sys.stderr, flush=True)

    signal.signal(signal.SIGUSR1, show)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the first run; the next ones follow")
    parser.add_argument("--runs", type=int, default=0, help="so many runs")
    parser.add_argument("--steps", type=int, default=0, help="until so many steps were done")
    parser.add_argument("--seconds", type=float, default=0.0, help="for so long")
    parser.add_argument("--run-steps", type=int, default=STEPS, help="of one run, before its end")
    parser.add_argument("--plant", choices=PLANTED, help="a fault that is to be found")
    parser.add_argument("--log", action="store_true", help="show the log of the code under test")
    return parser.parse_args()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of the standard library are replaced: nothing is to be joined
