"""pytest on several processes, and what fails there by accident once more, alone.

    python -m tests.support.once_more [PYTEST ARGUMENT...]

Used by `scripts/test`. A test that is late because five run at once, or a server that is, passes
alone. Files are counted, for the tests of one fail together if what they share could not be set
up; but who fails in many places, or many times, is no accident. What failed is named in any case,
and has to pass when it is alone: to be skipped there is not enough.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest

MAX_FILES = 8  # of a run on a busy machine
MAX_TESTS = 40
_MAX_REASON = 160  # characters


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="where to write what passed and what failed")


def pytest_configure(config: pytest.Config) -> None:
    if (path := config.option.outcomes) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(path))


class Outcomes:
    """A plugin that writes down which tests passed, and why others failed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._passed: set[str] = set()
        self._failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.setdefault(report.nodeid, _reason(report))
        elif report.when == "call" and report.passed:
            self._passed.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._failed.setdefault(report.nodeid, _reason(report))

    def pytest_sessionfinish(self) -> None:
        passed = sorted(self._passed - self._failed.keys())
        self._path.write_text(json.dumps({"passed": passed, "failed": self._failed}))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return the first line of what is wrong."""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = str(crash.message if crash else report.longrepr).splitlines() or [""]
    return lines[0][:_MAX_REASON]


def are_few(failed: Collection[str]) -> bool:
    """Return whether tests, by their ids, may have failed by accident."""
    files = {name.partition("::")[0] for name in failed}
    return 0 < len(failed) <= MAX_TESTS and len(files) <= MAX_FILES


def run(arguments: Sequence[str]) -> int:
    """Run pytest with these arguments, and once more what failed; return the exit status."""
    status, _, failed = _pytest(arguments)
    if status != pytest.ExitCode.TESTS_FAILED or not are_few(failed):
        return status
    _say("few failed; they are run once more, alone")
    status, passed, _ = _pytest(["--numprocesses=0", *failed])
    for name, reason in failed.items():
        how = "passed" if name in passed else "not passed"
        _say(f"failed beside others, {how} alone: {name}: {reason}")
    return status or int(not failed.keys() <= passed)


def _pytest(arguments: Sequence[str]) -> tuple[int, set[str], Mapping[str, str]]:
    """Return the exit status, which tests passed, and the reasons of those that failed."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "outcomes"
        plugin = ["-p", "tests.support.once_more", f"--outcomes={path}"]
        status = _wait([sys.executable, "-m", "pytest", *plugin, *arguments])
        found = json.loads(path.read_text()) if path.exists() else {"passed": [], "failed": {}}
    return status, set(found["passed"]), found["failed"]


def _wait(command: Sequence[str]) -> int:
    """Return the exit status of a program, which alone answers to Ctrl-C: it has to tidy up."""
    with subprocess.Popen(command) as process:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return process.wait()
        finally:
            signal.signal(signal.SIGINT, before)


def _say(line: str) -> None:
    print(f"test: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
