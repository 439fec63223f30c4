"""The power is cut at any write to the disk that has a server, a staging area and a cache.

Server, mount and dtool work on one disk, whose writes and flushes are recorded, until all
are killed. Then the record is replayed up to many positions: half of them where something
was promised, to the byte. At each the file system is mounted as a power cut left it, and
has all that was promised by then. At some of them server and mount are started on it, and
all that is open is made complete and frozen.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.writing.staging.dataset import TREE, read_record
from tests.soak.turns import Figures, Part, Turn
from tests.support.crash_world import World
from tests.support.directory_trees import md5_of_files
from tests.support.ext4_disk import MIB
from tests.support.kept_promises import Bucket, judge
from tests.support.promises import Notes, PromiseList
from tests.support.recorded_disk import KEPT, RecordedDisk, recorded_disk

SIZE = 640 * MIB
KINDS = ("ext4", "xfs")
LOOKS = {"long": 60, "short": 12}
STARTS = {"long": 5, "short": 1}
LINES = {"long": (300, 1200), "short": (40, 80)}


def run(turn: Turn) -> Figures:
    figures: Counter[str] = Counter()
    records = dict.fromkeys(KINDS, 0)
    kinds = list(KINDS)
    while kinds:
        kind = kinds[sum(records.values()) % len(kinds)]
        try:
            with recorded_disk(turn.directory / f"{kind}-{records[kind]}", kind, SIZE) as disk:
                Session(turn, disk, figures).run()
        except pytest.skip.Exception as skipped:
            turn.say(f"no record of {kind}: {skipped}")
            kinds.remove(kind)
            continue
        records[kind] += 1
        if turn.is_over():
            break
    made = {f"{kind} records": count for kind, count in records.items() if count}
    return {**made, **+figures}


class Session:
    """One record, and its replays."""

    def __init__(self, turn: Turn, disk: RecordedDisk, figures: Counter[str]) -> None:
        self._dice = turn.rng
        self._length = "short" if turn.seconds == 0 else "long"
        self._disk = disk
        self._figures = figures
        self._directory = turn.directory / f"beside-{disk.path.name}"
        self._directory.mkdir(mode=0o755)

    def run(self) -> None:
        world = World(self._directory, self._dice, self._disk.path, self._disk.record)
        try:
            self._work(world)
            all_promises = world.promises
            end = self._disk.position()
            for number in range(LOOKS[self._length]):
                with self._after_power_cut(world, all_promises, end) as left:
                    self._look(left, world)
                    if number < STARTS[self._length]:
                        self._start(left, world)
            self._figures["promises"] += all_promises.lines
        finally:
            world.close()

    def _work(self, world: World) -> None:
        world.bring_up("--freeze-delay", "0")
        options = ("--counts", "3", "10", "30", "--synced", "1", "--freeze", "0.7")
        with world.writer("files", *options), world.broker("make", "dtool"):
            world.promises.wait_for_lines(self._dice.randrange(*LINES[self._length]), 600)
            world.kill_all()
        world.promises.read()

    @contextlib.contextmanager
    def _after_power_cut(self, world: World, promises: PromiseList, end: int) -> Iterator[Path]:
        """Mount what is left at some position, and have `world` know what is promised then."""
        if self._dice.random() < 0.5:
            position = self._dice.choice(promises.positions)
        else:
            position = self._dice.randrange(promises.positions[0], end)
        kept = self._dice.choice(KEPT)
        path = self._directory / f"promises-{position}"
        world.promises = promises.as_of(position, path)
        try:
            with self._disk.after_power_cut(position, kept, self._dice) as left:
                yield left
        except Exception as error:
            where = f"position {position} of {end}, {kept} of what was not flushed is kept"
            raise AssertionError(f"{self._disk.kind}, {where}: {error}") from error
        self._figures["cuts"] += 1

    def _look(self, left: Path, world: World) -> None:
        """Require what was promised on the disk itself, without a program of ours."""
        staged: dict[str, Path] = {}
        for state in left.glob("staging/*/*/[!.]*/state"):
            record = read_record(state.parent)
            assert record.name not in staged, f"{record.name} is staged twice"
            staged[record.name] = state.parent / TREE
        with contextlib.closing(sqlite3.connect(left / "server/dserver.sqlite")) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            registered = {name for (name,) in database.execute("SELECT name FROM dataset")}
        for name, promised in world.promises.datasets.items():
            assert not promised.frozen or name in registered, f"{name}: was frozen, and is not"
            if name in staged and not promised.facts.get("broker"):
                seen = md5_of_files(world.account, staged[name])
                promised.require_closed_files(seen)
            elif promised.closed:
                assert name in registered, f"{name}: is neither staged nor frozen"
            self._figures["promises looked at"] += len(promised.closed) + promised.frozen

    def _start(self, left: Path, world: World) -> None:
        """Start server and mount there, finish what is open, and read all in the mount."""
        (left / "server/store/boot.json").unlink(missing_ok=True)  # the machine is started anew
        world.move_to(left)
        world.bring_up("--freeze-delay", "manual")
        world.wait_until_settled()
        self._figures["finished later"] += judge(world, Notes(world.promises.path))
        for name, uuid in world.settled.items():
            promised = world.promises.datasets[name]
            Bucket(world.server).require_bytes(promised, uuid)
            promised.require_all(md5_of_files(world.account, world.mount.path / name / "data"))
        self._figures["starts"] += 1
        world.kill_all()


PART = Part("power-cuts", "the power is cut at any write, and what was promised is there", run)
