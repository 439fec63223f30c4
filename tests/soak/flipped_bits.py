"""Bits of stored objects are flipped, one at a time, and read in every way."""

from __future__ import annotations

import shutil

from tests.soak.turns import Figures, Part, Turn
from tests.support import accounts, fuse_device
from tests.support.dtool_datasets import make_dataset
from tests.support.flipped_bits import WAYS, Flips, make_items
from tests.support.mounts import mounted, publish
from tests.support.server_store import StoredItems
from tests.support.servers import running_server

ITEMS = 40
SHORT = 5  # of a turn that is as short as it can be


def run(turn: Turn) -> Figures:
    directory = turn.directory
    right = directory / "right"
    make_items(right, ITEMS if turn.seconds > 60 else SHORT, turn.rng)
    flipped = rounds = 0
    with fuse_device.usable_by_all(), running_server(directory / "data") as server:
        account = accounts.current(directory)
        token = server.token_file.read_text().strip()
        items = {path.name: path.read_bytes() for path in right.iterdir()}
        local = make_dataset(directory, "flipped", items)
        (uri,) = publish(server.base_uri, token, directory / "publishing", local)
        flips = Flips(account, StoredItems.of(server, uri), right, turn.rng)
        ways = [*WAYS]
        while rounds == 0 or not turn.is_over():
            turn.rng.shuffle(ways)
            cache = directory / f"cache-{rounds}"
            mount = mounted(account, uri, token, "--cache-dir", str(cache))
            flipped += flips.round(mount, ways)
            shutil.rmtree(cache)
            rounds += 1
    return {"bits": flipped, "rounds": rounds}


PART = Part("flipped-bits", "one bit of each stored object is wrong, and no read shows it", run)
