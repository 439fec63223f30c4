"""Why no test should kill a mutant."""

from __future__ import annotations

SAME = "the program does the same"
MOMENT = "the difference is one moment of a clock, or one byte of a limit of ours"
SLOWER = "it only takes longer, or asks more often"
RACE = "it differs only if another process or thread does the same at the same moment"
TYPES = "it is there for the type checker: a condition that the other one contains, an alias"

# By module and reason: what is in the source, and what the mutant has in its place.
Explained = dict[str, dict[str, list[tuple[str, str]]]]


def each(old: str, *new: str) -> list[tuple[str, str]]:
    """Return several mutants of the same lines."""
    return [(old, one) for one in new]
