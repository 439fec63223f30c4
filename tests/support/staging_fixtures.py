"""Fixtures: a staging area with one dataset in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.dataset import StagedDataset
from tests.support.staging_areas import BASE, SERVER, Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def staging(tmp_path: Path, clock: Clock) -> Staging:
    return Staging(tmp_path / "staging", SERVER, clock_s=clock).open()


@pytest.fixture
def staged(staging: Staging) -> StagedDataset:
    return staging.create(BASE, "one", "alice")
