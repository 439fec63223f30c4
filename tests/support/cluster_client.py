"""Makes datasets in one mount and reads those that were made in another one, until it is ended.

A program: `python -m tests.support.cluster_client MOUNT PROMISES READS PREFIX`. What
it freezes is noted in the list of `tests.support.promises`, and each read in READS, as

    {"client": PREFIX, "dataset": NAME, "wait_s": LONGEST, "at_s": WHEN}

with the longest wait for one file, and the moment by the clock of the epoch. A freeze that
is refused, or takes longer than 25 s, is tried again. So is a read that finds no server
(EHOSTUNREACH, ETIMEDOUT), which is what a program sees while the only one is away: its wait goes
on. Each is a line on standard error. Any other read that fails ends the program.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.support.promises import Notes, Promised, PromiseList
from tests.support.steady_writer import FREEZE, md5_of

FILES = 4
REFUSED_S = 120.0  # for which a freeze or a read is tried again
AWAY = (errno.EHOSTUNREACH, errno.ETIMEDOUT)
PAUSE_S = 0.2

T = TypeVar("T")


class Client:
    def __init__(self, options: argparse.Namespace) -> None:
        self._mount: Path = options.mount
        self._prefix: str = options.prefix
        self._promises = PromiseList(options.promises)
        self._notes = Notes(options.promises)
        self._reads = os.open(options.reads, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._dice = random.Random(self._prefix)
        self._seen: set[str] = set()

    def make(self, number: int) -> None:
        """Freeze one more dataset."""
        name = f"{self._prefix}-{number:03}"
        contents = {
            f"{i}": self._dice.randbytes(self._dice.choice([10, 5000, 300_000]))
            for i in range(FILES)
        }
        self._notes.note(name, plan=md5_of(contents))
        (self._mount / name / "data").mkdir(parents=True)
        for relpath, content in contents.items():
            (self._mount / name / "data" / relpath).write_bytes(content)
        self._try(name, lambda: self._freeze(name), lambda error: True)
        self._notes.note(name, frozen=True)

    def _freeze(self, name: str) -> None:
        try:
            os.setxattr(self._mount / name, FREEZE, b"1")
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # of a frozen dataset: it went on by itself
                raise

    def _try(self, what: str, work: Callable[[], T], may_pass: Callable[[OSError], bool]) -> T:
        """Return the outcome of `work`, which is tried again."""
        end_s = time.monotonic() + REFUSED_S
        while True:
            try:
                return work()
            except OSError as error:
                if not may_pass(error) or time.monotonic() > end_s:
                    raise
                print(f"{time.time():.1f} {what}: {error}", file=sys.stderr, flush=True)
                time.sleep(PAUSE_S)

    def read(self) -> None:
        """Read a dataset that this client has not read, if others have frozen one."""
        self._promises.read()
        known = [
            each
            for each in self._promises.datasets.values()
            if each.frozen and each.name not in self._seen and self._is_of_others(each)
        ]
        if not known:
            return
        promised = self._dice.choice(known)
        self._seen.add(promised.name)
        longest_s = max(self._read_one(promised, relpath) for relpath in promised.plan)
        line = {
            "client": self._prefix,
            "dataset": promised.name,
            "wait_s": round(longest_s, 3),
            "at_s": time.time(),
        }
        os.write(self._reads, json.dumps(line).encode() + b"\n")

    def _is_of_others(self, promised: Promised) -> bool:
        """Return whether it was made in the other mount's place: that of this one has the bytes."""
        return promised.name[0] != self._prefix[0]

    def _read_one(self, promised: Promised, relpath: str) -> float:
        begun_s = time.monotonic()
        path = self._mount / promised.name / "data" / relpath
        content = self._try("read", path.read_bytes, lambda error: error.errno in AWAY)
        took_s = time.monotonic() - begun_s
        if hashlib.md5(content).hexdigest() != promised.plan[relpath]:
            raise AssertionError(f"{promised.name}/{relpath} is not what was frozen")
        return took_s


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("mount", "promises", "reads"):
        parser.add_argument(name, type=Path)
    parser.add_argument("prefix", help="its first letter is that of the mount")
    client = Client(parser.parse_args())
    ends: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ends.append(number))
    for number in itertools.count():
        if ends:
            return
        client.make(number)
        client.read()


if __name__ == "__main__":
    main()
