"""The parts of the soak, in the order in which they have their turns."""

from __future__ import annotations

from tests.soak import (
    many_files,
    many_programs,
    parsers,
    prompt_answers,
    stalls_and_ends,
)
from tests.soak.turns import Part

PARTS: tuple[Part, ...] = (
    parsers.PART,
    many_programs.PART,
    many_files.PART,
    stalls_and_ends.PART,
    prompt_answers.PART,
)


def part_named(name: str) -> Part:
    """Return the part; raises KeyError."""
    return {part.name: part for part in PARTS}[name]
