"""How long it takes until a directory is a dataset: `scripts/bench publish`.

From the first byte until it is registered, or, for rclone and s3fs, which register
nothing, until every object is in the bucket. All ways have the same files, in the
page cache, and the same store; afterwards the store's objects are compared with
the files, untimed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmark import machine, measuring
from benchmark.content import make_dataset
from benchmark.lab import Lab, Sizes, open_lab
from benchmark.measuring import Measurement, WrongAnswer
from benchmark.mounts import MARK, Mounts, Place
from benchmark.peers import OURS, Dserverfs, Missing, Rclone, S3fs
from benchmark.plan import Keeper, Plan
from benchmark.report import Results
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.server.store.bucket import ObjectStore, StoredObject

UPLOADER = "uploader"
SEQUENTIAL = "sequential"
COPY = "rclone copy"
MOUNT = "rclone mount"
S3FS = "s3fs"
COLUMNS = (OURS, MOUNT, S3FS, COPY, SEQUENTIAL, UPLOADER)
LARGE, SMALL = "publish-large", "publish-small"
ROWS = (LARGE, SMALL)
LIMIT_S = 600.0
_LOOK_S = 0.05
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Source:
    """A directory to publish."""

    row: str
    files: Path
    dataset: LocalDataset


class Outcome(NamedTuple):
    measurement: Measurement
    prefix: str  # of the keys that came to be
    by_relpath: bool  # they end in relpaths, not identifiers


class Ways:
    """All ways of publishing; each returns when it is done and leaves no process."""

    def __init__(self, lab: Lab, mounts: Mounts) -> None:
        self._lab = lab
        self._mounts = mounts
        self._store = ObjectStore(lab.storage)
        self._number = 0
        self.all: Mapping[str, Callable[[Source], Outcome]] = {
            OURS: self._with_mount,
            UPLOADER: lambda source: self._with_process(UPLOADER, source),
            COPY: self._with_rclone_copy,
            MOUNT: self._with_rclone_mount,
            S3FS: self._with_s3fs,
            SEQUENTIAL: lambda source: self._with_process(SEQUENTIAL, source),
        }

    def check(self, source: Source, outcome: Outcome) -> None:
        """Raise WrongAnswer unless the store has exactly the files; then delete them there."""
        bucket = self._lab.storage.bucket
        found = {
            stored.key[len(outcome.prefix) :]: stored for stored in self._files(outcome.prefix)
        }
        items = {
            item.relpath if outcome.by_relpath else str(key): item
            for key, item in source.dataset.items.items()
        }
        if found.keys() != items.keys():
            raise WrongAnswer(f"{len(found)} objects that are not the {len(items)} files")
        for name, item in items.items():
            if found[name].etag != item.hash:
                size = item.size_in_bytes + 1
                content = self._store.read(bucket, found[name].key, limit_in_bytes=size)
                if hashlib.md5(content).hexdigest() != item.hash:
                    raise WrongAnswer(f"{item.relpath}: the store has other bytes")
        self._store.delete(bucket, [stored.key for stored in found.values()])

    def _with_process(self, way: str, source: Source) -> Outcome:
        command = [
            *(sys.executable, "-m", "benchmark.publish_ways", way),
            *(str(source.files), self._lab.base_uri, str(self._lab.token_file)),
        ]
        measurement, said = self._run(source, command, dict(os.environ))
        return Outcome(measurement, f"{said.strip()}/data/", False)

    def _with_rclone_copy(self, source: Source) -> Outcome:
        peer = Rclone()
        prefix = self._new_prefix()
        target = f"store:{self._lab.storage.bucket}/{prefix}"
        command = [peer.program(), "copy", "--config", "", str(source.files), target]
        environment = {**os.environ, **peer.environment(self._lab)}
        measurement, _ = self._run(source, command, environment)
        return Outcome(measurement, prefix, True)

    def _with_rclone_mount(self, source: Source) -> Outcome:
        peer = Rclone()

        def command(place: Place) -> list[str]:
            options = ["--vfs-cache-mode", "writes", "--vfs-write-back", "0"]
            return [
                *(peer.program(), "mount", "--daemon", "--config", "", *options),
                *("--cache-dir", str(place.cache)),
                *(f"store:{self._lab.storage.bucket}", str(place.path)),
            ]

        return self._with_file_system(source, command, peer.environment(self._lab))

    def _with_s3fs(self, source: Source) -> Outcome:
        return self._with_file_system(
            source, lambda place: S3fs().command_for(self._lab, "", place, "umask=0022"), {}
        )

    def _with_file_system(
        self, source: Source, command: Callable[[Place], list[str]], settings: Mapping[str, str]
    ) -> Outcome:
        """Copy into what `command` mounts, and wait until the store has it."""
        prefix = self._new_prefix()
        with self._mounts.place() as (place, processes):
            _start(command(place), {**place.environment, **settings}, place.log)

            def work() -> None:
                _copy(source.files, place.path / prefix.rstrip("/"))
                self._wait_for_objects(prefix, source)

            measurement, _ = measuring.measure(source.row, processes, work)
        return Outcome(measurement, prefix, True)

    def _with_mount(self, source: Source) -> Outcome:
        """Copy into the mount and freeze by command, as a script would."""
        ours = Dserverfs()
        name = self._new_prefix().rstrip("/")
        with self._mounts.place() as (place, processes):
            staging = place.cache.with_name("staging")
            environment = {**place.environment, **ours.environment(self._lab)}
            program = [sys.executable, "-m", "dserverfs"]
            command = [
                *(*program, "mount", self._lab.base_uri, str(place.path)),
                *("--cache-dir", str(place.cache), "--staging-dir", str(staging)),
                *("--freeze-delay", "manual"),
            ]
            _start(command, environment, place.log)
            # The mark is for the daemon alone.
            asking = {key: value for key, value in environment.items() if key != MARK}

            def work() -> str:
                _copy(source.files, place.path / name)
                done = subprocess.run(
                    [*program, "freeze", str(place.path / name)],
                    env=asking,
                    capture_output=True,
                    text=True,
                    timeout=LIMIT_S,
                    check=False,
                )
                if done.returncode != 0:
                    raise RuntimeError(f"freeze: {done.stderr.strip()[-500:]}")
                return done.stdout

            measurement, said = measuring.measure(source.row, processes, work)
        uuid = said.split()[-1].rstrip("/").rpartition("/")[2]
        return Outcome(measurement, f"{uuid}/data/", False)

    def _run(
        self, source: Source, command: list[str], environment: Mapping[str, str]
    ) -> tuple[Measurement, str]:
        """Run one process to its end; return its time, and what it printed."""
        log = self._lab.directory / "publish.log"
        output = self._lab.directory / "publish.out"
        with log.open("wb") as errors, output.open("wb") as said:
            start_s = time.perf_counter()
            process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=said, stderr=errors
            )
            timer = threading.Timer(LIMIT_S, process.kill)
            timer.start()
            peak = _Peak(process.pid)
            try:
                _, status, usage = os.wait4(process.pid, 0)
            finally:
                timer.cancel()
                peak.end()
            seconds = time.perf_counter() - start_s
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError(f"{command[0]}: {log.read_text(errors='replace').strip()[-500:]}")
        cpu_s = usage.ru_utime + usage.ru_stime
        return Measurement(source.row, seconds, cpu_s, peak.bytes), output.read_text()

    def _wait_for_objects(self, prefix: str, source: Source) -> None:
        wanted = sorted(item.size_in_bytes for item in source.dataset.items.values())
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if sorted(each.size_in_bytes for each in self._files(prefix)) == wanted:
                return
            time.sleep(_LOOK_S)
        raise RuntimeError("not everything was uploaded in time")

    def _files(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects that are files; s3fs also makes one for each directory."""
        for stored in self._store.iter_objects(self._lab.storage.bucket, prefix):
            if not stored.key.endswith("/"):
                yield stored

    def _new_prefix(self) -> str:
        self._number += 1
        return f"published-{self._number}/"


