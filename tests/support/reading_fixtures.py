"""The fixture of tests of reading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.reading_world import CONTENT, World, reading_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with reading_world(CONTENT, tmp_path / "blocks") as world:
        yield world
