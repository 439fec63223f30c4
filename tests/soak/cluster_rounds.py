"""A cluster, its server and its users on hosts of their own, while parts and hosts fail at random.

In each round one or two of these happen at once: a part or a host is killed and stays down for
a while; a part hangs; a host is unplugged, a user's too. Then all is well again, and each
of eight programs has to freeze a dataset and to read one before the next round. At the end every
dataset that was said to be frozen is read by boto3. Where there are no network namespaces all is on
one host, and nothing is unplugged.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from tests.soak.turns import Figures, Part, Turn
from tests.support import accounts, fuse_device
from tests.support.cluster_world import working_users
from tests.support.store_cluster import NEEDED, StoreCluster, running_cluster

FOR_S = (1.0, 4.0, 12.0)
# PostgreSQL that hangs has no part that could take over: its clients wait for TCP.
NEVER_HELD_UP = frozenset({"server", "store1", "store2", "store3"})


class Trouble(NamedTuple):
    """What happens to a part or a host."""

    kind: str
    what: str
    begin: Callable[[str], contextlib.AbstractContextManager[None]]


def run(turn: Turn) -> Figures:
    figures: Counter[str] = Counter()
    longest_s = 0.0
    with contextlib.ExitStack() as stack:
        stack.enter_context(fuse_device.usable_by_all())
        cluster = stack.enter_context(
            running_cluster(turn.directory / "cluster", "soak", "--restart-after", "1")
        )
        for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
            os.environ[name] = str(cluster.authority)
        account = accounts.current(turn.directory)
        users = stack.enter_context(working_users(cluster, account, turn.directory))
        users.wait_until_all_have_gone_on()
        while True:
            begun_s = time.time()
            troubles = _troubles(cluster, turn.rng)
            said = " and ".join(f"{each.what} {each.kind}" for each in troubles)
            with contextlib.ExitStack() as failing:
                for each in troubles:
                    failing.enter_context(each.begin(each.what))
                time.sleep(turn.rng.choice(FOR_S))
            users.wait_until_all_have_gone_on()
            took_s, number = users.longest_wait_s(begun_s)
            turn.say(f"{said}: longest wait of a reader {took_s:.1f} s, of {number} reads")
            longest_s = max(longest_s, took_s)
            figures["rounds"] += 1
            figures["reads"] += number
            figures.update(each.kind for each in troubles)
            if turn.is_over():
                break
        figures["frozen, and there"] = users.end()
    return {**figures, "s at most for a read": round(longest_s, 1)}


def _troubles(cluster: StoreCluster, dice: random.Random) -> list[Trouble]:
    """Return one or two things that happen at once; two never to the only one of a kind."""
    parts = cluster.parts()
    all_of_them = [
        *(Trouble("killed", part, cluster.without) for part in parts),
        *(Trouble("hangs", part, cluster.held_up) for part in parts if part not in NEVER_HELD_UP),
        *(Trouble("unplugged", host, cluster.unplugged) for host in cluster.hosts),
    ]
    first = dice.choice(all_of_them)
    others = [
        each
        for each in all_of_them
        if each.what != first.what and not {each.what, first.what} <= NEEDED
    ]
    return [first, dice.choice(others)] if dice.random() < 0.4 else [first]


PART = Part(
    "cluster-rounds",
    "a cluster with its server and users, whose parts and hosts are killed, hang, are unplugged",
    run,
    share=2.0,
    is_alone=True,
    has_short_turn=False,
)
