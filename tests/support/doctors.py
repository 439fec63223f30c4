"""`dserverfs doctor` in tests, and what it said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from dserverfs.base.mountinfo import Mounted
from dserverfs.cli.main import main

SERVER_CHECKS = [
    *("server", "addresses", "clock", "routes", "token", "rights", "datasets", "signed URL"),
    *("addresses of the store", "throughput"),
]


class Said(NamedTuple):
    status: int
    findings: list[dict[str, str]]
    output: str

    def of(self, name: str) -> dict[str, str]:
        (found,) = (each for each in self.findings if each["check"] == name)
        return found

    def of_server(self) -> list[str]:
        return [each["check"] for each in self.findings if each["check"] in SERVER_CHECKS]


class Doctor:
    """The command, run by someone with an empty home, who has these mounts."""

    def __init__(self, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._patch = patch
        self._capture = capture
        self.mounts: list[Path] = []
        self.others: list[Mounted] = []

    def __call__(self, *arguments: str, **settings: str) -> Said:
        for name, value in settings.items():
            self._patch.setenv(name, value)
        self._capture.readouterr()
        status = main(["doctor", "--json", *arguments])
        said = self._capture.readouterr()
        assert said.err == ""
        return Said(status, json.loads(said.out), said.out)
