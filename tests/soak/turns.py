"""What a part of the soak is, and what it is given for one turn."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

Figure = int | float | str
Figures = Mapping[str, Figure]


@dataclass
class Turn:
    """One turn of a part: it works below `directory` and looks at `is_over` between rounds.

    A turn has at least one round, however short its time is. `seed` decides all that is
    random in it: a failure is replayed with `scripts/soak --part NAME --seed SEED`.
    """

    directory: Path
    seed: int
    seconds: float
    rng: random.Random = field(init=False)
    _end_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._end_s = time.monotonic() + self.seconds

    def is_over(self) -> bool:
        return time.monotonic() >= self._end_s

    def say(self, line: str) -> None:
        """Show a line while the turn goes on."""
        print(line, file=sys.stderr, flush=True)


class Part(NamedTuple):
    """A kind of test: `run` returns its figures, or raises what is wrong.

    `share` is its part of the time, in comparison with the others'. `is_alone` are those
    that measure latency, which others would disturb. The suite gives each a short turn, but for
    those of which a test of its own has the same.
    """

    name: str
    says: str
    run: Callable[[Turn], Figures]
    share: float = 1.0
    is_alone: bool = False
    has_short_turn: bool = True
