"""A staging area by a clock of the test, and as another process has it."""

from __future__ import annotations

from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.dataset import StagedDataset

SERVER, BASE = "localhost:5000", "s3://bucket"


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def another(staging: Staging) -> Staging:
    """Return the area as another process has it."""
    return Staging(staging.directory, SERVER).open()


def only(staging: Staging) -> StagedDataset:
    (staged,) = staging.datasets(BASE)
    return staged
