"""Commands that are run in the process of the test, which takes a tenth of the time."""

from __future__ import annotations

from pathlib import Path

import pytest

from dserverfs.cli.main import main


class CommandsHere:
    """Commands of a user with a token, and a cache of the test."""

    def __init__(self, cache: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.cache = cache
        self._capture = capture

    def run(self, *arguments: str | Path, status: int = 0) -> list[str]:
        """Return the lines that a command prints."""
        self._capture.readouterr()
        found = main([str(argument) for argument in arguments])
        said = self._capture.readouterr()
        assert (found, said.err) == (status, ""), said
        return said.out.splitlines()

    def refusal(self, *arguments: str | Path) -> str:
        """Return the one line that a command fails with."""
        self._capture.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        said = self._capture.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        return line
