"""All faults meet all operations, and those that last do so within the real limits of time."""

from __future__ import annotations

from tests.soak.turns import Figures, Part, Turn
from tests.support import accounts, fault_cells, fault_table, fuse_device
from tests.support.fault_cells import Cell
from tests.support.fault_world import fault_world
from tests.support.servers import running_server

BATCH = 120
# Of a turn that is as short as it can be.
SHORTEST = 4
# The limits of semantics.rst in seconds, and what a machine in use may take longer.
REAL_LIMITS_S = {
    Cell("server", "list", "no first byte", "for good"): 30.0,
    Cell("server", "README", "trickled head", "for good"): 30.0,
    Cell("server", "tag", "stall in the body", "for good"): 30.0,
    Cell("server", "sign", "no first byte", "for good"): 120.0,
    Cell("store", "read", "stall in the body", "for good"): 120.0,
    Cell("store", "ahead", "trickled body", "for good"): 120.0,
}
LATE_S = 15.0
REAL_SECONDS = 600.0  # of a turn that is long enough for them


def run(turn: Turn) -> Figures:
    cells = fault_cells.all_cells()
    turn.rng.shuffle(cells)
    directory = turn.directory
    done = 0
    with (
        fuse_device.usable_by_all(),
        running_server(directory / "data") as server,
    ):
        account = accounts.current(directory)
        (directory / "hurried").mkdir()
        with fault_world(account, server, directory / "hurried") as world:
            size = BATCH if turn.seconds > 60 else SHORTEST
            while True:
                batch = [cells[number % len(cells)] for number in range(done, done + size)]
                outcomes = fault_table.tried(world, batch, fault_table.THREADS)
                done += len(outcomes)
                wrong = [
                    f"{cell}: {said}"
                    for cell, outcome in outcomes.items()
                    if (said := fault_cells.complaint(cell, outcome))
                ]
                wrong += fault_table.differences(outcomes)
                assert not wrong, "\n".join(wrong)
                if turn.is_over():
                    break
        real = 0
        if turn.seconds >= REAL_SECONDS:
            (directory / "real").mkdir()
            with fault_world(account, server, directory / "real", {}) as world:
                outcomes = fault_cells.run_all(world, [*REAL_LIMITS_S], fault_table.THREADS)
            for cell, limit_s in REAL_LIMITS_S.items():
                outcome = outcomes[cell]
                assert outcome.said == "ETIMEDOUT", f"{cell}: {outcome}"
                assert outcome.seconds < limit_s + LATE_S, f"{cell}: {outcome}"
                real += 1
    figures = {"cells": done, "of": len(cells)}
    return {**figures, "within the real limits": real} if real else figures


PART = Part("faults", "faults of network, server and store meet all operations", run)
