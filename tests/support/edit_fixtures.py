"""The fixture of tests of edits; beside their helpers, which tests import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.editing import Bench
from tests.support.quirky_changes import become
from tests.support.quirky_server import QuirkyServer


@pytest.fixture
def bench(quirky: QuirkyServer, tmp_path: Path) -> Iterator[Bench]:
    become(quirky, "own")
    made = Bench(quirky, tmp_path)
    yield made
    made.close()
