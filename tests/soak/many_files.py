"""Thousands of files open at once, inodes looked up and forgotten, directories that go away."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
from pathlib import Path

from tests.soak.turns import Figures, Part, Turn
from tests.soak.worlds import Mount, World, world
from tests.support.process_figures import Held, slope
from tests.support.servers import upload

LONG_S = 60.0  # a turn of that time does all, a shorter one a part of it
OPEN = 10_000
LOOKED_UP = 100_000
PART_OF_IT = 50

# What the daemon may keep of files that are closed, deleted and forgotten, in a round.
GROWTH_KIB = 512.0
ENOUGH = 6  # rounds, for a slope


def run(turn: Turn) -> Figures:
    share = 1 if turn.seconds >= LONG_S else PART_OF_IT
    open_at_once, looked_up = _openable(OPEN // share), LOOKED_UP // share
    samples: list[Held] = []
    most_open = 0
    with world(turn) as here, contextlib.ExitStack() as stack:
        uri = upload(here.server, {str(n): b"" for n in range(50)}, name="frozen")
        mount = stack.enter_context(here.mount())
        while not samples or not turn.is_over():
            most_open = max(most_open, _open(mount, open_at_once))
            _look_up_and_forget(mount, looked_up)
            _discard_while_it_is_listed(here, mount, looked_up // 10)
            assert len(os.listdir(mount.path / "frozen/data")) == 50, uri
            samples.append(mount.held())
            turn.say(f"round {len(samples)}: {samples[-1]}")
    if len(samples) >= ENOUGH + 2:
        warm = samples[2:]
        assert slope([held.rss_kib for held in warm]) < GROWTH_KIB, samples
        assert slope([held.descriptors for held in warm]) < 0.5, samples
    return {
        "rounds": len(samples),
        "files open at once": open_at_once,
        "descriptors of the daemon then": most_open,
        "inodes looked up and forgotten": looked_up * len(samples),
        "MiB of the daemon afterwards": round(samples[-1].rss_kib / 1024),
    }


def _openable(wanted: int) -> int:
    """Return how many files this process and a daemon may have open, at most `wanted`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return min(wanted, most - 2000) if most != resource.RLIM_INFINITY else wanted


def _open(mount: Mount, count: int) -> int:
    """Hold files open, write to all, and see that all else goes on; return what that took."""
    directory = mount.path / "open"
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        opened = []
        for number in range(count):
            fd = os.open(directory / str(number), os.O_CREAT | os.O_RDWR)
            stack.callback(os.close, fd)
            opened.append(fd)
        held = mount.held().descriptors
        for number, fd in enumerate(opened):
            os.pwrite(fd, b"%d" % number, 0)
        for number in range(0, count, 97):
            assert os.pread(opened[number], 20, 0) == b"%d" % number
        assert "frozen" in os.listdir(mount.path)
        assert (mount.path / "frozen/data/7").read_bytes() == b""
    assert (directory / str(count - 1)).read_bytes() == b"%d" % (count - 1)
    shutil.rmtree(directory)
    return held


def _look_up_and_forget(mount: Mount, count: int) -> None:
    directory = mount.path / "looked-up"
    directory.mkdir()
    _fill(directory, count)
    with os.scandir(directory) as entries:
        assert sum(entry.stat().st_size == 0 for entry in entries) == count
    shutil.rmtree(directory)


def _discard_while_it_is_listed(here: World, mount: Mount, count: int) -> None:
    """Take a dataset away under a listing that has begun: it ends, and nothing else does."""
    directory = mount.path / "discarded"
    directory.mkdir()
    _fill(directory, count)
    with os.scandir(directory) as entries:
        next(entries)
        here.account.dserverfs("discard", directory, check=True, timeout_s=300)
        with contextlib.suppress(OSError):
            for _ in entries:
                pass
    assert "discarded" not in os.listdir(mount.path)


def _fill(directory: Path, count: int) -> None:
    for number in range(count):
        os.close(os.open(directory / str(number), os.O_CREAT | os.O_WRONLY))


PART = Part("many-files", "10,000 open files, 100,000 inodes, directories that go away", run)
