"""Medians, ratios, tables and JSON of what was measured. Pure.

Tables are simple tables of reStructuredText, to be pasted into README.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmark.measuring import Measurement

MIB = 1024 * 1024
NOTHING = "-"

Number = float | None


@dataclass
class Results:
    """Measurements by row and column, both in the order in which they are to be shown."""

    titles: Mapping[str, str]  # of the rows
    ours: str
    peers: Sequence[str]  # what ours is compared with
    floors: Sequence[str]
    measurements: dict[tuple[str, str], list[Measurement]] = field(default_factory=dict)
    failed: set[tuple[str, str]] = field(default_factory=set)  # (row, column)
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        return [self.ours, *self.peers, *self.floors]

    def add(self, column: str, measurement: Measurement) -> None:
        self.measurements.setdefault((measurement.row, column), []).append(measurement)

    def fail(self, column: str, rows: Sequence[str], reason: str) -> None:
        """Note that a column has no trustworthy value in these rows, whatever was measured."""
        self.failed.update((row, column) for row in rows)
        # On one line, whatever a program said: the notes are a list.
        self.notes.append(f"{column}, {', '.join(rows)}: failed: {' '.join(reason.split())}")

    def seconds(self, row: str, column: str) -> Number:
        return self._median(row, column, lambda each: each.seconds)

    def cpu_seconds(self, row: str, column: str) -> Number:
        return self._median(row, column, lambda each: each.cpu_seconds)

    def peak_mib(self, row: str, column: str) -> Number:
        return self._median(
            row, column, lambda each: None if each.peak_bytes is None else each.peak_bytes / MIB
        )

    def ratio(self, row: str) -> Number:
        """Return our median time by that of the best peer; None if there is none of one."""
        ours = self.seconds(row, self.ours)
        theirs = [self.seconds(row, peer) for peer in self.peers]
        known = [seconds for seconds in theirs if seconds is not None]
        return ours / min(known) if ours is not None and known else None

    def _median(self, row: str, column: str, value: Callable[[Measurement], Number]) -> Number:
        if (row, column) in self.failed:
            return None
        values = [value(each) for each in self.measurements.get((row, column), [])]
        known = [each for each in values if each is not None]
        return statistics.median(known) if known else None


def as_text(results: Results) -> str:
    """Return the tables of times, processor time and memory, and the notes."""
    daemons = [results.ours, *results.peers]
    times = [
        [
            title,
            *(
                _cell(results, row, column, results.seconds, seconds_text)
                for column in results.columns
            ),
            _text(results.ratio(row), "{:.2f}".format),
        ]
        for row, title in results.titles.items()
    ]
    resources = [
        [
            title,
            *(_cell(results, row, name, results.cpu_seconds, "{:.2f}".format) for name in daemons),
            *(_cell(results, row, name, results.peak_mib, "{:.0f}".format) for name in daemons),
        ]
        for row, title in results.titles.items()
        if any(results.peak_mib(row, name) is not None for name in daemons)
    ]
    parts = [
        "Median seconds; the ratio is ours to the best of the other file systems:",
        simple_table(["", *results.columns, "ratio"], times),
        "The daemons' processor seconds, and their peak memory in MiB:",
        simple_table(
            ["", *(f"{name} s" for name in daemons), *(f"{name} MiB" for name in daemons)],
            resources,
        ),
        *(f"- {note}" for note in results.notes),
    ]
    return "\n\n".join(parts) + "\n"


def simple_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a simple table of reStructuredText; the first column is text, the others numbers."""
    # A row whose first cell is empty would go on with the row above it.
    lines = [["\\" if not cell and not i else cell for i, cell in enumerate(header)], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    border = "  ".join("=" * width for width in widths)
    texts = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([border, texts[0], border, *texts[1:], border])


def seconds_text(seconds: float) -> str:
    """Return three significant digits, but no more than a tenth of a millisecond."""
    for limit, digits in ((0.1, 4), (1, 3), (10, 2), (100, 1)):
        if seconds < limit:
            return f"{seconds:.{digits}f}"
    return f"{seconds:.0f}"


def as_json(results: Results, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything measured, `about` (machine, versions, options) first."""
    return {
        **about,
        "columns": {"ours": results.ours, "peers": results.peers, "floors": results.floors},
        "rows": [
            {
                "row": row,
                "title": title,
                "ratio": results.ratio(row),
                "columns": {
                    column: {
                        "failed": (row, column) in results.failed,
                        "median_seconds": results.seconds(row, column),
                        "median_cpu_seconds": results.cpu_seconds(row, column),
                        "median_peak_mib": results.peak_mib(row, column),
                        "seconds": [each.seconds for each in found],
                        "cpu_seconds": [each.cpu_seconds for each in found],
                        "peak_bytes": [each.peak_bytes for each in found],
                    }
                    for column in results.columns
                    for found in [results.measurements.get((row, column), [])]
                },
            }
            for row, title in results.titles.items()
        ],
        "notes": results.notes,
    }


def _cell(
    results: Results,
    row: str,
    column: str,
    value: Callable[[str, str], Number],
    form: Callable[[float], str],
) -> str:
    return "failed" if (row, column) in results.failed else _text(value(row, column), form)


def _text(value: Number, form: Callable[[float], str]) -> str:
    return NOTHING if value is None else form(value)
