"""Python programs that use datasets: their settings, and an end to what they share."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import fsspec

from dserverfs.python import sessions
from dserverfs.python.filesystem import DserverFileSystem


class Programs(NamedTuple):
    """Where programs find datasets and keep what is theirs."""

    base: str  # the dserver URI of the base URI
    host: str
    directory: Path

    @property
    def path(self) -> str:
        """The base URI as a path of the file system."""
        return self.base.removeprefix("dserver://")


def forget() -> None:
    """End what a process shares, as its end does."""
    sessions.close_all()
    DserverFileSystem.clear_instance_cache()
    fsspec.config.conf.clear()
