"""The mutants that no test should kill, each with its reason; `scripts/mutate` leaves them out."""

from __future__ import annotations

from pathlib import Path

# By module: what is in the source, what the mutant has in its place. Of the reasons one is
# enough: the program does the same; only what is logged, or how fast it is, differs.
EXPLAINED: dict[str, dict[str, list[tuple[str, str]]]] = {}


def explained(path: Path) -> set[tuple[str, str]]:
    """Return the mutants of a module that are left out: old lines, and new ones."""
    name = str(path.with_suffix("")).removeprefix("dserverfs/")
    return {pair for pairs in EXPLAINED.get(name, {}).values() for pair in pairs}
