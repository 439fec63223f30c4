"""How `dserverfs status` prints: one line is one line, whatever names are in it."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from typing import Any

import pytest

from dserverfs.cli import status_facts
from dserverfs.cli.main import main

HOSTILE = "a\x1b[31m\nb\u202e"
SHOWN = "a\\x1b[31m\\nb\\u202e"
FACTS: dict[str, Any] = {"state": "open", "name": HOSTILE, "notes": ["x" * 200], "errors": []}


@pytest.fixture(autouse=True)
def two_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a path with a hostile name, and Ctrl-C pressed after two reports."""
    reports: list[float] = []

    def sleep(pause_s: float) -> None:
        reports.append(pause_s)
        if len(reports) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(status_facts, "of_path", lambda path: FACTS)
    monkeypatch.setattr("time.sleep", sleep)


def test_pipe_gets_report_after_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--watch", "/lab"]) == 0

    report = ["state: open", f"name: {SHOWN}", f"note: {'x' * 200}"]
    assert capsys.readouterr().out.split("\n") == [*report, *report, ""]


def test_script_gets_a_line_for_each_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--watch", "--json", "/lab"]) == 0

    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first) == json.loads(second) == FACTS


def test_terminal_has_one_report_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((40, 4)))

    assert main(["status", "--watch", "/lab"]) == 0

    report = f"\x1b[H\x1b[Jstate: open\nname: {SHOWN}\n{'note: ' + 'x' * 34}\n"
    assert terminal.getvalue() == 2 * report