class _Peak:
    """The most memory a process has had, as it said last; rusage has that of its parent, too."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._status = Path(f"/proc/{pid}/status")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_S):
            with contextlib.suppress(OSError):
                for line in self._status.read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        self.bytes = int(line.split()[1]) * 1024


def run(plan: Plan, work: Path, keeper: Keeper) -> None:
    """Publish each directory of the plan in its ways; the keeper has what comes."""
    about: dict[str, Any] = {"machine": machine.describe(), "sizes": vars(plan.sizes)}
    results = Results(
        {row: text for row, text in _titles(plan.sizes).items() if row in plan.rows},
        OURS,
        [MOUNT, S3FS],
        [COPY, SEQUENTIAL, UPLOADER],  # without a file system before it; the last is ours
    )
    about["versions"] = versions = _versions(results)
    for note in versions.values():
        results.note(note)
    with open_lab(work, plan.sizes) as lab:
        ways = Ways(lab, Mounts(work / "mounts"))
        for row in results.titles:
            source = _source(work, row, plan.sizes)
            for repeat in range(plan.repeats):
                for way in (way for way in ways.all if way in plan.columns):
                    print(f"{row} {repeat + 1}: {way}", file=sys.stderr, flush=True)
                    _once(ways, way, source, results)
                about["machine"]["load_after"] = machine.load()
                keeper.keep(results, about)
    for row, title in results.titles.items():
        for way in (OURS, UPLOADER):
            results.notes.extend(_compared(results, row, title, way))
    keeper.keep_all(results, about)


def _titles(sizes: Sizes) -> dict[str, str]:
    return {
        LARGE: f"publish {sizes.large_bytes / _MIB:,.0f} MiB",
        SMALL: f"publish {sizes.small_items:,} x 4 KiB",
    }


def _versions(results: Results) -> dict[str, str]:
    """Return the version of each program there is, and note those there are not."""
    found = {}
    for peer in (Dserverfs(), Rclone(), S3fs()):
        try:
            found[peer.name] = peer.version()
        except Missing as missing:
            results.note(str(missing))
    return found


def _once(ways: Ways, way: str, source: Source, results: Results) -> None:
    try:
        _settle(source)
        outcome = ways.all[way](source)
        ways.check(source, outcome)
        results.add(way, outcome.measurement)
    except Missing as missing:
        results.note(str(missing))
    except (OSError, RuntimeError, WrongAnswer, subprocess.SubprocessError) as error:
        results.fail(way, [source.row], f"{type(error).__name__}: {error}")


def _compared(results: Results, row: str, title: str, way: str) -> list[str]:
    ours = results.seconds(row, way)
    if ours is None:
        return []
    said = []
    for peer in (SEQUENTIAL, COPY, MOUNT, S3FS):
        theirs = results.seconds(row, peer)
        if theirs is not None:
            said.append(f"{theirs / ours:.2f} times as fast as {peer}")
    return [f"{title}: {way} is {', '.join(said)}"] if said else []


def _source(work: Path, row: str, sizes: Sizes) -> Source:
    files = {
        LARGE: lambda: {"large.bin": sizes.large_bytes},
        SMALL: lambda: {f"{i:06}.bin": 4096 for i in range(sizes.small_items)},
    }[row]()
    dataset = make_dataset(work / "to-publish", row, files)
    return Source(row, work / "to-publish" / row / "data", dataset)


def _settle(source: Source) -> None:
    """Leave no writing of what came before, and have the files in memory."""
    os.sync()
    for path in source.files.iterdir():
        with path.open("rb") as file:
            while file.read(_MIB):
                pass


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", str(source), str(target)], timeout=LIMIT_S, check=True)


def _start(command: list[str], environment: Mapping[str, str], log: Path) -> None:
    with log.open("wb") as output:
        done = subprocess.run(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=60,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {log.read_text(errors='replace').strip()[-500:]}")
