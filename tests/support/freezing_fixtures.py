"""Fixtures for tests of freezing without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.freezing import FreezeBench, freeze_bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FreezeBench:
    """One that freezes nothing by itself."""
    return freeze_bench(tmp_path / "staging", monkeypatch)
