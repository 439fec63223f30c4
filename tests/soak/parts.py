"""The parts of the soak, in the order in which they have their turns."""

from __future__ import annotations

from tests.soak import (
    cluster_rounds,
    crash_rounds,
    damaged_caches,
    faults,
    flipped_bits,
    many_files,
    many_programs,
    one_file,
    parsers,
    power_cuts,
    prompt_answers,
    simulation,
    stalls_and_ends,
    survival,
)
from tests.soak.turns import Part

PARTS: tuple[Part, ...] = (
    cluster_rounds.PART,
    crash_rounds.PART,
    damaged_caches.PART,
    faults.PART,
    flipped_bits.PART,
    many_files.PART,
    many_programs.PART,
    one_file.PART,
    parsers.PART,
    power_cuts.PART,
    prompt_answers.PART,
    simulation.PART,
    stalls_and_ends.PART,
    survival.PART,
)


def part_named(name: str) -> Part:
    """Return the part; raises KeyError."""
    return {part.name: part for part in PARTS}[name]
