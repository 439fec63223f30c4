"""The daemon behind the channel: whether it lives, and the one that takes its place.

A daemon that serves leaves a recipe here: the command that starts another one, its environment
and its log. When it is gone without having said that the mount ends, another one is started as
soon as its process has ended, for until then it holds its locks. It is given the device, new
connections, the journal of inode numbers and a table of handles. MAX_STARTS in a row that do not
come to serve, or one that takes longer than START_S, are the end of the mount.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from dserverfs.base import end_signals
from dserverfs.mount.channel.messages import Sockets

MAX_STARTS = 3
START_S = 60.0  # for the old one to end, and for each new one to serve
# What this process ignores, and one that it starts must not.
_DEFAULT = (*end_signals.NUMBERS, signal.SIGPIPE, signal.SIGXFSZ)
_MAX_RECIPE_BYTES = 8 << 20  # an environment may have some 2 MiB


class Heritage(NamedTuple):
    """The descriptors that a daemon takes over."""

    libfuse: int  # its ends of the connections
    messages: int
    forgotten: int
    memory: int
    device: int
    journal: int
    handles: int

    def __str__(self) -> str:
        return ",".join(map(str, self))

    @classmethod
    def of(cls, text: str) -> Heritage:
        """Return what `str` says; raises ValueError or TypeError."""
        return cls(*map(int, text.split(",")))


class Recipe(NamedTuple):
    """What a daemon is started with, beside its Heritage, which becomes an argument."""

    command: Sequence[str]  # HERITAGE stands for that argument
    environment: Mapping[str, str]
    log: str | None

    def packed(self) -> bytes:
        import json

        return json.dumps(self._asdict()).encode("ascii")

    @classmethod
    def of(cls, packed: bytes) -> Recipe:
        """Return what `packed` says; raises ValueError or TypeError."""
        import json  # 5 ms, and rarely needed

        return cls(**json.loads(packed))


HERITAGE = "HERITAGE"


class Stage(Enum):
    """Who serves."""

    SERVED = 1  # a daemon, or one that begins as the mount's first
    ENDING = 2  # nobody, and the process of the last one has not ended
    STARTING = 3  # a daemon that does not serve yet


class Succession:
    """The daemons of one mount, one after the other."""

    def __init__(self, memory: int = -1, daemon: int = -1) -> None:
        """`memory` is shared; `daemon` is a pidfd of the first, -1 if none may follow it."""
        self.stage = Stage.SERVED
        self._memory = memory
        self._daemon = daemon
        self._pid = 0  # of a daemon that is a child of this process
        self._has_crashed = False  # that process, which has ended
        self._recipe: Recipe | None = None
        self._starts = 0  # in a row
        self._end_s = 0.0  # of the patience with the stage
        self._mount_ends = False

    @property
    def is_orphaned(self) -> bool:
        return self.stage is not Stage.SERVED

    def serves(self, recipe: int) -> None:
        """Note that the daemon serves; `recipe` is a file with that of another one."""
        if recipe >= 0:  # else this process has too many files open
            with contextlib.suppress(ValueError, TypeError):
                self._recipe = Recipe.of(os.pread(recipe, _MAX_RECIPE_BYTES, 0))
            os.close(recipe)
        self.stage, self._starts = Stage.SERVED, 0

    def end(self) -> None:
        """Note that the daemon ends, and the mount with it."""
        self._mount_ends = True

    def is_gone(self) -> bool:
        """Note that the daemon has ended its connections; return whether another one follows."""
        if self._mount_ends or self._recipe is None or self._daemon < 0:
            return False
        if self.stage is Stage.STARTING and self._starts >= MAX_STARTS:
            self._say(f"the mount ends: {MAX_STARTS} daemons in a row ended before they served")
            return False
        self.stage, self._end_s = Stage.ENDING, time.monotonic() + START_S
        return True

    def fileno(self) -> int:
        """Return what becomes readable when the daemon's process has ended."""
        return self._daemon

    def wait_s(self) -> float | None:
        """Return how long to wait for the next stage; None in the last."""
        return None if self.stage is Stage.SERVED else max(self._end_s - time.monotonic(), 0)

    def is_late(self) -> bool:
        """Return whether that took too long, which is the end of the mount."""
        if self.stage is Stage.SERVED or time.monotonic() < self._end_s:
            return False
        self._say(f"the mount ends: no daemon took the dead one's place within {START_S:.0f} s")
        return True

    def start(self, device: int, journal: int, handles: bytes) -> Sockets | None:
        """Start the next daemon, once the process of the last has ended; return our ends.

        None if that is not possible, which is the end of the mount.
        """
        assert self._recipe is not None
        self._reap()
        self._starts += 1
        with contextlib.ExitStack() as stack:
            try:
                ours, theirs = Sockets.pair()
                stack.callback(theirs.close)
                failed = stack.enter_context(contextlib.ExitStack())
                failed.callback(ours.close)
                table = os.memfd_create("dserverfs-handles")
                stack.callback(os.close, table)
                os.write(table, handles)
                ends = (
                    theirs.libfuse.fileno(),
                    theirs.messages.fileno(),
                    theirs.forgotten.fileno(),
                )
                fds = Heritage(*ends, self._memory, device, journal, table)
                self._say("the daemon is gone; another one is started")
                self._pid = _spawned(self._recipe, fds)
                self._daemon = os.pidfd_open(self._pid)
                failed.pop_all()
            except OSError as error:
                self._say(f"the mount ends: no daemon can be started: {error}")
                return None
        self.stage, self._end_s = Stage.STARTING, time.monotonic() + START_S
        return ours

    def refuse(self, why: str) -> None:
        """Say why the next daemon cannot take the mount over."""
        self._say(f"the mount ends: {why}")

    def close(self) -> None:
        """End a daemon that has not come to serve, before it can unmount: a dead mount is seen.

        One that has said that the mount ends was told to, and does unmount.
        """
        if self.stage is Stage.STARTING and self._pid and not self._mount_ends:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._daemon, signal.SIGKILL)

    def has_crashed(self) -> bool:
        """Return whether the process that has ended did so of itself, and was not killed.

        Of the first daemon that is not known: it is no child of this process.
        """
        if self._pid:
            with contextlib.suppress(ChildProcessError):
                _, status = os.waitpid(self._pid, os.WNOHANG)
                self._has_crashed = os.waitstatus_to_exitcode(status) != -signal.SIGKILL
            self._pid = 0
        return self._has_crashed

    def _reap(self) -> None:
        self.has_crashed()
        os.close(self._daemon)
        self._has_crashed = False
        self._daemon = -1

    def _say(self, text: str) -> None:
        """Write a line to the daemon's log, as it does itself."""
        if self._recipe is None or self._recipe.log is None:
            return
        now_s = time.time()
        now = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now_s))}.{int(now_s % 1 * 1000):03}"
        line = f"{now}+00:00 {os.getpid()} WARNING {__name__}: {text}\n"
        with contextlib.suppress(OSError), _log(self._recipe.log) as fd:
            os.write(fd, line.encode())


@contextlib.contextmanager
def _log(path: str) -> Any:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _spawned(recipe: Recipe, heritage: Heritage) -> int:
    """Start a daemon and return its process id; raises OSError."""
    command = [str(heritage) if word == HERITAGE else word for word in recipe.command]
    with contextlib.ExitStack() as stack:
        stderr = 2
        if recipe.log is not None:
            with contextlib.suppress(OSError):
                stderr = stack.enter_context(_log(recipe.log))
        for fd in heritage:  # this process has one thread
            os.set_inheritable(fd, True)
            stack.callback(os.set_inheritable, fd, False)
        return os.posix_spawn(
            command[0],
            command,
            dict(recipe.environment),
            file_actions=[(os.POSIX_SPAWN_DUP2, stderr, 2)],
            setsigdef=_DEFAULT,
            # Until it holds them: one that they ended would be followed by another.
            setsigmask=end_signals.NUMBERS,
        )
