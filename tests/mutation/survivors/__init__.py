"""The mutants that no test should kill, each with its reason; `scripts/mutate` leaves them out."""

from __future__ import annotations

from pathlib import Path

from tests.mutation.survivors import base, cache, reading, staging, writing

EXPLAINED = {
    module: reasons
    for part in (base, cache, reading, staging, writing)
    for module, reasons in part.EXPLAINED.items()
}


def explained(path: Path) -> set[tuple[str, str]]:
    """Return the mutants of a module that are left out: old lines, and new ones."""
    name = str(path.with_suffix("")).removeprefix("dserverfs/")
    return {pair for pairs in EXPLAINED.get(name, {}).values() for pair in pairs}
