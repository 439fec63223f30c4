"""The process that simulates: threads, disk and network are replaced, then dserverfs is imported.

Imported once, before anything of dserverfs, by `python -m tests.simulation` and by nothing
else: what is replaced stays so for as long as the process lives.
"""

from __future__ import annotations

from typing import Any

from tests.simulation import disk_seams, threads

threads.install()
disk_seams.install()

from dserverfs.base import checksums, items  # noqa: E402

# Blocks and files of the cache as small as the simulated items.
items.BLOCK_SIZE = 16 * 1024
checksums.CHUNK_BYTES = 4 * 1024

from dserverfs.reading.cache import block_files  # noqa: E402

block_files.MIN_FILE_SIZE = 8 * 1024

from dserverfs import client  # noqa: E402, F401 - with everything below it
from dserverfs.writing.staging import writers  # noqa: E402
from tests.simulation import network  # noqa: E402

disk_seams.install_libc()
network.install()


# The pids of the simulated programs that may write.
running: dict[int, str] = {}


class _Processes:
    """The processes that the freezer asks for: those of the simulation."""

    def of_thread(self, thread: int) -> object | None:
        return self.find(thread)

    def find(self, pid: int) -> object | None:
        from dserverfs.base.processes import Process

        name = running.get(pid)
        if name is None:
            return None
        return Process(pid, 0, name, 0, pid, pid, 0, -1, False, False)

    def all(self) -> list[object]:
        return [process for pid in running if (process := self.find(pid))]

    def control_group(self, process: object) -> str:
        return ""

    def above(self, process: object) -> list[object]:
        return []


def _install_processes() -> None:
    from dserverfs.tree import frozen_changes

    modules: Any = (writers, frozen_changes)
    for module in modules:
        module.Processes = _Processes


_install_processes()
