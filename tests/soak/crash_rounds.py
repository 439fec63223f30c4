"""Parts are killed while datasets are made; what was promised before is there afterwards.

In each round two writers and a dtool work until some moment, and one or two of the
mount's daemon, the server, its store and that dtool get SIGKILL. All is started again.
Then each dataset is either frozen on the server exactly as it was planned, or open, with
every file that was closed; those are made complete and frozen. What dtool had sealed the
mount carries on with, the next one or the one that runs. Each round also reads
some of what earlier ones froze, and the end of the turn reads all, by boto3.
"""

from __future__ import annotations

import contextlib
from collections import Counter

from tests.soak.turns import Figures, Part, Turn
from tests.support.crash_world import World
from tests.support.kept_promises import Bucket, judge
from tests.support.mount_daemons import wait_for
from tests.support.promises import Notes

VICTIMS = (
    ["daemon"],
    ["server"],
    ["store"],
    ["broker"],
    *(["daemon", "broker"],) * 3,
    *(["daemon", "server"],) * 2,
    *(["store", "daemon"],) * 2,
    ["broker", "server"],
    ["daemon", "broker", "server"],
)
STATES = ("sealed", "uploading", "completing", "frozen")
READ_AGAIN = 3  # datasets of earlier rounds
COUNTS = {"long": ("20", "80", "150", "250"), "short": ("5", "10")}


def run(turn: Turn) -> Figures:
    rounds = Rounds(turn)
    try:
        while True:
            rounds.one()
            if turn.is_over():
                break
        rounds.read_all()
    finally:
        rounds.world.close()
    return {"rounds": rounds.number, **+rounds.figures}


class Rounds:
    """The rounds of one turn."""

    def __init__(self, turn: Turn) -> None:
        self.world = World(turn.directory, turn.rng)
        self.number = 0
        self.figures: Counter[str] = Counter()
        self._dice = turn.rng
        self._is_short = turn.seconds == 0
        self._notes = Notes(self.world.promises.path)

    def one(self) -> None:
        """Work, kill, start again, and compare what is there with what was promised."""
        world = self.world
        with contextlib.ExitStack() as stack:
            self._work_until_killed(stack)
            world.bring_up("--freeze-delay", "0")
        said = world.log.read_text()
        assert "AssertionError" not in said, said
        world.wait_until_settled()
        self.number += 1
        world.promises.read()
        self.figures["finished later"] += judge(world, self._notes)
        bucket = Bucket(world.server)
        again = self._dice.sample(sorted(world.settled), min(READ_AGAIN, len(world.settled)))
        for name in again:
            bucket.require_bytes(world.promises.datasets[name], world.settled[name])

    def read_all(self) -> None:
        """Require all that was frozen in any round."""
        world, bucket = self.world, Bucket(self.world.server)
        assert bucket.frozen({}) == world.settled
        for name, uuid in world.settled.items():
            promised = world.promises.datasets[name]
            bucket.require_frozen(promised, uuid)
            self.figures["files read at the end"] += bucket.require_bytes(promised, uuid)
        for promised in world.promises.datasets.values():
            self.figures["files promised"] += len(promised.closed)
            self.figures["changes promised"] += len(promised.changed)
            self.figures["freezes promised"] += promised.frozen
            assert promised.name in world.settled or not promised.closed

    def _work_until_killed(self, stack: contextlib.ExitStack) -> None:
        """Work, and kill; writers that can do so go on in `stack`."""
        world, dice = self.world, self._dice
        victims = ["daemon", "server"] if self._is_short else dice.choice(VICTIMS)
        daemon = world.bring_up("--freeze-delay", "0")
        world.promises.read()
        written, closed = world.bytes_written_by(daemon), world.promises.closed_bytes
        prefix = f"r{self.number:04}"
        options = ("--synced", "1", "--freeze", "0.7", "--counts")
        for one in "ab":
            counts = COUNTS["short" if self._is_short else "long"]
            stack.enter_context(world.writer(f"{prefix}{one}", *options, *counts))
        broker = None
        if "broker" in victims or self.number % 2 == 0:
            broker = stack.enter_context(world.broker("make", f"{prefix}-dtool"))
        self._wait_for_the_moment()
        world.promises.read()
        promised = world.promises.closed_bytes - closed
        # It was this daemon that the files went through.
        assert world.bytes_written_by(daemon) - written >= promised > 0
        for victim in victims:
            world.kill(victim, broker)
            self.figures["kills"] += 1
            self.figures[f"{victim} killed"] += 1

    def _wait_for_the_moment(self) -> None:
        if self._is_short:
            self.world.promises.wait_for_lines(self._dice.randrange(15, 30))
            return
        self.world.promises.wait_for_lines(self._dice.randrange(150, 1200))
        if self._dice.random() < 0.3:
            state = self._dice.choice(STATES)
            with contextlib.suppress(AssertionError):  # not seen in time
                wait_for(lambda: state in self.world.staged().values(), state, timeout_s=2)


PART = Part("crash-rounds", "parts are killed, and what was promised is there", run, share=2.0)
