"""Medians, ratios, tables and JSON of what was measured, and back from JSON. Pure.

Tables are simple tables of reStructuredText, to be pasted into README.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmark.measuring import Measurement, Requests

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
    failed: dict[tuple[str, str], str] = field(default_factory=dict)  # (row, column): why
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"a column would be compared with itself: {', '.join(self.columns)}")

    @property
    def columns(self) -> list[str]:
        return [self.ours, *self.peers, *self.floors]

    def add(self, column: str, measurement: Measurement) -> None:
        self.measurements.setdefault((measurement.row, column), []).append(measurement)

    def fail(self, column: str, rows: Sequence[str], reason: str) -> None:
        """Note that a column has no trustworthy value in these rows, whatever was measured."""
        for row in rows:
            # On one line, whatever a program said: it is shown in a list.
            self.failed.setdefault((row, column), " ".join(reason.split()))

    def note(self, text: str) -> None:
        """Have it said below the tables, once."""
        if text not in self.notes:
            self.notes.append(text)

    def has(self, row: str) -> bool:
        """Return whether anything is known of a row."""
        known = self.measurements.keys() | self.failed.keys()
        return any((row, column) in known for column in self.columns)

    def seconds(self, row: str, column: str) -> Number:
        return self._median(row, column, lambda each: each.seconds)

    def cpu_seconds(self, row: str, column: str) -> Number:
        return self._median(row, column, lambda each: each.cpu_seconds)

    def peak_mib(self, row: str, column: str) -> Number:
        return self._median(
            row, column, lambda each: None if each.peak_bytes is None else each.peak_bytes / MIB
        )

    def requests(self, row: str, column: str) -> str | None:
        """Return the medians of those to the server and to the store, as text."""
        to_server = self._median(row, column, lambda each: each.requests and each.requests[0])
        to_store = self._median(row, column, lambda each: each.requests and each.requests[1])
        if to_server is None or to_store is None:
            return None
        return f"{to_server:,.0f} + {to_store:,.0f}"

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
        *(_of_daemons(daemons, resources) if resources else ()),
        *_of_requests(results),
        *(f"- {note}" for note in (*_failures(results), *results.notes)),
    ]
    return "\n\n".join(parts) + "\n"


def _of_daemons(daemons: Sequence[str], resources: Sequence[Sequence[str]]) -> tuple[str, str]:
    heads = ["", *(f"{name} s" for name in daemons), *(f"{name} MiB" for name in daemons)]
    return (
        "The daemons' processor seconds, and their peak memory in MiB:",
        simple_table(heads, resources),
    )


def _of_requests(results: Results) -> Iterator[str]:
    """Yield the table of requests, if any were counted."""
    cells = [
        [title, *(results.requests(row, column) or NOTHING for column in results.columns)]
        for row, title in results.titles.items()
    ]
    counted = [line for line in cells if {*line[1:]} != {NOTHING}]
    if counted:
        yield "Requests, to the server + to the store:"
        yield simple_table(["", *results.columns], counted)


def _failures(results: Results) -> Iterator[str]:
    """Yield what failed, with all rows that did for one reason."""
    rows: dict[tuple[str, str], list[str]] = {}
    for (row, column), reason in results.failed.items():
        rows.setdefault((column, reason), []).append(row)
    for (column, reason), failed in rows.items():
        yield f"{column}, {', '.join(failed)}: failed: {reason}"


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
                        "reason": results.failed.get((row, column)),
                        "median_seconds": results.seconds(row, column),
                        "median_cpu_seconds": results.cpu_seconds(row, column),
                        "median_peak_mib": results.peak_mib(row, column),
                        "seconds": [each.seconds for each in found],
                        "cpu_seconds": [each.cpu_seconds for each in found],
                        "peak_bytes": [each.peak_bytes for each in found],
                        "requests": [each.requests for each in found],
                    }
                    for column in results.columns
                    for found in [results.measurements.get((row, column), [])]
                },
            }
            for row, title in results.titles.items()
        ],
        "notes": results.notes,
    }


def from_json(made: Mapping[str, Any]) -> Results:
    """Return what `as_json` wrote, without rows of which nothing was measured.

    Raises KeyError, TypeError or ValueError if that is not what it is.
    """
    columns = made["columns"]
    results = Results(
        {row["row"]: row["title"] for row in made["rows"]},
        columns["ours"],
        columns["peers"],
        columns["floors"],
        notes=list(made["notes"]),
    )
    for row in made["rows"]:
        for column, found in row["columns"].items():
            values = (found["seconds"], found["cpu_seconds"], found["peak_bytes"])
            counted = found.get("requests", [None] * len(found["seconds"]))  # not in older files
            for seconds, cpu_seconds, peak_bytes, sent in zip(*values, counted, strict=True):
                requests = None if sent is None else Requests(*sent)
                results.add(
                    column, Measurement(row["row"], seconds, cpu_seconds, peak_bytes, requests)
                )
            if found["failed"]:
                results.fail(column, [row["row"]], found.get("reason") or "")
    results.titles = {row: title for row, title in results.titles.items() if results.has(row)}
    return results


def merged(parts: Sequence[Results], order: Iterable[str]) -> Results:
    """Return the rows of all in that order, each whole as the last of `parts` has it.

    Whole, because a ratio of times that were not measured in one run says little.
    Raises ValueError if they have not the same columns.
    """
    first = parts[0]
    if any(part.columns != first.columns for part in parts):
        raise ValueError("they do not compare the same")
    found = {row: part for part in parts for row in part.titles}
    places = {row: place for place, row in enumerate(order)}
    rows = sorted(found, key=lambda row: places.get(row, len(places)))
    result = Results(
        {row: found[row].titles[row] for row in rows}, first.ours, first.peers, first.floors
    )
    for row in rows:
        for column in result.columns:
            key = (row, column)
            if key in found[row].measurements:
                result.measurements[key] = found[row].measurements[key]
            if key in found[row].failed:
                result.failed[key] = found[row].failed[key]
    for part in parts:
        for note in part.notes:
            result.note(note)
    return result


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
