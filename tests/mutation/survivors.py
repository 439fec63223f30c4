"""The mutants that no test should kill, each with its reason; `scripts/mutate` leaves them out."""

from __future__ import annotations

from pathlib import Path

_SAME = "the program does the same"
_MOMENT = "the difference is one moment of a clock, or one byte of a limit of ours"
_SLOWER = "it only takes longer, or asks more often"
_RACE = "it differs only if another process does the same at the same moment"
_TYPES = "the condition is there for the type checker: the other one contains it"

# By module and reason: what is in the source, and what the mutant has in its place.
EXPLAINED: dict[str, dict[str, list[tuple[str, str]]]] = {
    "base/durable_files": {
        _RACE: [
            (
                "fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)",
                "fd = os.open(scratch, (os.O_RDWR | os.O_CREAT) | os.O_CLOEXEC, mode)",
            )
        ],
        _MOMENT: [
            (
                "if left.stat().st_mtime < time.time() - older_than_s:",
                "if left.stat().st_mtime <= time.time() - older_than_s:",
            )
        ],
    },
    "base/locks": {
        _MOMENT: [
            ("if time.monotonic() >= end_s:", "if time.monotonic() > end_s:"),
            (
                'return os.pread(fd, 4096, 0).decode("utf-8", "replace")',
                'return os.pread(fd, 4097, 0).decode("utf-8", "replace")',
            ),
        ]
    },
    "writing/edits/journal": {
        _SAME: [("self._count = itertools.count(1)", "self._count = itertools.count(2)")],
        _RACE: [
            (
                "(session / name).unlink(missing_ok=True)",
                "(session / name).unlink(missing_ok=False)",
            )
        ],
    },
    "writing/edits/local_file": {_SAME: [("self.changes = 1", "self.changes = 2")]},
    "writing/freeze_schedule": {
        _TYPES: [
            (
                "if self._delay_s is None or not self.is_armed(staged):",
                "if (not self.is_armed(staged)):",
            )
        ],
        _SAME: [  # equal, "4 times its longest pause so far" is said as well
            (
                "is_longer = PAUSES * staged.longest_pause_s > self._delay_s",
                "is_longer = PAUSES * staged.longest_pause_s >= self._delay_s",
            )
        ],
    },
    "writing/freeze_job": {
        _MOMENT: [("if time.monotonic() > end_s:", "if time.monotonic() >= end_s:")],
        _SLOWER: [
            ("self.stop.wait(0.02)", "pass"),
            (
                'with ThreadPoolExecutor(1, thread_name_prefix="seal") as pool:',
                'with ThreadPoolExecutor(2, thread_name_prefix="seal") as pool:',
            ),
        ],
        _SAME: [
            (
                "on_taken=lambda item: taken.__setitem__(item.identifier, True),",
                "on_taken=lambda item: taken.__setitem__(item.identifier, False),",
            )
        ],
    },
}


def explained(path: Path) -> set[tuple[str, str]]:
    """Return the mutants of a module that are left out: old lines, and new ones."""
    name = str(path.with_suffix("")).removeprefix("dserverfs/")
    return {pair for pairs in EXPLAINED.get(name, {}).values() for pair in pairs}
