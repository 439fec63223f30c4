"""A disk that can be cut off at a step, and then loses what was not synced.

It stands between the program and the operating system. After the cut a name that
was not synced may be the old or the new one, and of a file there is what was in it when
it was synced: the worst of what file systems do, if nothing is said to them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest


class PowerCut(BaseException):
    """The program ends here."""


class Disk:
    """What was done, in order, and what of it would outlast a power cut."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self._cut_at: int | None = None
        self._synced: dict[tuple[int, int], bytes] = {}  # content by device and inode, as now
        self._replaced: list[tuple[Path, bytes | None, tuple[int, int]]] = []
        self._os = {name: getattr(os, name) for name in ("fsync", "replace")}
        monkeypatch.setattr(os, "fsync", self._fsync)
        monkeypatch.setattr(os, "replace", self._replace)

    def cut_at(self, step: int) -> None:
        """Raise PowerCut in place of that step; those before it are done."""
        self._cut_at = step
        self.steps.clear()

    def settle(self) -> None:
        """Have all that is there now outlast a cut."""
        self._replaced.clear()

    def keep_everything(self) -> None:
        """Leave all that was done, as where only the program was killed; the next one goes on."""
        self._cut_at = None
        self.settle()

    def lose_what_is_not_synced(self) -> None:
        """Leave what the disk has after the cut; the power is back then."""
        self._cut_at = None
        for path, before, inode in reversed(self._replaced):
            status = path.stat()
            kept = self._synced.get(inode, b"")
            if kept != path.read_bytes() and (status.st_dev, status.st_ino) == inode:
                path.write_bytes(kept)
            elif before is not None:
                path.write_bytes(before)  # the name may be the old one's still
        self.settle()

    def has_content_of(self, path: Path) -> bool:
        """Return whether a file was synced as it is, by its inode."""
        status = path.stat()
        return self._synced.get((status.st_dev, status.st_ino)) == path.read_bytes()

    def _step(self, name: str) -> None:
        if self._cut_at is not None and len(self.steps) >= self._cut_at:
            raise PowerCut
        self.steps.append(name)

    def _fsync(self, fd: int) -> None:
        status = os.fstat(fd)
        is_directory = stat.S_ISDIR(status.st_mode)
        self._step("sync directory" if is_directory else "sync file")
        self._os["fsync"](fd)
        if is_directory:
            self._replaced = [
                entry
                for entry in self._replaced
                if not os.path.samestat(entry[0].parent.stat(), status)
            ]
        else:
            content = Path(f"/proc/self/fd/{fd}").read_bytes()
            self._synced[status.st_dev, status.st_ino] = content

    def _replace(self, source: Path, target: Path) -> None:
        self._step("replace")
        before = target.read_bytes() if target.exists() else None
        self._os["replace"](source, target)
        status = target.stat()
        self._replaced.append((target, before, (status.st_dev, status.st_ino)))
