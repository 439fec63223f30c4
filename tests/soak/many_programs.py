"""Fifty programs at once on one mount, round after round: right bytes, and nothing that grows."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NamedTuple

from tests.soak.turns import Figures, Part, Turn
from tests.soak.worlds import Mount, world
from tests.support.dtool_datasets import content_of
from tests.support.process_figures import Held, most, slope
from tests.support.servers import upload

PROGRAMS = 50
EDITED = 5  # datasets, each edited by one program at a time
SMALL = {f"small/{number % 4}/{number}.txt": 100 + 37 * number for number in range(60)}
LARGE = {f"large/{number}.bin": (3 << 20) + 4321 for number in range(2)}
CACHE = "4M"  # less than what is read: blocks come, go, and come again
DEADLINE_S = 300.0  # of a program; a hang

# What the daemon may hold at most, whatever the programs do. Measured here: 160 MiB, 200 and 90.
MOST = Held(400 << 10, 400 << 10, 1500, 200, 200)
# What a process may grow by with each round: a leak of each program would be more.
GROWTH_KIB = 512.0
GROWTH_COUNT = 0.5
# Until this round the daemon fills what has a bound: 64 MiB of blocks, and an index of each of
# 256 datasets, with a descriptor and about 250 KiB; seven datasets are made in a round.
WARM = 40
ENOUGH = 20  # rounds after it, for a slope


class Job(NamedTuple):
    """What one program does: `path` is the mount, `name` is its own and new."""

    path: Path
    name: str
    rng: random.Random

    @property
    def data(self) -> Path:
        return self.path / "read/data"


def read_all(job: Job) -> None:
    for relpath, size in SMALL.items():
        assert (job.data / relpath).read_bytes() == content_of(relpath, size), relpath


def look(job: Job) -> None:
    found = {
        str((Path(directory) / name).relative_to(job.data)): (Path(directory) / name).stat().st_size
        for directory, _, names in os.walk(job.data)
        for name in names
    }
    assert found == SMALL | LARGE
    assert os.statvfs(job.path).f_blocks


def read_at_random(job: Job) -> None:
    relpath, size = job.rng.choice(list(LARGE.items()))
    content = content_of(relpath, size)
    fd = os.open(job.data / relpath, os.O_RDONLY)
    for _ in range(20):
        offset = job.rng.randrange(size)
        assert os.pread(fd, 5000, offset) == content[offset : offset + 5000], relpath
    os.close(fd)


def map_it(job: Job) -> None:
    relpath, size = job.rng.choice(list(LARGE.items()))
    with (
        open(job.data / relpath, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        assert mapped[:] == content_of(relpath, size), relpath


def archive(job: Job) -> None:
    subprocess.run(
        f"tar -cf - -C {job.path} read | tar -df - -C {job.path}",
        shell=True,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def mirror(job: Job) -> None:
    copy = job.path.parent / f"copy-{job.name}"
    program = ["rsync", "-a"] if shutil.which("rsync") else ["cp", "-r"]
    subprocess.run([*program, job.path / "read", copy], check=True)
    try:
        for relpath, size in SMALL.items():
            assert (copy / "read/data" / relpath).read_bytes() == content_of(relpath, size)
    finally:
        shutil.rmtree(copy)


def make(job: Job) -> None:
    directory = job.path / job.name
    directory.mkdir()
    contents = {f"{number}/file": job.rng.randbytes(4000) for number in range(5)}
    for relpath, content in contents.items():
        (directory / relpath).parent.mkdir()
        (directory / relpath).write_bytes(content)
    os.setxattr(directory, "user.dserverfs.freeze", b"1")
    for relpath, content in contents.items():
        assert (directory / "data" / relpath).read_bytes() == content


def edit(job: Job) -> None:
    number = int(job.name.rpartition("-")[2])
    if number >= EDITED:
        return look(job)
    dataset = job.path / f"edited-{number}"
    text = f"edited: {job.name}\n"
    (dataset / "README.yml").write_text(text)
    (dataset / ".dtool/tags" / job.name).touch()
    assert (dataset / "README.yml").read_text() == text
    assert job.name in os.listdir(dataset / ".dtool/tags")
    (dataset / ".dtool/tags" / job.name).unlink()
    return None


JOBS: tuple[Callable[[Job], None], ...] = (
    *(read_all, look, read_at_random, map_it, archive, mirror, make),
)


def run(turn: Turn) -> Figures:
    with world(turn) as here:
        upload(here.server, {p: content_of(p, n) for p, n in (SMALL | LARGE).items()}, name="read")
        for number in range(EDITED):
            upload(here.server, {"a": b"a"}, name=f"edited-{number}")
        samples: list[Held] = []
        servers: list[Held] = []
        with here.mount("--cache-size", CACHE) as mount:
            while not samples or not turn.is_over():
                _round(turn, mount, len(samples))
                samples.append(mount.held())
                servers.append(Held.by(here.server.process.pid))
                turn.say(f"round {len(samples)}: {samples[-1]}")
    assert all(a <= b for a, b in zip(most(samples), MOST, strict=True)), most(samples)
    return {
        "rounds": len(samples),
        "programs": PROGRAMS * len(samples),
        **_figures("daemon", samples),
        **_figures("server", servers),
    }


def _round(turn: Turn, mount: Mount, number: int) -> None:
    fork = multiprocessing.get_context("fork")
    programs: list[ForkProcess] = []
    for program in range(PROGRAMS):
        work = edit if program < EDITED else JOBS[program % len(JOBS)]
        name = f"made-{turn.seed}-{number}-{program}"
        job = Job(mount.path, name, random.Random(f"{turn.seed} {name}"))
        programs.append(fork.Process(target=_do, args=(work, job), name=work.__name__))
    for process in programs:
        process.start()
    try:
        for process in programs:
            process.join(DEADLINE_S)
            assert process.exitcode is not None, f"{process.name} hangs"
            assert process.exitcode == 0, f"{process.name} failed"
    finally:
        for process in programs:
            process.kill()


def _do(work: Callable[[Job], None], job: Job) -> None:
    try:
        work(job)
    except BaseException:  # noqa: BLE001 - the top of a process
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _figures(name: str, samples: Sequence[Held]) -> dict[str, int | float]:
    """Return what a process held at most and how it grew; raises AssertionError if it leaks."""
    warm = samples[WARM:]
    growth: dict[str, int | float] = {}
    if len(warm) >= ENOUGH:
        by_kind = [slope(column) for column in zip(*warm, strict=True)]
        allowed = [GROWTH_KIB] * 2 + [GROWTH_COUNT] * 3
        assert all(a <= b for a, b in zip(by_kind, allowed, strict=True)), (name, by_kind, samples)
        growth = {f"KiB of growth of the {name} in a round": round(by_kind[0])}
    largest = most(samples)
    return {
        f"MiB of the {name} at most": round(largest.rss_kib / 1024),
        f"descriptors of the {name} at most": largest.descriptors,
        f"threads of the {name} at most": largest.threads,
        **growth,
    }


PART = Part("many-programs", "fifty programs at once on one mount; leaks", run, share=2.0)
