"""The fixture of tests that run commands in their own process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands_here import CommandsHere


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandsHere:
    """As the server's first user, if the test has the server."""
    cache = tmp_path / "cache-of-here"
    monkeypatch.setenv("DSERVER_CACHE_DIR", str(cache))
    return CommandsHere(cache, capsys)
