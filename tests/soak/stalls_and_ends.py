"""Two hundred readers of a store or server that is stopped: all else goes on, mounts can end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.soak.turns import Figures, Part, Turn
from tests.soak.worlds import Mount, World, all_stopped, world
from tests.support.dtool_datasets import content_of
from tests.support.mount_daemons import Remountable, remountable, wait_for, wait_for_end
from tests.support.servers import upload

READERS = 200
ITEMS = {f"many/{number}": 3000 for number in range(READERS)} | {"known": (2 << 20) + 1}
DATASETS = 12  # that nobody has listed yet

# What semantics.rst promises beside stalled reads, with all that this machine does besides.
PROMPT_S = 5.0
READ_S = 120.0  # READ_TIMEOUT_S: how long a reader may wait, also one that was killed
# GRACE_S of a signal, CLOSE_S of edits, and as much for a machine at work.
END_S = 30.0
UMOUNT_S = 60.0


def run(turn: Turn) -> Figures:
    with world(turn) as here:
        upload(here.server, {path: content_of(path, n) for path, n in ITEMS.items()}, name="read")
        for number in range(DATASETS):
            upload(here.server, {"a": b"a"}, name=f"other-{number}", readme=b"a: 1\n")
        rounds = slowest_ms = 0
        with remountable(
            here.account, here.server.base_uri, {"DSERVER_TOKEN": here.server.token}
        ) as mount:
            while not rounds or not turn.is_over():
                stopped = STOPPED[(turn.seed + rounds) % len(STOPPED)]
                end = ENDS[(turn.seed + rounds) % len(ENDS)]
                slowest_ms = max(slowest_ms, _round(here, mount, stopped, end, rounds))
                rounds += 1
                turn.say(f"round {rounds}: {stopped} stopped, then {end.__name__}")
    return {
        "rounds": rounds,
        "readers": rounds * READERS,
        "ms of the slowest answer beside them": slowest_ms,
    }


def _round(
    here: World,
    mount: Remountable,
    stopped: str,
    end: Callable[[Remountable, Readers], None],
    number: int,
) -> int:
    """Return how long the slowest of what shall be prompt took, in ms."""
    here.account.run("rm", "-rf", here.account.home / ".cache")
    mount.mount("--freeze-delay", "manual")
    read = mount.path / "read/data"
    names = os.listdir(read / "many")
    content = content_of("known", ITEMS["known"])
    assert (read / "known").read_bytes() == content
    os.listdir(mount.path)
    staged = mount.path / "staged"
    staged.mkdir(exist_ok=True)
    daemon = Mount(mount.path, mount.daemon())
    before = daemon.held()
    processes = {"store": [here.store], "server": [here.server.process.pid]}
    processes["both"] = [*processes["store"], *processes["server"]]
    with _readers(read, names) as readers:
        with all_stopped(processes[stopped]):
            readers.begin()
            asked: list[tuple[str, Callable[[], Any], Any]] = [
                ("cached read", (read / "known").read_bytes, content),
                ("listing", lambda: sorted(os.listdir(read / "many")), sorted(names)),
                ("stat", lambda: (read / "many/7").stat().st_size, ITEMS["many/7"]),
                ("statfs", lambda: os.statvfs(mount.path).f_bsize > 0, True),
                ("write", lambda: _write(staged / f"{number}", content), None),
                ("read back", (staged / f"{number}").read_bytes, content),
            ]
            slowest_s = 0.0
            for what, ask, expected in asked * 3:
                begun_s = time.monotonic()
                assert ask() == expected, what
                took_s = time.monotonic() - begun_s
                assert took_s < PROMPT_S, f"{what} took {took_s:.1f} s beside stalled reads"
                slowest_s = max(slowest_s, took_s)
            readers.kill_some()
            if end is not nothing_ends:
                end(mount, readers)
        if end is nothing_ends:
            readers.finish(allowed=("",))
            # What they held is given back: handles, and the descriptors of what they waited for.
            assert daemon.held().threads < before.threads + 150
            mount.account.dserverfs("umount", mount.path, check=True)
        else:
            readers.finish(allowed=None)
    # Nothing that was written is lost, and the next mount works.
    mount.mount("--freeze-delay", "manual")
    assert (staged / f"{number}").read_bytes() == content
    assert (read / "many/3").read_bytes() == content_of("many/3", 3000)
    mount.account.dserverfs("umount", mount.path, check=True)
    return round(slowest_s * 1000)


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class Readers:
    """Programs that read an item each."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self._directory = directory
        self._names = names
        self._processes: list[subprocess.Popen[str]] = []
        self._killed: list[subprocess.Popen[str]] = []

    def begin(self) -> None:
        for name in self._names:
            command: list[str | Path] = ["cat", self._directory / "many" / name]
            self._processes.append(
                subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
            )

    def kill_some(self) -> None:
        """Kill one in four; those that wait for an answer end with it."""
        self._killed = self._processes[::4]
        for process in self._killed:
            process.kill()

    def finish(self, allowed: Sequence[str] | None) -> None:
        """Wait for all; `allowed` is what they may say, None for anything."""
        end_s = time.monotonic() + 2 * READ_S
        for process in self._processes:
            _, said = process.communicate(timeout=max(1.0, end_s - time.monotonic()))
            if process not in self._killed and allowed is not None:
                assert said in allowed, said

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(READ_S)


@contextlib.contextmanager
def _readers(directory: Path, names: Sequence[str]) -> Iterator[Readers]:
    readers = Readers(directory, names)
    try:
        yield readers
    finally:
        readers.end()


# How a mount ends while they wait


def nothing_ends(mount: Remountable, readers: Readers) -> None:
    """The mount goes on."""


def told_twice(mount: Remountable, readers: Readers) -> None:
    daemon = mount.daemon()
    os.kill(daemon, signal.SIGTERM)
    with contextlib.suppress(ProcessLookupError):
        os.kill(daemon, signal.SIGTERM)
    wait_for_end(daemon, END_S)


def killed(mount: Remountable, readers: Readers) -> None:
    mount.end(signal.SIGKILL)


def detached(mount: Remountable, readers: Readers) -> None:
    """Lazily: the readers keep it, then their end ends the daemon."""
    daemon = mount.daemon()
    subprocess.run(["fusermount3", "-uz", mount.path], check=True, timeout=END_S)
    readers.end()
    wait_for_end(daemon, END_S)


def in_use(mount: Remountable, readers: Readers) -> None:
    """umount refuses, in bounded time, and takes nothing away."""
    done = mount.account.dserverfs("umount", mount.path, timeout_s=UMOUNT_S)
    assert "is in use" in done.stderr or "does not answer" in done.stderr, done.stderr
    assert done.returncode == 1
    assert os.listdir(mount.path)
    told_twice(mount, readers)


def stopped_itself(mount: Remountable, readers: Readers) -> None:
    """A daemon that was suspended goes on with what it was asked before."""
    daemon = mount.daemon()
    with all_stopped([daemon]):
        listing = subprocess.Popen(["ls", mount.path / "read/data/many"], stdout=subprocess.PIPE)
        wait_for(lambda: _is_waiting(listing.pid), "a program that waits for the daemon")
    assert len(listing.communicate(timeout=END_S)[0].split()) == READERS
    told_twice(mount, readers)


def _is_waiting(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "DS"


STOPPED = ("store", "both", "server")
ENDS = (nothing_ends, told_twice, killed, detached, in_use, stopped_itself, nothing_ends)

PART = Part(
    "stalls-and-ends", "readers of a stopped store or server; mounts that end meanwhile", run
)
