"""One file, read and written at random, then frozen and read at random through a small cache."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

from tests.soak.turns import Figures, Part, Turn
from tests.support import accounts, fuse_device
from tests.support.accounts import Account
from tests.support.file_exerciser import FileExerciser
from tests.support.mounts import mounted
from tests.support.servers import running_server

WRITES = 3000  # operations on a staged file
READS = 600  # on each item
MAX_LARGE = 5 * 1024 * 1024  # some blocks, at most half of which the cache can keep
CACHE_SIZE = "2M"
SHOWN_S = 20.0


def run(turn: Turn) -> Figures:
    """Make, freeze and read datasets until the time is over."""
    done: Counter[str] = Counter()
    account = accounts.current(turn.directory)
    with fuse_device.usable_by_all(), running_server(turn.directory / "server") as server:
        small = ("--cache-dir", str(turn.directory / "small"), "--cache-size", CACHE_SIZE)
        manual = ("--freeze-delay", "manual")
        with (
            mounted(account, server.base_uri, server.token, *manual) as writing,
            mounted(account, server.base_uri, server.token, "--read-only", *small) as reading,
        ):
            while True:
                _round(turn.rng.randrange(1 << 32), account, writing, reading, done)
                if turn.is_over():
                    items = done.pop("item")
                    return {"operations": done.total(), "items": items}


def _round(seed: int, account: Account, writing: Path, reading: Path, done: Counter[str]) -> None:
    rng = random.Random(seed)
    name = f"one-file-{seed:08x}"
    staged = writing / name
    staged.mkdir()
    exerciser = FileExerciser(staged / "small", seed)
    exerciser.run(WRITES)
    contents = {"small": exerciser.content, "large": rng.randbytes(rng.randrange(MAX_LARGE))}
    (staged / "large").write_bytes(contents["large"])
    done.update(exerciser.done)

    frozen = account.dserverfs("freeze", staged, timeout_s=200)

    assert frozen.returncode == 0, frozen.stderr
    # A listing of the other mount that is younger than two seconds is not asked for again.
    end_s = time.monotonic() + SHOWN_S
    while not (reading / name).exists():
        assert time.monotonic() < end_s, f"{name} is not shown by the other mount"
    for relpath, content in contents.items():
        reader = FileExerciser(reading / name / "data" / relpath, seed, content)
        reader.run(READS)
        done.update(reader.done)
        done["item"] += 1


PART = Part("one-file", "random reads and writes of one file, compared", run)
