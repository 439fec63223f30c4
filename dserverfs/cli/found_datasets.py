"""Datasets that were found, as JSON and as a table that fits a terminal. Pure."""

from __future__ import annotations

import datetime
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dserverfs.base.conditions import Found
from dserverfs.base.model import DserverURI
from dserverfs.base.printable import listed, printable
from dserverfs.cli.progress import size

HEADINGS = ("FROZEN", "SIZE", "ITEMS", "CREATOR", "NAME", "URI")
RIGHT = {"SIZE", "ITEMS"}  # columns of numbers
# Where not all of it fits.
MAX_CREATOR_WIDTH = 16
MIN_NAME_WIDTH = 10
INDENT = "    "


class Hit(NamedTuple):
    """A dataset, and its URI among those of all servers."""

    uri: DserverURI
    found: Found

    def facts(self) -> dict[str, Any]:
        """Return the keys of `--json`."""
        dataset = self.found.dataset
        facts: dict[str, Any] = {
            "uri": str(self.uri),
            "uuid": dataset.uuid,
            "base_uri": str(DserverURI(self.uri.server, dataset.base_uri)),
            "name": dataset.name,
            "creator_username": dataset.creator_username,
            "created_at": dataset.created_at,
            "frozen_at": dataset.frozen_at,
            "number_of_items": dataset.number_of_items,
            "size_in_bytes": dataset.size_in_bytes,
        }
        return facts | {"relpaths": self.found.relpaths} if self.found.relpaths else facts

    def cells(self) -> tuple[str, ...]:
        """Return what the table has of it."""
        dataset = self.found.dataset
        count, length = dataset.number_of_items, dataset.size_in_bytes
        return (
            _day(dataset.frozen_at),
            "?" if length is None else size(length),
            "?" if count is None else str(count),
            printable(dataset.creator_username),
            printable(dataset.name),
            str(self.uri),
        )


def table(hits: Sequence[Hit], width: int | None) -> Iterator[str]:
    """Yield the lines of a table that is at most `width` letters wide; None for any.

    Where a line is too long each URI has a line of its own, and long names are cut.
    """
    rows = [HEADINGS, *(hit.cells() for hit in hits)]
    widths = [max(map(text_width, column)) for column in zip(*rows, strict=True)]
    is_split = width is not None and sum(widths) + 2 * (len(widths) - 1) > width
    if is_split:
        assert width is not None
        frozen, sizes, items, creator, name, _ = widths
        others = [frozen, sizes, items, min(creator, MAX_CREATOR_WIDTH)]
        left = width - sum(others) - 2 * len(others)
        rows, widths = [row[:-1] for row in rows], [*others, max(min(name, left), MIN_NAME_WIDTH)]
    for number, row in enumerate(rows):
        yield "  ".join(map(_aligned, HEADINGS, row, widths)).rstrip()
        if number == 0:
            continue
        hit = hits[number - 1]
        if is_split:
            yield f"{INDENT}{hit.uri}"
        if hit.found.relpaths:
            yield f"{INDENT}{printable(listed(hit.found.relpaths))}"


def text_width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(map(_letter_width, text))


def _letter_width(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _aligned(heading: str, text: str, width: int) -> str:
    if text_width(text) > width:
        while text_width(text) > width - 3:
            text = text[:-1]
        text += "..."
    blank = " " * (width - text_width(text))
    return blank + text if heading in RIGHT else text + blank


def _day(moment_s: float) -> str:
    """Return the date there is on this machine then."""
    try:
        return f"{datetime.datetime.fromtimestamp(moment_s):%Y-%m-%d}"
    except (ValueError, OverflowError, OSError):  # in the first or the last hours of all dates
        return "?"
