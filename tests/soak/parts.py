"""The parts of the soak, in the order in which they have their turns."""

from __future__ import annotations

from tests.soak import parsers
from tests.soak.turns import Part

PARTS: tuple[Part, ...] = (parsers.PART,)


def part_named(name: str) -> Part:
    """Return the part; raises KeyError."""
    return {part.name: part for part in PARTS}[name]
