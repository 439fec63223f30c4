"""What a run is to measure, and the files in which it keeps what it has."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmark import machine, report
from benchmark.lab import Sizes
from benchmark.report import Results

ENDED_EARLY = "the run ended before all was measured"


class Plan(NamedTuple):
    sizes: Sizes
    rows: Sequence[str]
    columns: Sequence[str]
    repeats: int


class Kept(NamedTuple):
    """What a file holds."""

    results: Results
    about: Mapping[str, Any]  # machine, versions, sizes


class Keeper:
    """Writes what was measured so far into each of some files, after every repetition.

    Whenever the run is ended, each file is whole, as of the last repetition before.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def keep(self, results: Results, about: Mapping[str, Any]) -> None:
        self._write(results, {**about, "complete": False})

    def keep_all(self, results: Results, about: Mapping[str, Any]) -> None:
        """Likewise, at the end of a run."""
        self._write(results, {**about, "complete": True})

    def _write(self, results: Results, about: Mapping[str, Any]) -> None:
        text = json.dumps(report.as_json(results, about), indent=1) + "\n"
        for path in self._paths:
            with replacing(path) as partial:
                partial.write_text(text)


def partial_of(path: Path) -> Path:
    """Return where a file is written before it gets its name; a killed run leaves it there."""
    return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path whose file becomes `path` at the end of the block, unless that raises."""
    partial = partial_of(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> Kept:
    """Return what a run has kept; raises OSError, or ValueError if it is something else."""
    try:
        made = json.loads(path.read_text())
        results = report.from_json(made)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no results of scripts/bench: {error!r}") from error
    if not made.get("complete", True):  # files of earlier versions were written at the end only
        results.note(ENDED_EARLY)
    if "load_after" in made.get("machine", {}):  # likewise, they have it among their notes
        results.note(machine.in_words(made["machine"]))
    about = {name: made[name] for name in ("machine", "versions", "sizes") if name in made}
    return Kept(results, about)
