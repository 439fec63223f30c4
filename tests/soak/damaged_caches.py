"""Block caches, damaged several times over, with fresh seeds."""

from __future__ import annotations

import shutil
from collections import Counter

from tests.soak.turns import Figures, Part, Turn
from tests.support.damaged_caches import (
    KINDS,
    files_by_kind,
    hurt,
    left_by_a_kill,
    require_right,
)


def run(turn: Turn) -> Figures:
    from dserverfs.base.damage import DAMAGES

    killed = left_by_a_kill(turn.directory / "killed", turn.directory / "scratch")
    rounds, seen = 0, Counter[str]()
    while rounds < 5 or not turn.is_over():
        directory = turn.directory / "blocks"
        shutil.copytree(killed, directory)
        about = f"seed {turn.seed}, round {rounds}:"
        for number in range(turn.rng.randrange(1, 5)):
            kind = turn.rng.choice(sorted(set(KINDS) & {*files_by_kind(directory)}))
            damage = turn.rng.choice(sorted(DAMAGES))
            about += f" {kind} {damage}"
            hurt(directory, kind, damage, f"{turn.seed} {rounds} {number}")
        seen.update(require_right(directory, about))
        shutil.rmtree(directory)
        rounds += 1
    return {"rounds": rounds, "right blocks": seen["right"], "damage found": 1 + seen["damaged"]}


PART = Part("damaged-caches", "block caches whose files are damaged, read and used again", run)
