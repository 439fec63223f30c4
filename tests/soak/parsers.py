"""Part of the soak: bytes of all kinds for everything that reads what others send.

With atheris (`pip install atheris`), which sees what of the code is reached and looks for more;
without it by chance alone. Each parser is in a process of its own, for atheris ends its process.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
import re
import subprocess
import sys
import time

from tests.soak.turns import Figures, Part, Turn
from tests.support.mutations import mangled
from tests.support.parsers import PARSERS, read_mutated

_SLICE_S = 20  # of each parser in its turn: to begin takes seconds
_LATE_S = 600  # a busy machine takes that long to begin
_ROUNDS = re.compile(r"^Done (\d+) runs", re.MULTILINE)


def _run(turn: Turn) -> Figures:
    # The shortest turn has no time to begin a process for each.
    is_guided = turn.seconds > 0 and importlib.util.find_spec("atheris") is not None
    inputs = turns = 0
    names = [*PARSERS]
    turn.rng.shuffle(names)
    for name in itertools.cycle(names):
        if is_guided:
            inputs += _guided(name, turn)
        else:
            inputs += _by_chance(name, turn.rng, _SLICE_S if turn.seconds else 0)
        turns += 1
        if turn.is_over() and (is_guided or turns >= len(names)):
            break
    return {"inputs": inputs, "turns": turns, "by": "coverage" if is_guided else "chance"}


def _by_chance(name: str, chance: random.Random, seconds: float) -> int:
    """Return how many inputs the parser was given."""
    end_s = time.monotonic() + seconds
    count = 0
    while count < 100 or time.monotonic() < end_s:
        content = mangled(PARSERS[name].example, PARSERS[name].words, chance)
        try:
            read_mutated(name, content)
        except Exception as error:
            raise AssertionError(f"{name}: {content!r}") from error
        count += 1
    return count


def _guided(name: str, turn: Turn) -> int:
    corpus = turn.directory / name.replace(" ", "-")
    corpus.mkdir(exist_ok=True)
    (corpus / "example").write_bytes(PARSERS[name].example)
    command = [
        *(sys.executable, "-m", "tests.support.guided", name, str(corpus)),
        *(f"-seed={turn.rng.randrange(1, 1 << 31)}", f"-max_total_time={_SLICE_S}"),
        *("-max_len=20000", "-rss_limit_mb=4000", f"-artifact_prefix={corpus}/"),
    ]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=_SLICE_S + _LATE_S, check=False
    )
    found = _ROUNDS.search(ended.stderr)
    if ended.returncode or found is None:
        crashes = {path.name: path.read_bytes() for path in corpus.glob("*-*")}
        raise AssertionError(f"{name}: {crashes}: {ended.stdout[-3000:]}{ended.stderr[-3000:]}")
    return int(found[1])


PART = Part("parsers", "bytes of all kinds for what reads those of others", _run)
