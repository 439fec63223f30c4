"""Makes dataset after dataset in a mount until it is ended or fails, and notes what is safe.

A program: `python -m tests.support.steady_writer MOUNTPOINT LOG PREFIX SEED`. Each line of
LOG, JSON, is written when what it says has happened:

    {"plan": NAME, "files": {RELPATH: MD5}}  before anything of the dataset is made
    {"closed": NAME, "relpath": RELPATH}     close(2) has returned without an error

One file of each dataset is open until all others are closed, so none is complete
before the last line about it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEPT_OPEN = "kept-open"


def contents_of(name: str, count: int) -> dict[str, bytes]:
    """Return a dataset's planned files, the same for the same name."""
    dice = random.Random(f"{name}/{count}")
    files = {
        f"{i % 4}/{i:03}": dice.randbytes(dice.choice([0, 10, 5000, 70_000])) for i in range(count)
    }
    return {**files, KEPT_OPEN: dice.randbytes(3000)}


def make(
    mountpoint: str,
    name: str,
    contents: dict[str, bytes],
    note: Callable[[dict[str, Any]], None],
    dice: random.Random,
) -> None:
    """Make one dataset."""
    hashes = {relpath: hashlib.md5(data).hexdigest() for relpath, data in contents.items()}
    note({"plan": name, "files": hashes})
    directory = Path(mountpoint, name)
    directory.mkdir()
    with (directory / KEPT_OPEN).open("wb") as kept_open:
        kept_open.write(contents.pop(KEPT_OPEN))
        for relpath, data in contents.items():
            path = directory / relpath
            path.parent.mkdir(exist_ok=True)
            with path.open("wb") as file:
                file.write(data)
                if dice.random() < 0.1:
                    file.flush()
                    os.fsync(file.fileno())
            note({"closed": name, "relpath": relpath})
    note({"closed": name, "relpath": KEPT_OPEN})


def main() -> None:
    mountpoint, log, prefix, seed = sys.argv[1:]
    dice = random.Random(seed)
    with open(log, "a", encoding="utf-8") as lines:

        def note(line: dict[str, Any]) -> None:
            lines.write(json.dumps(line) + "\n")
            lines.flush()

        for number in itertools.count():
            name = f"{prefix}-{number:03}"
            contents = contents_of(name, dice.choice([1, 5, 30, 60]))
            # Each by a process with a session of its own, or it would wait for this one to end.
            child = os.fork()
            if child == 0:
                os.setsid()
                make(mountpoint, name, contents, note, random.Random(name))
                sys.exit()
            if os.waitpid(child, 0)[1] != 0:
                sys.exit("the process that made a dataset failed, and said why")


if __name__ == "__main__":
    main()
