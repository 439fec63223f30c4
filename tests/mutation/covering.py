"""Which tests reach which lines of some modules: a plugin of pytest that watches one run."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest


class Reached(NamedTuple):
    """A test that passed, and the lines that it reached; `seconds` are those of its call."""

    name: str
    seconds: float
    lines: dict[str, list[int]]  # of each module, by the path of its file


class Watch:
    """The plugin. Lines are those of all threads, with what fixtures do for the test."""

    def __init__(self, modules: list[Path]) -> None:
        self._modules = {str(path) for path in modules}
        self._lines: dict[str, set[int]] = {}
        self._seconds = 0.0
        self._has_passed = True
        self.reached: list[Reached] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._lines = {path: set() for path in self._modules}
        self._has_passed = True
        begun_s = time.monotonic()
        threading.settrace(self._frame)
        sys.settrace(self._frame)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self._seconds = time.monotonic() - begun_s
            lines = {path: sorted(lines) for path, lines in self._lines.items() if lines}
            if self._has_passed:
                self.reached.append(Reached(item.nodeid, self._seconds, lines))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._has_passed &= report.passed

    def _frame(self, frame: FrameType, event: str, argument: object) -> Any:
        lines = self._lines.get(frame.f_code.co_filename)
        if lines is None:
            return None
        add = lines.add

        def line(frame: FrameType, event: str, argument: object) -> Any:
            add(frame.f_lineno)
            return line

        return line
