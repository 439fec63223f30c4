"""The order of a run on several processes: the longest files first.

A worker that takes a long file last works on alone while the others have nothing left. Only
the order depends on this table: a name that is missing costs time, and the run says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest

# Of the seconds that all files of a run take together: a longer one belongs into the table.
LONG_SHARE = 0.015

LONGEST = (
    "tests/simulation/test_simulation.py",
    "tests/mount/test_faults_and_operations.py",
    "tests/mount/test_crash.py",
    "tests/mount/test_writing_trouble.py",
    "tests/server/test_cluster.py",
    "tests/scripts/test_soak.py",
    "tests/scripts/test_bench_runs.py",
    "tests/server/test_migration.py",
    "tests/server/test_gunicorn.py",
    "tests/mount/test_channel_pushes.py",
    "tests/python/test_libraries.py",
    "tests/mount/test_survival.py",
    "tests/server/test_database_trouble.py",
    "tests/server/test_upgrading.py",
    "tests/mount/test_random_operations.py",
    "tests/broker/test_writing.py",
    "tests/mount/test_writing_tools.py",
    "tests/server/test_foreign.py",
    "tests/server/test_serve.py",
    "tests/mount/test_writing_dtool.py",
    "tests/mount/test_edits_trouble.py",
    "tests/test_identity.py",
    "tests/cli/test_content_commands.py",
    "tests/broker/test_reading.py",
    "tests/scripts/test_setup.py",  # later: it writes much, and others wait for the same disk
    "tests/compatibility/test_other_versions.py",
    "tests/mount/test_mirrors.py",
    "tests/broker/test_library.py",
    "tests/server/test_power_cut.py",
    "tests/server/test_management.py",
    "tests/mount/test_trouble.py",
    "tests/mount/test_integrity.py",
    "tests/catalogue/test_offline.py",
    "tests/mount/test_freezing_again.py",
    "tests/mount/test_cache_disk_full.py",
    "tests/remote/test_one_fault.py",
    "tests/mount/test_no_error_is_an_answer.py",
    "tests/writing/test_upload_outages.py",
    "tests/mount/test_freeze_rule.py",
    "tests/broker/test_offline.py",
    "tests/server/test_dtool_s3.py",
    "tests/server/test_app.py",
    "tests/writing/test_uploader.py",
    "tests/mount/test_edits.py",
    "tests/mount/test_writing.py",
    "tests/mount/test_life.py",
    "tests/server/test_metadata.py",
)


def longest_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return tests with those of the longest files first, then by the number of tests in each."""
    rank = {file: number for number, file in enumerate(LONGEST)}
    counts = Counter(_file_of(item.nodeid) for item in items)

    def key(item: pytest.Item) -> tuple[int, int, str]:
        file = _file_of(item.nodeid)
        return rank.get(file, len(rank)), -counts[file], file

    return sorted(items, key=key)


class Seconds:
    """A plugin that adds up how long each file takes, and tells which are not in the table."""

    def __init__(self) -> None:
        self._of_file: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.add(report.nodeid, report.duration)

    def add(self, nodeid: str, seconds: float) -> None:
        self._of_file[_file_of(nodeid)] += seconds

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.missing():
            terminalreporter.write_line(line, yellow=True)

    def missing(self) -> list[str]:
        """Return a line for each long file that is not in the table; none if part was run."""
        if not set(LONGEST) <= set(self._of_file):
            return []
        total = sum(self._of_file.values())
        return [
            f"{file} took {seconds / total:.1%} of the run: name it in {__name__}.LONGEST"
            for file, seconds in sorted(self._of_file.items(), key=lambda each: -each[1])
            if seconds > total * LONG_SHARE and file not in LONGEST
        ]


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]
