"""A server with a store, a user, and mounts, for one turn of a part."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.soak.turns import Turn
from tests.support import accounts, fuse_device
from tests.support.accounts import Account
from tests.support.mount_daemons import daemon_of
from tests.support.mounts import mounted
from tests.support.process_figures import Held
from tests.support.server_store import weed_of
from tests.support.servers import ServerHandle, running_server


class Mount(NamedTuple):
    """A mount point, and the process that serves it."""

    path: Path
    daemon: int

    def held(self) -> Held:
        return Held.by(self.daemon)


class World(NamedTuple):
    """What a turn has."""

    server: ServerHandle
    account: Account

    @contextlib.contextmanager
    def mount(self, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Mount]:
        """Yield a mount of the server's base URI, in which datasets are frozen by command."""
        options = ("--freeze-delay", "manual", *options)
        with mounted(
            self.account, self.server.base_uri, self.server.token, *options, env=env
        ) as path:
            yield Mount(path, daemon_of(path))

    @property
    def store(self) -> int:
        """The process id of the store."""
        return weed_of(self.server)


@contextlib.contextmanager
def world(turn: Turn) -> Iterator[World]:
    """Yield a server and a user of its own, whose files are below the turn's directory."""
    with fuse_device.usable_by_all(), running_server(turn.directory / "server") as server:
        yield World(server, accounts.current(turn.directory))


@contextlib.contextmanager
def all_stopped(processes: Sequence[int]) -> Iterator[None]:
    """Hold up processes inside the block."""
    try:
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
